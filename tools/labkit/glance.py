"""Glance, with its images on both Ceph sites.

The problem: Cinder clones an image without copying it only when Glance keeps it in the same cluster and
tells where, which is not its default. Here Glance has a store on either site, so that an image may lie in
the volume's cluster, in the other one or in both, and shows the locations.
"""

from . import auth, ceph, keys, keystone
from .state import write_if_changed
from .web import Web, uwsgi

STORES = {"ceph": "a", "ceph-b": "b"}        # the first is the default
# The longest part of an upload in parts; clients send 1 MiB and more, uWSGI takes a little less.
CHUNK = 16 << 20
POOL, ENTITY = "images", "client.glance"
# What Ceph's documentation gives to Glance. (Cinder's key may read and clone from this pool already.)
CAPS = {"mon": "profile rbd", "osd": f"profile rbd pool={POOL}", "mgr": f"profile rbd pool={POOL}"}


def conf(lab):
    return lab.path("conf", "glance-api.conf")


def write_conf(lab):
    base, venv = lab.path("glance"), lab.auth_venv
    for sub in ("staging", "tasks", "locks"):
        (base / sub).mkdir(parents=True, exist_ok=True)
    text = f"""[DEFAULT]
use_stderr = true
bind_host = 127.0.0.1
bind_port = {lab.state["ports"]["glance"]}
worker_self_reference_url = {auth.image_url(lab)}
enabled_backends = {", ".join(f"{name}:rbd" for name in STORES)}
# Cinder's copy-on-write clones need to know where an image lies.
show_image_direct_url = true
show_multiple_locations = true
enabled_import_methods = [glance-direct,copy-image]

[paste_deploy]
flavor = keystone
config_file = {venv}/etc/glance/glance-api-paste.ini

[database]
connection = {auth.database_url(lab, "glance")}

[oslo_concurrency]
lock_path = {base}/locks

{auth.token_section(lab, "glance")}
[glance_store]
default_backend = {next(iter(STORES))}

[os_glance_staging_store]
filesystem_store_datadir = {base}/staging

[os_glance_tasks_store]
filesystem_store_datadir = {base}/tasks
"""
    if keys.on(lab):       # it deletes the key of an encrypted volume's image
        text += f"\n{keys.section(lab)}"
    for name, site in STORES.items():
        text += f"""
[{name}]
store_description = site {site}
rbd_store_pool = {POOL}
rbd_store_user = {ENTITY.removeprefix("client.")}
rbd_store_ceph_conf = {ceph.client_conf(lab, site)}
# A volume that becomes an image is mostly zeros.
rbd_thin_provisioning = true
# A site that is away must not keep Glance from starting.
rados_connect_timeout = 15
"""
    write_if_changed(conf(lab), text, mode=0o640)


class GlanceApi(Web):
    name = "glance-api"
    port_name = "glance"
    ready_within = 120.0       # sites that are away cost it half a minute

    def __init__(self, lab):
        super().__init__(lab)
        self.by_default = auth.on(lab)
        osds = range(lab.state.get("osds", 1))
        self.needs = ("mariadb", "keystone",
                      *(f"site-{s}-osd.{i}" for s in STORES.values() for i in osds))

    def available(self):
        return auth.unavailable(self.lab)

    def prepare(self):
        write_conf(self.lab)
        for site in STORES.values():
            ceph.write_conf(self.lab, site)
            ceph.add_entity(self.lab, site, ENTITY, CAPS)
        keystone.make_database(self.lab, "glance", conf(self.lab))

    def command(self):
        """Loaded after the fork (librados does not survive one). An upload of unknown length is read in
        chunks, for which it may wait a while."""
        return uwsgi(self.lab.auth_venv, self.port, "glance.wsgi.api", "--lazy-apps", "--enable-threads",
                     "--socket-timeout", "60", "--chunked-input-timeout", "60",
                     "--chunked-input-limit", str(CHUNK)), {
                         "PYTHONWARNINGS": "ignore", "OS_GLANCE_CONFIG_DIR": str(conf(self.lab).parent)}
