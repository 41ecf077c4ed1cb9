"""Cinder's database, on a MariaDB of the lab's own; Keystone's and Glance's too in a lab that has them.

The problem: making a datadir and running Cinder's 36-table schema sync costs several seconds of
CPU, in every `up` from nothing. So an empty, synced database is made once beside the virtual
environment (its cache, keyed by what it was made from) and a lab starts with a copy of that
datadir; only the lab's own users and the volume types are added.
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import time
import uuid

from . import auth, procs
from .component import Component
from .state import LabError

SERVER, CLIENT, INSTALL = "/usr/sbin/mariadbd", "mariadb", "/usr/bin/mariadb-install-db"
# Name: extra specs. `stock-…` are served by the stock cinder-volume, the rest by Scoria.
VOLUME_TYPES = {
    "ceph": {"volume_backend_name": "ceph"},
    "replicated": {"volume_backend_name": "ceph", "replication_enabled": "<is> True"},
    "replicated-snapshot": {"volume_backend_name": "ceph", "replication_enabled": "<is> True",
                            "replication:mode": "snapshot"},
    "plain": {"volume_backend_name": "plain"},
    "stock-ceph": {"volume_backend_name": "stock-ceph"},
    "stock-replicated": {"volume_backend_name": "stock-ceph", "replication_enabled": "<is> True"},
    "stock-plain": {"volume_backend_name": "stock-plain"},
}


def server_options(datadir, sock, tmpdir):
    """Small buffers; a killed server loses nothing, only a crash of the machine could."""
    options = [
        "--no-defaults", f"--datadir={datadir}", f"--socket={sock}", f"--tmpdir={tmpdir}",
        "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M",
        "--innodb-flush-log-at-trx-commit=2", "--innodb-log-buffer-size=4M",
        "--innodb-buffer-pool-dump-at-shutdown=OFF", "--innodb-buffer-pool-load-at-startup=OFF",
        "--innodb-fast-shutdown=1", "--key-buffer-size=1M", "--aria-pagecache-buffer-size=4M",
        "--performance-schema=OFF", "--skip-log-bin", "--skip-name-resolve",
        "--max-connections=600", "--character-set-server=utf8mb3",
        "--collation-server=utf8mb3_general_ci", "--thread-handling=one-thread-per-connection",
    ]
    if os.getuid() == 0:
        options.append("--user=root")
    return options


def system_user():
    """The account that the server knows by its socket as a second root."""
    return pwd.getpwuid(os.getuid()).pw_name


def _accepts(sock):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(2)
        try:
            s.connect(sock)
            return bool(s.recv(5))
        except OSError:
            return False


# ---- the cached, synced datadir -----------------------------------------------------------------
def _schemas(lab):
    """(environment, its name in tools/install, database, command that makes its tables)."""
    found = [(lab.venv, "venv", "cinder", ["cinder-manage", "db", "sync"])]
    if auth.on(lab):
        found += [(lab.auth_venv, "auth", name, [f"{name}-manage", "db_sync"]) for name in auth.DATABASES]
    return found


def _template_key(lab):
    made_of = ""
    for venv, target in dict.fromkeys(schema[:2] for schema in _schemas(lab)):
        try:
            with open(venv / ".scoria-hash", encoding="ascii") as f:
                made_of += f.read()
        except FileNotFoundError:
            raise LabError(f"no environment in {venv}: run tools/install {target}") from None
    version = subprocess.run([SERVER, "--no-defaults", "--version"], capture_output=True,
                             check=True).stdout
    with open(__file__, "rb") as f:
        return hashlib.sha256(made_of.encode() + version + f.read()).hexdigest()[:16]


def copy_template(lab, datadir):
    """Give a lab its datadir; under a lock, since several labs share the template."""
    lab.cache.mkdir(parents=True, exist_ok=True)
    target = lab.cache / f"mariadb-{_template_key(lab)}"
    with open(lab.cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            for old in lab.cache.glob("mariadb-*"):
                if time.time() - old.stat().st_mtime > 7 * 86400:
                    shutil.rmtree(old, ignore_errors=True)
            _make_template(lab, lab.cache / "making", target)
        subprocess.run(["cp", "-a", "--reflink=auto", "--sparse=always", target, datadir],
                       check=True)


def _make_template(lab, work, target):
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    data = work / "data"
    sock = lab.sock("template.sock")
    owner = system_user()
    subprocess.run(
        [INSTALL, "--no-defaults", f"--datadir={data}", "--skip-test-db",
         "--auth-root-authentication-method=socket", f"--auth-root-socket-user={owner}",
         "--innodb-log-file-size=16M"] + (["--user=root"] if os.getuid() == 0 else []),
        check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env=procs.clean_env(lab, procs.SETUP))
    with open(work / "log", "wb") as log:
        server = subprocess.Popen(
            [SERVER, *server_options(data, sock, work), "--skip-networking"], stdout=log,
            stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            env=procs.clean_env(lab, procs.SETUP))
        try:
            end = time.monotonic() + 60
            while not _accepts(sock):
                if server.poll() is not None or time.monotonic() > end:
                    raise LabError(f"the database template could not be made: {work}/log")
                time.sleep(0.05)
            env = procs.clean_env(lab, procs.SETUP)
            for venv, _, name, words in _schemas(lab):
                subprocess.run([CLIENT, "--no-defaults", f"--socket={sock}", f"-u{owner}", "-e",
                                f"CREATE DATABASE {name} CHARACTER SET utf8mb3"], check=True,
                               env=env)
                conf = work / f"{name}-sync.conf"
                conf.write_text(
                    f"[DEFAULT]\nstate_path = {work}\n[database]\nconnection = "
                    f"mysql+pymysql://{owner}@localhost/{name}?unix_socket={sock}\n")
                done = subprocess.run(
                    [venv / "bin" / words[0], "--config-file", conf, *words[1:]],
                    env=env, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise LabError(f"{' '.join(words)}: {done.stderr[-2000:]}")
        finally:
            server.terminate()
            server.wait(timeout=30)
    data.rename(target)
    shutil.rmtree(work, ignore_errors=True)


# ---- the component ------------------------------------------------------------------------------
class MariaDb(Component):
    name = "mariadb"
    grace = 3.5

    @property
    def port(self):
        return self.lab.state["ports"]["mariadb"]

    @property
    def socket(self):
        return self.lab.sock("mariadb.sock")

    def available(self):
        return None if os.path.exists(SERVER) else "mariadbd is not installed (tools/install)"

    def listens(self):
        return (("127.0.0.1", self.port),)

    def prepare(self):
        data = self.lab.path("mariadb", "data")
        if not self.lab.done("mariadb-data"):
            shutil.rmtree(data, ignore_errors=True)
            data.parent.mkdir(exist_ok=True)
            copy_template(self.lab, data)
            for _, _, name, _ in _schemas(self.lab):
                self.lab.mark(f"{name}-schema")
            self.lab.mark("mariadb-data")
        self.lab.path("mariadb", "tmp").mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)

    def command(self):
        return [SERVER, *server_options(self.lab.path("mariadb", "data"), self.socket,
                                        self.lab.path("mariadb", "tmp")),
                "--bind-address=127.0.0.1", f"--port={self.port}",
                f"--pid-file={self.lab.path('mariadb', 'pid')}"], {}

    def ready(self):
        return _accepts(self.socket)

    def finish(self):
        if self.lab.done("mariadb-users"):
            return
        password = self.lab.state["secrets"]["database"]
        sql = ["SET sql_notes=0;"]
        for host in ("127.0.0.1", "localhost"):
            sql.append(f"CREATE USER IF NOT EXISTS cinder@'{host}' IDENTIFIED BY '{password}';"
                       f"GRANT ALL ON *.* TO cinder@'{host}';")
        # Cinder reads the defaults of these rows, not of its configuration, once they exist.
        sql.append("USE cinder; UPDATE quota_classes SET hard_limit=100000000 WHERE "
                   "class_name='default' AND resource NOT LIKE 'per_volume%';")
        for name, specs in VOLUME_TYPES.items():
            ident = uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.volume-type.scoria.lab")
            sql.append("INSERT INTO volume_types (created_at, deleted, id, name, is_public) SELECT "
                       f"UTC_TIMESTAMP(), 0, '{ident}', '{name}', 1 FROM DUAL WHERE NOT EXISTS "
                       f"(SELECT 1 FROM volume_types WHERE name='{name}' AND deleted=0);")
            for key, value in specs.items():
                sql.append(
                    "INSERT INTO volume_type_extra_specs (created_at, deleted, volume_type_id, "
                    f"`key`, value) SELECT UTC_TIMESTAMP(), 0, '{ident}', '{key}', '{value}' FROM "
                    "DUAL WHERE NOT EXISTS (SELECT 1 FROM volume_type_extra_specs WHERE "
                    f"volume_type_id='{ident}' AND `key`='{key}' AND deleted=0);")
        self.root(sql)
        self.lab.mark("mariadb-users")

    def root(self, statements):
        """Run SQL as the server's root, over its socket, and never on a command line."""
        done = subprocess.run([CLIENT, "--no-defaults", f"--socket={self.socket}",
                               f"-u{system_user()}"],
                              input="\n".join(statements), text=True, capture_output=True,
                              check=False, env=procs.clean_env(self.lab, procs.HELPER))
        if done.returncode:
            raise LabError(f"mariadb: {done.stderr.strip()}")

    def address(self):
        return f"127.0.0.1:{self.port}"


