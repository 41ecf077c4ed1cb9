"""Barbican, with its keys in its own database.

The problem: keys that cinder-api makes and deletes, each for one project, are another thing than one key in a
file; whether an encrypted volume can be used by who owns it is only seen with a real key manager. Its web
application looks for files in /etc, which it finds in a home directory of its own instead.
"""

import base64

from . import auth, keys, keystone, mariadb
from .state import write_if_changed
from .web import Web, uwsgi


def home(lab):
    return lab.path("barbican")


def write_conf(lab):
    kek = base64.b64encode(lab.state["secrets"]["barbican-kek"].encode().ljust(32, b"0")[:32]).decode()
    write_if_changed(home(lab) / ".barbican" / "barbican.conf", f"""[DEFAULT]
use_stderr = true
host_href = {keys.url(lab)}
db_auto_create = true

[database]
connection = {auth.database_url(lab, keys.USER)}

[simple_crypto_plugin]
kek = {kek}

{auth.token_section(lab, keys.USER)}
""", mode=0o640)
    paste = keys.venv(lab) / "etc/barbican/barbican-api-paste.ini"
    write_if_changed(home(lab) / "lab_barbican.py", f"""\
from paste.deploy import loadapp
application = loadapp("config:{paste}")
""")


class Barbican(Web):
    name = keys.COMPONENT
    port_name = keys.COMPONENT
    ready_within = 120.0
    needs = ("mariadb", "keystone")

    def __init__(self, lab):
        super().__init__(lab)
        self.by_default = keys.on(lab)

    def available(self):
        return keys.unavailable(self.lab)

    def prepare(self):
        write_conf(self.lab)
        if not self.lab.done("barbican-database"):
            mariadb.add_database(self.lab, keys.USER)
            self.lab.mark("barbican-database")

    def command(self):
        return uwsgi(keys.venv(self.lab), self.port, "lab_barbican", "--lazy-apps", "--enable-threads",
                     "--pythonpath", home(self.lab), "--post-buffering", "65536"), {
                         "PYTHONWARNINGS": "ignore", "HOME": str(home(self.lab))}

    def finish(self):
        """Its account and its place in the catalogue."""
        if not self.lab.done("barbican-account"):
            keystone.add_service(self.lab, keys.USER, keys.COMPONENT, "key-manager", keys.url(self.lab))
            self.lab.mark("barbican-account")
