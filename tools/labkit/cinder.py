"""The unmodified Cinder 29 control plane, and the stock volume service to compare with.

The problem: Scoria must please the real cinder-api and cinder-scheduler, which expect Keystone,
a web server and files in /etc. Here they run from the virtual environment with `noauth`, under
uWSGI, on one configuration file in the lab. The stock cinder-volume (not started by default) has
a host and files of its own; os-brick insists on keyrings in /etc/ceph, which it therefore sees
through a mount namespace of its own. In a lab with Keystone (`auth`) they have what it asks of them.
"""

import os
import shutil

from . import amqp, auth, ceph, keys, rabbitmq
from .component import Component
from .state import write_if_changed
from .web import Web, uwsgi

BACKENDS = {"ceph": "volumes", "plain": "volumes2"}      # section: pool


def database_url(lab, scheme="mysql+pymysql"):
    return (f"{scheme}://cinder:{lab.state['secrets']['database']}@127.0.0.1:"
            f"{lab.state['ports']['mariadb']}/cinder")


def endpoint(lab):
    return f"http://127.0.0.1:{lab.state['ports']['api']}/v3"


def control_conf(lab):
    return lab.path("conf", "cinder.conf")


def shared_sections(lab):
    """What a control plane and a volume service must agree on."""
    return f"""\
[database]
connection = {database_url(lab)}

[oslo_messaging_notifications]
driver = messagingv2

{keys.section(lab)}{rabbitmq.oslo_options(lab)}{auth.cinder_sections(lab)}"""


def backend_sections(lab, prefix=""):
    """The two backends as an operator would write them."""
    text = ""
    for name, pool in BACKENDS.items():
        text += f"""
[{name}]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
volume_backend_name = {prefix}{name}
rbd_pool = {pool}
rbd_user = cinder
rbd_ceph_conf = {ceph.client_conf(lab, "a")}
rbd_cluster_name = ceph
"""
        if name == "ceph":
            text += (f"replication_device = backend_id:site-b,"
                     f"conf:{ceph.client_conf(lab, 'b')},user:cinder\n")
    return text


def write_conf(lab):
    base = lab.path("cinder")
    for sub in ("state", "locks"):
        (base / sub).mkdir(parents=True, exist_ok=True)
    write_if_changed(control_conf(lab), f"""[DEFAULT]
host = lab
auth_strategy = {auth.mode(lab)}
transport_url = {rabbitmq.transport_url(lab)}
state_path = {base}/state
api_paste_config = {lab.venv}/etc/cinder/api-paste.ini
resource_query_filters_file = {lab.venv}/etc/cinder/resource_filters.json
osapi_volume_workers = 1
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {lab.state["ports"]["api"]}
default_volume_type = ceph
enable_new_services = true
enable_force_upload = true
# The scheduler waits at most so long for the first report of a backend.
periodic_interval = 10
use_stderr = true
{auth.cinder_defaults(lab)}
[coordination]
backend_url = file://{base}/state/coordination

[oslo_concurrency]
lock_path = {base}/locks

{shared_sections(lab)}""", mode=auth.conf_mode(lab))


class _Service(Component):
    def __init__(self, lab):
        super().__init__(lab)
        self.needs = ("mariadb", "rabbitmq", *auth.needs(lab))

    def available(self):
        if not (self.lab.venv / ".scoria-hash").exists():
            return f"no Cinder environment in {self.lab.venv} (tools/install venv)"
        return None

    def prepare(self):
        write_conf(self.lab)

    def deaf(self, queues):
        """Queues that nobody consumes from; None when the broker does not answer."""
        found = amqp.consumers(self.lab, queues)
        return None if found is None else [q for q in queues if not found[q]]

    def consumer_health(self, queues):
        deaf = self.deaf(queues)
        if deaf is None:
            return "broker not answering"
        return "ok" if not deaf else "not consuming: " + ", ".join(deaf)


class Api(Web, _Service):
    name = "cinder-api"
    port_name = "api"

    def command(self):
        """Forked after loading: the workers share the memory of one import."""
        return uwsgi(self.lab.venv, self.port, "cinder.wsgi.api", "--post-buffering", "65536",
                     "--pyargv", f"--config-file {control_conf(self.lab)}", processes=2), {
                         "PYTHONWARNINGS": "ignore"}


