"""Which tests there are, and how each set learns where the lab is.

The problem: tempest reads a configuration file, the SDK a clouds.yaml and the command line client's tests
the environment; all of them come from PyPI, run under stestr and know nothing of this lab. Here each is
told the same: who the users are, and what Ceph RBD can do.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys

from labkit import auth, cinder
from labkit.state import LabError, write_if_changed

IMAGE = "scoria-tempest"
ALT = "alt_demo"               # another user with a project of its own


@dataclasses.dataclass(frozen=True)
class Suite:
    """A set of tests: where stestr finds them, and which of them are about volumes."""

    name: str
    path: str                  # below site-packages
    select: tuple
    # How many run at a time; those that count what a project has must run alone.
    jobs: int = 0


SUITES = {s.name: s for s in (
    Suite("tempest", "tempest/test_discover",
          (r"^tempest\.api\.volume\.", r"^cinder_tempest_plugin\.api\.", r"^cinder_tempest_plugin\.rbac\.")),
    Suite("cinderclient", "cinderclient/tests/functional", (r"^cinderclient\.tests\.functional\.",), jobs=1),
    Suite("sdk", "openstack/tests/functional/block_storage/v3",
          (r"^openstack\.tests\.functional\.block_storage\.v3\.",), jobs=1),
    Suite("openstackclient", "openstackclient/tests/functional/volume/v3",
          (r"^openstackclient\.tests\.functional\.volume\.v3\.",), jobs=2),
)}


def site_packages():
    """Of the environment that runs us."""
    return pathlib.Path(next(p for p in sys.path if p.endswith("site-packages")))


# ---- what they are told ---------------------------------------------------------------------------------
def write_tempest_conf(lab, path, image):
    """tempest.conf for this lab: what RBD can do is on, what needs Nova, Neutron or Swift is off."""
    base = path.parent
    write_if_changed(path, f"""[DEFAULT]
log_file = {base}/tempest.log
debug = true

[oslo_concurrency]
lock_path = {base}/locks

[auth]
use_dynamic_credentials = true
admin_username = admin
admin_password = {lab.state["secrets"]["user-admin"]}
admin_project_name = {auth.USERS["admin"][0]}
admin_domain_name = {auth.DOMAIN}
default_credentials_domain_name = {auth.DOMAIN}
tempest_roles = member
create_isolated_networks = false

[identity]
uri_v3 = {auth.url(lab)}/v3
auth_version = v3
region = {auth.REGION}
default_domain_id = default
v3_endpoint_type = public

[identity-feature-enabled]
api_v2 = false
api_v3 = true

[service_available]
cinder = true
glance = true
nova = false
# A double of it (network.py): some classes that might give a server a network have tests that want none.
neutron = true
swift = false
horizon = false

[compute]
image_ref = {image}
image_ref_alt = {image}

[compute-feature-enabled]
volume_multiattach = true

[image]
disk_formats = raw,qcow2,vmdk,vhd,vhdx,iso
container_formats = bare

[enforce_scope]
cinder = true

[volume]
storage_protocol = ceph
vendor_name = Open Source
backend_names = {",".join(cinder.BACKENDS)}
backup_driver = ceph
volume_type = ceph
manage_volume_ref = source-name,volume-%s
manage_snapshot_ref = source-name,snapshot-%s
min_microversion = 3.0
max_microversion = latest

