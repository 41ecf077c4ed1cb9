"""Whether the lab has Keystone and Glance, and what that means for everybody's configuration.

The problem: images, service tokens and a compute service that is told of volumes need a real Keystone,
but most tests do not, and are quicker and smaller without. So the lab has a mode, remembered like its
ports: `noauth`, or `keystone`. This module says what the mode changes: users and their secrets,
sections of configuration files, the environment of clients. The services are in keystone and glance.
"""

import os

from .state import LabError

MODES = ("noauth", "keystone")
PORTS = ("keystone", "glance", "nova")        # nova: for a test that wants to see what it would be told
REGION, DOMAIN = "RegionOne", "Default"
# User: (project, roles in it), as OpenStack's installation guides have them.
USERS = {
    "admin": ("admin", ("admin",)),
    "cinder": ("service", ("admin", "service")),
    "glance": ("service", ("admin", "service")),
    "nova": ("service", ("admin", "service")),
    "barbican": ("service", ("admin", "service")),
    "demo": ("demo", ("member",)),
}
DATABASES = ("keystone", "glance")
COMPONENTS = ("keystone", "glance-api")
# Whose configuration depends on the mode.
CLIENTS = ("scoria-volume", "cinder-volume", "cinder-backup", "cinder-api", "cinder-scheduler")
# Set in the other mode only; left in a shell, it would lead clients past the catalogue.
STALE = ("OS_ENDPOINT",)


def mode(lab):
    return lab.state.get("auth", MODES[0])       # labs made before there was a choice


def on(lab):
    return mode(lab) == "keystone"


def choose(lab, wanted):
    """Change the mode; the first change to keystone makes what it needs to have for life."""
    if wanted == "keystone":
        lab.add_ports(PORTS)
        lab.add_secrets(*(f"user-{u}" for u in USERS), *(f"database-{d}" for d in DATABASES))
    lab.state["auth"] = wanted
    lab.save()


def needs(lab):
    """What Cinder's services need because of the mode."""
    return ("keystone",) if on(lab) else ()


def unavailable(lab):
    """Why a service of this mode cannot be started, or None."""
    if not on(lab):
        return "this lab is without Keystone and Glance: tools/lab up --auth keystone"
    if not (lab.auth_venv / ".scoria-hash").exists():
        return f"no environment of Keystone and Glance in {lab.auth_venv} (tools/install auth)"
    return None


# ---- where things are -----------------------------------------------------------------------------
def url(lab):
    return f"http://127.0.0.1:{lab.state['ports']['keystone']}"


def image_url(lab):
    return f"http://127.0.0.1:{lab.state['ports']['glance']}"


def compute_url(lab):
    return f"http://127.0.0.1:{lab.state['ports']['nova']}/v2.1"


def catalogue(lab, volume_url):
    """(name, type, URL) of every service; Cinder twice, as devstack has it."""
    return (("keystone", "identity", f"{url(lab)}/v3"),
            ("glance", "image", image_url(lab)),
            ("cinder", "block-storage", f"{volume_url}/$(project_id)s"),
            ("cinderv3", "volumev3", f"{volume_url}/$(project_id)s"),
            ("nova", "compute", compute_url(lab)))


# ---- configuration files --------------------------------------------------------------------------
def conf_mode(lab):
    """Permissions of a file that holds passwords: an operator's group reads it too."""
    return 0o640 if on(lab) else 0o600


def database_url(lab, name):
    return (f"mysql+pymysql://{name}:{lab.state['secrets'][f'database-{name}']}@127.0.0.1:"
            f"{lab.state['ports']['mariadb']}/{name}")


def password_options(lab, user):
    """Options of keystoneauth's `password` plugin, in whatever section."""
    return f"""\
auth_type = password
auth_url = {url(lab)}
username = {user}
password = {lab.state["secrets"][f"user-{user}"]}
project_name = {USERS[user][0]}
user_domain_name = {DOMAIN}
project_domain_name = {DOMAIN}
"""


def token_section(lab, user):
    """How a service judges the tokens that it is shown."""
    return f"""[keystone_authtoken]
www_authenticate_uri = {url(lab)}
{password_options(lab, user)}region_name = {REGION}
service_token_roles = service
service_token_roles_required = true
"""


def cinder_defaults(lab):
    """Lines for [DEFAULT] of Cinder's services; the owner of cached images is known once it exists."""
    if not on(lab):
        return ""
    text = f"glance_api_servers = {image_url(lab)}\nallowed_direct_url_schemes = cinder\n"
    made = lab.state.get("keystone")
    if made:
        text += (f"cinder_internal_tenant_project_id = {made['projects']['service']}\n"
                 f"cinder_internal_tenant_user_id = {made['users']['cinder']}\n")
    return text


def cinder_sections(lab):
    """The sections that Cinder's services have because of Keystone."""
    if not on(lab):
        return ""
    return f"""
{token_section(lab, "cinder")}
[service_user]
send_service_user_token = true
{password_options(lab, "cinder")}
[glance]
{password_options(lab, "glance")}region_name = {REGION}

[nova]
{password_options(lab, "nova")}region_name = {REGION}
"""


# ---- clients --------------------------------------------------------------------------------------
def client_environment(lab):
    """What clients read, for the user that $SCORIA_LAB_USER names."""
    user = os.environ.get("SCORIA_LAB_USER") or "admin"
    if user not in USERS:
        raise LabError(f"SCORIA_LAB_USER={user}: the lab's users are {' '.join(USERS)}")
    variables = {
        "OS_AUTH_TYPE": "password",
        "OS_AUTH_URL": f"{url(lab)}/v3",
        "OS_IDENTITY_API_VERSION": "3",
        "OS_IMAGE_API_VERSION": "2",
        "OS_USERNAME": user,
        "OS_PASSWORD": lab.state["secrets"][f"user-{user}"],
        "OS_PROJECT_NAME": USERS[user][0],
        "OS_USER_DOMAIN_NAME": DOMAIN,
        "OS_PROJECT_DOMAIN_NAME": DOMAIN,
        "OS_REGION_NAME": REGION,
        "SCORIA_NOVA_ENDPOINT": compute_url(lab),
    }
    made = lab.state.get("keystone")
    if made:
        variables["OS_PROJECT_ID"] = made["projects"][USERS[user][0]]
        variables["OS_USER_ID"] = made["users"][user]
    return variables
