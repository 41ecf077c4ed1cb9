"""The stock cinder-backup with its driver for Ceph, beside whichever volume service runs, and Scoria's.

The problem: either backup service must restore what the other has made, out of volumes that Scoria
serves; only the real one shows that they fit. Both are started on demand, one at a time; Scoria's also on a second
host, beside the first. os-brick, which stock opens
volumes with, insists on keyrings in /etc/ceph, so stock gets a mount namespace of its own as the stock
cinder-volume does. Backups go to the pool `backups` of site a.
"""

from . import auth, ceph, cinder, rabbitmq, scoria
from .state import write_if_changed

HOST = "lab"
POOL = "backups"


class StockBackup(cinder.StockVolume):
    """cinder-backup 29: `start cinder-backup`, never part of a plain `up`."""

    name = "cinder-backup"

    @property
    def queues(self):
        return [f"cinder-backup.{HOST}"]

    @property
    def conf(self):
        return self.lab.path("conf", "cinder-backup.conf")

    def prepare(self):
        cinder.write_conf(self.lab)
        base = self.lab.path("cinder")
        (base / "backup").mkdir(exist_ok=True)
        # It opens volumes through a helper that it would start with sudo, and tells the scheduler of
        # itself only now and then; until then nobody is asked to make a backup.
        helper = (f"helper_command = {self.lab.venv}/bin/privsep-helper --config-file {self.conf}\n")
        write_if_changed(self.conf, f"""[DEFAULT]
host = {HOST}
transport_url = {rabbitmq.transport_url(self.lab)}
state_path = {base}/backup
my_ip = 127.0.0.1
backup_driver = cinder.backup.drivers.ceph.CephBackupDriver
backup_ceph_conf = {ceph.client_conf(self.lab, "a")}
backup_ceph_user = cinder
backup_ceph_pool = {POOL}
backup_driver_stats_polling_interval = 10
periodic_interval = 5
periodic_fuzzy_delay = 0
use_stderr = true
{auth.cinder_defaults(self.lab)}
[coordination]
backend_url = file://{base}/backup/coordination

[oslo_concurrency]
lock_path = {base}/locks

[cinder_sys_admin]
{helper}
[privsep_osbrick]
{helper}
{cinder.shared_sections(self.lab)}""", mode=auth.conf_mode(self.lab))
        self.prepare_keyrings()

    def command(self):
        return self.in_namespace("cinder-backup")


class ScoriaBackup(scoria.ScoriaVolume):
    """scoria-backup: `start scoria-backup`, in the place of the stock one. It goes by scoria-volume's configuration, which
    says where volumes are, with the options of backups in a second file."""

    name = "scoria-backup"
    host = HOST
    by_default = False

    @property
    def conf(self):
        return self.lab.path("conf", "scoria-backup.conf")

    def available(self):
        missing = super().available()
        if missing is None and not self.program().exists():
            missing = "no scoria-backup beside scoria-volume: run cargo build --bins"
        return missing

    @staticmethod
    def program():
        return scoria.binary().with_name("scoria-backup")

    def prepare(self):
        scoria.write_conf(self.lab)
        write_if_changed(self.conf, f"""[DEFAULT]
host = {self.host}
backup_ceph_conf = {ceph.client_conf(self.lab, "a")}
backup_ceph_user = cinder
backup_ceph_pool = {POOL}
backup_driver_stats_polling_interval = 10
""")
        self._listen()

    def _socket(self):
        return self.lab.sock("notify-backup" if self.host == HOST else "notify-backup-2")

    def _queues(self):
        return [f"cinder-backup.{self.host}"]

    def command(self):
        return [self.program(), "--config-file", scoria.conf(self.lab), "--config-file", self.conf], {
            "NOTIFY_SOCKET": self._socket()}


class SecondScoriaBackup(ScoriaBackup):
    """`start scoria-backup-2`: the backup service of another host, as far as Cinder can tell."""

    name = "scoria-backup-2"
    host = scoria.SECOND_HOST

    @property
    def conf(self):
        return self.lab.path("conf", "scoria-backup-2.conf")