[volume-feature-enabled]
multi_backend = true
snapshot = true
clone = true
backup = true
manage_volume = true
manage_snapshot = true
replication = true
consistency_group = true
volume_revert = true
extend_volume_with_snapshot = true
extend_attached_volume = false
concurrency_tests = true
enable_volume_image_dep_tests = true
""", mode=0o600)


def write_clouds(lab, path):
    """clouds.yaml (JSON is YAML) for the SDK. The catalogue names a Nova that nobody serves."""
    def cloud(user, project, **scope):
        scope = scope or {"project_name": project, "project_domain_name": auth.DOMAIN}
        return {"auth": {"auth_url": f"{auth.url(lab)}/v3", "username": user,
                         "password": password_of(lab, user), "user_domain_name": auth.DOMAIN, **scope},
                "region_name": auth.REGION, "has_compute": False, "has_network": False,
                "block_storage_api_version": "3", "volume_api_version": "3"}

    clouds = {"devstack": cloud("demo", "demo"), "devstack-alt": cloud(ALT, ALT),
              "devstack-admin": cloud("admin", "admin"),
              "devstack-system-admin": cloud("admin", None, system_scope="all")}
    text = json.dumps({"clouds": clouds, "functional": {"image_name": IMAGE}}, indent=1)
    write_if_changed(path, text, mode=0o600)


def password_of(lab, user):
    """That of the second demo user is the first one's."""
    return lab.state["secrets"][f"user-{'demo' if user == ALT else user}"]


def environment(lab, home):
    """What all suites find in their environment; `home` is a directory of their own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "TEMPEST"))}
    client = auth.client_environment(lab)
    return {
        **kept, **client, "OS_VOLUME_API_VERSION": "3",
        "PATH": f"{pathlib.Path(sys.executable).parent}:{kept.get('PATH', '')}",
        "OS_CINDERCLIENT_EXEC_DIR": str(pathlib.Path(sys.executable).parent),
        # The SDK gives a test five seconds unless told otherwise.
        "HOME": str(home), "PYTHONWARNINGS": "ignore", "OS_TEST_TIMEOUT": "900",
        "TEMPEST_CONFIG_DIR": str(home), "TEMPEST_CONFIG": "tempest.conf",
        "OS_CLIENT_CONFIG_FILE": str(home / "clouds.yaml"), "OS_CLOUD": "devstack-admin",
    }


# ---- what they find in the lab --------------------------------------------------------------------------
def administrator(lab):
    """A connection of the SDK."""
    import openstack
    return openstack.connect(
        auth_url=f"{auth.url(lab)}/v3", username="admin", password=password_of(lab, "admin"),
        project_name="admin", user_domain_name=auth.DOMAIN, project_domain_name=auth.DOMAIN,
        region_name=auth.REGION, load_yaml_config=False, load_envvars=False)


@contextlib.contextmanager
def types_of_nobody_hidden(admin):
    """Without the lab's types for a host that is not there: a suite may take the first one that is listed."""
    hidden = [t for t in admin.block_storage.types() if t.name.startswith("stock-")]
    try:
        for kind in hidden:
            _publish(admin, kind, False)
        yield
    finally:
        for kind in hidden:
            _publish(admin, kind, True)


def _publish(admin, kind, public):
    # The SDK itself sends this flag by a name that cinder-api refuses.
    answer = admin.block_storage.put(f"/types/{kind.id}", json={"volume_type": {"is_public": public}})
    if not answer.ok:
        raise LabError(f"volume type {kind.name} cannot be hidden or shown: {answer.text}")


def prepare(lab, admin, home):
    """An image, a second user, and the files that tell the tests of them."""
    import openstack
    try:
        image = admin.image.find_image(IMAGE) or admin.image.create_image(
            IMAGE, data=os.urandom(1 << 20) + bytes(7 << 20), disk_format="raw", container_format="bare",
            visibility="public", wait=True)
        project = admin.identity.find_project(ALT) or admin.identity.create_project(
            name=ALT, domain_id="default")
        user = admin.identity.find_user(ALT) or admin.identity.create_user(
            name=ALT, password=password_of(lab, ALT), domain_id="default")
        role = admin.identity.find_role("member", ignore_missing=False)
        admin.identity.assign_project_role_to_user(project, user, role)
    except openstack.exceptions.SDKException as e:
        raise LabError(f"the lab cannot be prepared: {e}") from None
    write_tempest_conf(lab, home / "tempest.conf", image.id)
    write_clouds(lab, home / "clouds.yaml")
