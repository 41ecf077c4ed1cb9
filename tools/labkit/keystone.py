"""Keystone, with the users, roles and services of a small OpenStack.

The problem: an installation guide has pages of commands, each with a second of start-up. Here the
schema and the administrator come from keystone-manage, everything else from a handful of requests as
soon as it serves; identifiers that others need are remembered in the lab's state.
"""

import base64
import http.client
import json
import os
import subprocess

from . import auth, cinder, mariadb, procs, scoria
from .state import LabError, write_if_changed
from .web import Web, uwsgi


def conf(lab):
    return lab.path("conf", "keystone.conf")


def write_conf(lab):
    base = lab.path("keystone")
    write_if_changed(conf(lab), f"""[DEFAULT]
use_stderr = true

[database]
connection = {auth.database_url(lab, "keystone")}

[token]
provider = fernet

[fernet_tokens]
key_repository = {base}/fernet-keys

[fernet_receipts]
key_repository = {base}/fernet-keys

[credential]
key_repository = {base}/credential-keys

[identity]
# The least that bcrypt knows: tests log in often, and these passwords protect nothing.
password_hash_rounds = 4
max_password_length = 72
""", mode=0o640)


def write_keys(lab):
    """What `keystone-manage fernet_setup` and `credential_setup` make: 1 is used, 0 is the next."""
    for repository in ("fernet-keys", "credential-keys"):
        where = lab.path("keystone", repository)
        where.mkdir(parents=True, exist_ok=True)
        for name in ("0", "1"):
            if not (where / name).exists():
                write_if_changed(where / name, base64.urlsafe_b64encode(os.urandom(32)).decode())