class Scheduler(_Service):
    name = "cinder-scheduler"
    grace = 1.0            # it waits for nothing useful, and longer than anybody likes

    def command(self):
        return [self.lab.venv / "bin/cinder-scheduler", "--config-file",
                control_conf(self.lab)], {"PYTHONWARNINGS": "ignore"}

    def ready(self):
        return self.deaf(["cinder-scheduler.lab"]) == []

    def health(self):
        return self.consumer_health(["cinder-scheduler.lab"])


class StockVolume(_Service):
    """cinder-volume 29 itself: `start cinder-volume`, never part of a plain `up`."""

    name = "cinder-volume"
    by_default = False
    grace = 10.0

    def available(self):
        return super().available() or (
            None if shutil.which("unshare") else "unshare (util-linux) is not installed")

    @property
    def queues(self):
        host = self.lab.state["stock_host"]
        return [f"cinder-volume.{host}@{b}.{host}" for b in BACKENDS]

    @property
    def conf(self):
        return self.lab.path("conf", "cinder-volume.conf")

    def prepare(self):
        super().prepare()
        host = self.lab.state["stock_host"]
        base = self.lab.path("cinder")
        # With Scoria's own host it takes over Scoria's backends; else it must not be scheduled
        # what Scoria's types ask for.
        prefix = "" if host == "lab" else "stock-"
        (base / "stock").mkdir(exist_ok=True)
        write_if_changed(self.conf, f"""[DEFAULT]
host = {host}
transport_url = {rabbitmq.transport_url(self.lab)}
state_path = {base}/stock
enabled_backends = {",".join(BACKENDS)}
periodic_interval = 10
use_stderr = true
{auth.cinder_defaults(self.lab)}
[coordination]
backend_url = file://{base}/stock/coordination

[oslo_concurrency]
lock_path = {base}/locks

{self._helper_section()}{shared_sections(self.lab)}{backend_sections(self.lab, prefix)}""", mode=auth.conf_mode(self.lab))
        self.prepare_keyrings()

    def prepare_keyrings(self):
        """What os-brick finds in /etc/ceph, by the cluster names that connections carry."""
        etc = self.lab.path("etc-ceph")
        etc.mkdir(exist_ok=True)
        for site, cluster in (("a", "ceph"), ("a", "site-a"), ("b", "site-b")):
            source = ceph.keyring(self.lab, site, "client.cinder")
            if source.exists():
                shutil.copy(source, etc / f"{cluster}.client.cinder.keyring")
            if ceph.client_conf(self.lab, site).exists():
                shutil.copy(ceph.client_conf(self.lab, site), etc / f"{cluster}.conf")

    def _helper_section(self):
        """It looks into images by a helper that it would start with sudo; here it is root already, if only
        in its namespace."""
        if not auth.on(self.lab):
            return ""
        return (f"[cinder_sys_admin]\nhelper_command = {self.lab.venv}/bin/privsep-helper --config-file "
                f"{self.conf}\n\n")

    def command(self):
        return self.in_namespace("cinder-volume")

    def in_namespace(self, program):
        """The command of a program that sees those files in /etc/ceph."""
        how = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
        return [*how, "sh", "-c",
                'mount --bind "$1" /etc/ceph && shift && exec "$@"', "sh",
                self.lab.path("etc-ceph"), self.lab.venv / "bin" / program, "--config-file",
                self.conf], {
                    "PYTHONWARNINGS": "ignore",
                    "PATH": f"{self.lab.venv}/bin:{os.environ.get('PATH', '')}"}

    def ready(self):
        return self.deaf(self.queues) == []

    def health(self):
        return self.consumer_health(self.queues)


def client_environment(lab):
    """Environment that makes a plain `cinder` command work on the lab."""
    if auth.on(lab):
        return {**auth.client_environment(lab), "OS_VOLUME_API_VERSION": "3.71",
                "CINDER_ENDPOINT": endpoint(lab)}
    return {
        "OS_AUTH_TYPE": "noauth",
        "OS_ENDPOINT": endpoint(lab),
        "OS_PROJECT_ID": lab.state["project_id"],
        "OS_USER_ID": lab.state["user_id"],
        "OS_VOLUME_API_VERSION": "3.71",
        "CINDER_ENDPOINT": endpoint(lab),
    }