def add_database(lab, name):
    """A database and a user of its own for another service."""
    password = lab.state["secrets"][f"database-{name}"]
    sql = [f"SET sql_notes=0; CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb3;"]
    for host in ("127.0.0.1", "localhost"):
        sql.append(f"CREATE USER IF NOT EXISTS {name}@'{host}' IDENTIFIED BY '{password}';"
                   f"GRANT ALL ON {name}.* TO {name}@'{host}';")
    MariaDb(lab).root(sql)


def client(lab, args=()):
    """(argv, environment) of a mysql client on the lab's Cinder database."""
    return ([CLIENT, "--no-defaults", "--protocol=tcp", "-h127.0.0.1",
             f"-P{lab.state['ports']['mariadb']}", "-ucinder", "--database=cinder", *args],
            {"MYSQL_PWD": lab.state["secrets"]["database"]})


def query(lab, sql, timeout=5):
    """Rows of a query as lists of strings; None when the database does not answer."""
    argv, env = client(lab, ["-N", "-B", "--connect-timeout=3", "-e", sql])
    try:
        done = subprocess.run(argv, env={**procs.clean_env(lab, procs.HELPER), **env}, text=True,
                              capture_output=True, timeout=timeout, check=False,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    return [line.split("\t") for line in done.stdout.splitlines()]