class _Api:
    """Enough of Keystone's API to make what a lab has to have. Everything may be done again."""

    def __init__(self, lab):
        self.lab = lab
        self.token = None
        user = {"name": "admin", "domain": {"id": "default"},
                "password": lab.state["secrets"]["user-admin"]}
        response, _ = self._request("POST", "/v3/auth/tokens", {"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}}}})
        self.token = response.getheader("X-Subject-Token")

    def _request(self, method, path, body=None):
        conn = http.client.HTTPConnection("127.0.0.1", self.lab.state["ports"]["keystone"], timeout=30)
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["X-Auth-Token"] = self.token
        try:
            conn.request(method, path, json.dumps(body) if body else None, headers)
            response = conn.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as e:
            raise LabError(f"keystone: {method} {path}: {e}") from None
        finally:
            conn.close()
        if response.status >= 300:
            raise LabError(f"keystone: {method} {path}: {response.status} {data[:1000].decode(errors='replace')}")
        return response, json.loads(data) if data else {}

    def listing(self, kind, query=""):
        return self._request("GET", f"/v3/{kind}{query}")[1][kind]

    def ensure(self, kind, found, **attributes):
        """The id of the entry among `found` (by name) or of a new one."""
        name = attributes["name"]
        for entry in found:
            if entry["name"] == name:
                return entry["id"]
        return self._request("POST", f"/v3/{kind}", {kind[:-1]: attributes})[1][kind[:-1]]["id"]

    def grant(self, project, user, role):
        self._request("PUT", f"/v3/projects/{project}/users/{user}/roles/{role}")

    def endpoint(self, service, interface, url, found):
        if not any(e["service_id"] == service and e["interface"] == interface for e in found):
            self._request("POST", "/v3/endpoints", {"endpoint": {
                "service_id": service, "interface": interface, "url": url, "region_id": auth.REGION}})


def make_accounts(lab):
    """Projects, users, roles and the catalogue; their ids."""
    api = _Api(lab)
    roles = {r["name"]: r["id"] for r in api.listing("roles")}
    known = {kind: api.listing(kind) for kind in ("projects", "users", "services", "endpoints")}
    projects, users = {}, {}
    for user, (project, its_roles) in auth.USERS.items():
        if project not in projects:
            projects[project] = api.ensure("projects", known["projects"], name=project, domain_id="default")
        users[user] = api.ensure("users", known["users"], name=user, domain_id="default",
                                 password=lab.state["secrets"][f"user-{user}"])
        for role in its_roles:
            if role not in roles:
                roles[role] = api.ensure("roles", [], name=role)
            api.grant(projects[project], users[user], roles[role])
    for name, kind, url in auth.catalogue(lab, cinder.endpoint(lab)):
        service = api.ensure("services", known["services"], name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            api.endpoint(service, interface, url, known["endpoints"])
    return {"projects": projects, "users": users}


def add_service(lab, user, name, kind, url):
    """A service that came later: its user and its endpoints."""
    api = _Api(lab)
    project, its_roles = auth.USERS[user]
    roles = {r["name"]: r["id"] for r in api.listing("roles")}
    projects = {p["name"]: p["id"] for p in api.listing("projects")}
    ident = api.ensure("users", api.listing("users"), name=user, domain_id="default",
                       password=lab.state["secrets"][f"user-{user}"])
    for role in its_roles:
        api.grant(projects[project], ident, roles[role])
    service = api.ensure("services", api.listing("services"), name=name, type=kind)
    for interface in ("public", "internal", "admin"):
        api.endpoint(service, interface, url, api.listing("endpoints"))


class Keystone(Web):
    name = "keystone"
    port_name = "keystone"
    ready_within = 120.0
    needs = ("mariadb",)

    def __init__(self, lab):
        super().__init__(lab)
        self.by_default = auth.on(lab)

    def available(self):
        return auth.unavailable(self.lab)

    def prepare(self):
        write_conf(self.lab)
        write_keys(self.lab)
        make_database(self.lab, "keystone", conf(self.lab))
        if self.lab.done("keystone-bootstrap"):
            return
        bootstrap = {"USERNAME": "admin", "PASSWORD": self.lab.state["secrets"]["user-admin"],
                     "PROJECT_NAME": "admin", "ROLE_NAME": "admin", "REGION_ID": auth.REGION,
                     "SERVICE_NAME": "keystone",
                     **{f"{interface}_URL": f"{auth.url(self.lab)}/v3"
                        for interface in ("PUBLIC", "INTERNAL", "ADMIN")}}
        manage(self.lab, "keystone", conf(self.lab), "bootstrap",
               {f"OS_BOOTSTRAP_{k}": v for k, v in bootstrap.items()})
        self.lab.mark("keystone-bootstrap")

    def command(self):
        """Loaded after the fork: with one worker, sharing would only make the master as big."""
        return uwsgi(self.lab.auth_venv, self.port, "keystone.wsgi.api", "--lazy-apps",
                     "--post-buffering", "65536"), {
            "PYTHONWARNINGS": "ignore", "OS_KEYSTONE_CONFIG_DIR": "",
            "OS_KEYSTONE_CONFIG_FILES": str(conf(self.lab))}

    def finish(self):
        """The accounts; Cinder's services want to know some of their ids."""
        if not self.lab.done("keystone-accounts"):
            self.lab.state["keystone"] = make_accounts(self.lab)
            self.lab.mark("keystone-accounts")
        cinder.write_conf(self.lab)
        scoria.write_conf(self.lab)


def manage(lab, service, path, command, environ=None):
    """A command of keystone-manage or glance-manage; secrets are in its conf or its environment."""
    done = subprocess.run(
        [lab.auth_venv / f"bin/{service}-manage", "--config-file", path, command], text=True,
        capture_output=True, check=False, stdin=subprocess.DEVNULL,
        env={**procs.clean_env(lab, procs.SETUP), "PYTHONWARNINGS": "ignore", **(environ or {})})
    if done.returncode:
        raise LabError(f"{service}-manage {command}: {(done.stderr or done.stdout).strip()[-2000:]}")


def make_database(lab, service, path):
    """Its user, and its tables if the lab's data were made before it had this service; once."""
    if not lab.done(f"{service}-database"):
        mariadb.add_database(lab, service)
        if not lab.done(f"{service}-schema"):
            manage(lab, service, path, "db_sync")
        lab.mark(f"{service}-database")
