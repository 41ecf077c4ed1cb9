"""Where a lab lives, and what it must remember from one command to the next.

The problem: every command is a process of its own, yet all must agree on ports, addresses,
secrets and the socket directory, and two commands must not change a lab at the same time. So a
lab is one directory with one JSON file in it, changed only under a lock.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import random
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import threading
import uuid

REPO = pathlib.Path(__file__).resolve().parents[2]
STATE_VERSION = 1
# Below the kernel's usual range for outgoing connections, which could take a port of ours while
# the lab is down.
PORT_RANGE = (20000, 31000)
PORTS = ("mariadb", "amqp", "rabbit-dist", "epmd", "api")
SITES = ("a", "b")
# What every lab keeps secret, and of how many bytes; `fixed-key` is a key of AES-256.
SECRETS = {"database": 12, "rabbit": 12, "cookie": 12, "fixed-key": 32}
# What a lab puts into its directory, and therefore all that --purge removes.
CONTENTS = ("ceph", "mariadb", "rabbitmq", "cinder", "keystone", "glance", "barbican", "conf", "log", "run", "home",
            "lab.json", "lab.json.new", "etc-ceph", "scoria", "tmp", "cache", "tests.lock", "tests.queue",
            "tests.state")


class LabError(Exception):
    """Something the user should read; shown without a traceback."""


def port_free(port, address="127.0.0.1"):
    """Whether somebody could listen there now."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((address, port))
        except OSError:
            return False
    return True


class Lab:
    """One lab: its paths, its remembered state and its lock."""

    def __init__(self, root=None):
        root = root or os.environ.get("SCORIA_LAB") or REPO / "target" / "lab"
        self.root = pathlib.Path(os.path.abspath(root))
        self.state = {}
        self._saving = threading.Lock()
        self._load()

    # ---- paths ------------------------------------------------------------------------------
    def path(self, *parts):
        return self.root.joinpath(*parts)

    def sock(self, name):
        return os.path.join(self.state["sockdir"], name)

    @property
    def exists(self):
        return bool(self.state)

    @property
    def venv(self):
        return pathlib.Path(REPO, os.environ.get("SCORIA_VENV") or "target/cinder-venv")

    @property
    def auth_venv(self):
        return pathlib.Path(REPO, os.environ.get("SCORIA_AUTH_VENV") or "target/auth-venv")

    @property
    def barbican_venv(self):
        return pathlib.Path(REPO, os.environ.get("SCORIA_BARBICAN_VENV") or "target/barbican-venv")

    @property
    def cache(self):
        """What is costly to make and the same for all labs of a user."""
        shared = pathlib.Path(f"{self.venv}-cache")
        if shared.is_dir():
            return shared if shared.stat().st_uid == os.getuid() else self.path("cache")
        return shared if os.access(shared.parent, os.W_OK) else self.path("cache")

    # ---- remembered state -------------------------------------------------------------------
    def _load(self):
        try:
            text = self.path("lab.json").read_text()
        except FileNotFoundError:
            return
        self.state = json.loads(text)
        if self.state.get("version") != STATE_VERSION:
            raise LabError(f"{self.root} was made by another version of tools/lab: purge it with "
                           "that version, or remove it when nothing of it runs")

    def save(self):
        with self._saving:
            new = self.path("lab.json.new")
            new.write_text(json.dumps(self.state, indent=1) + "\n")
            new.chmod(0o600)
            new.rename(self.path("lab.json"))

    def done(self, step):
        return step in self.state["done"]

    def mark(self, step):
        if step not in self.state["done"]:
            self.state["done"].append(step)
            self.save()

    def require(self):
        if not self.exists:
            raise LabError(f"there is no lab in {self.root}: run tools/lab up")

    def create(self):
        """Choose an identity, free ports, free addresses and secrets, once per lab."""
        self.state = {
            "version": STATE_VERSION,
            "id": uuid.uuid4().hex[:12],
            "ports": self._choose_ports(PORTS),
            "ips": self._choose_addresses(),
            "secrets": {},
            "project_id": hashlib.md5(b"scoria lab project").hexdigest(),
            "user_id": hashlib.md5(b"scoria lab user").hexdigest(),
            "auth": "noauth",
            "rabbit_mode": "default",
            "watch_timeout": 10,
            "osds": 1,
            "stock_host": "stock",
            "fsid": {},
            "done": [],
            "sockdir": "",
        }
        self.add_secrets(*SECRETS)
        self.ensure_sockdir()
        self.save()

    def add_secrets(self, *names):
        """Make the secrets that are not there yet; true when there were such."""
        new = [name for name in names if name not in self.state["secrets"]]
        for name in new:
            self.state["secrets"][name] = secrets.token_hex(SECRETS.get(name, 12))
        return bool(new)

    def add_ports(self, names):
        """Choose the ports that are not there yet."""
        new = [n for n in names if n not in self.state["ports"]]
        self.state["ports"].update(self._choose_ports(new, self.state["ports"].values()))

    @staticmethod
    def _choose_ports(names, taken=()):
        rng = random.SystemRandom()
        for _ in range(200):
            base = rng.randrange(*PORT_RANGE, 10)
            ports = {name: base + i for i, name in enumerate(names)}
            if not set(ports.values()) & set(taken) and all(map(port_free, ports.values())):
                return ports
        raise LabError(f"no {len(names)} free ports in a row between {PORT_RANGE}")

    @staticmethod
    def _choose_addresses():
        rng = random.SystemRandom()
        for _ in range(200):
            net = f"127.{rng.randrange(64, 250)}.{rng.randrange(1, 250)}"
            ips = {site: f"{net}.{11 + i}" for i, site in enumerate(SITES)}
            if all(port_free(p, ip) for ip in ips.values() for p in (3300, 6789, 6800, 6801)):
                return ips
        raise LabError("no loopback address with free monitor ports found")

    # ---- sockets: their paths are limited to 107 bytes, so not below the lab ------------------
    def ensure_sockdir(self):
        have = self.state.get("sockdir")
        if have:
            try:
                os.mkdir(have, 0o700)
            except FileExistsError:
                pass
            except FileNotFoundError:
                have = ""
        if have:
            st = os.lstat(have)
            if (stat.S_ISDIR(st.st_mode) and st.st_uid == os.getuid()
                    and stat.S_IMODE(st.st_mode) == 0o700):
                return
        base = tempfile.gettempdir()
        if len(base) > 60:
            base = "/tmp"
        self.state["sockdir"] = tempfile.mkdtemp(prefix="scoria-", dir=base)

    def remove_sockdir(self):
        if self.state.get("sockdir"):
            shutil.rmtree(self.state["sockdir"], ignore_errors=True)

    # ---- one changing command at a time -------------------------------------------------------
    @contextlib.contextmanager
    def locked(self):
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.path("lab.lock")
        waited = False
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    owner = os.pread(fd, 20, 0).decode(errors="replace").strip()
                    print(f"lab: waiting for another lab command (pid {owner})", file=sys.stderr)
                    waited = True
                fcntl.flock(fd, fcntl.LOCK_EX)
            try:      # a purge may have removed the file that we waited for
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    break
            except FileNotFoundError:
                self.root.mkdir(parents=True, exist_ok=True)
            os.close(fd)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
            self.state = {}
            self._load()
            yield
        finally:
            os.close(fd)

    def purge(self):
        """Remove what a lab writes, nothing else that may lie in the directory."""
        self.remove_sockdir()
        for name in CONTENTS:
            path = self.path(name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists() or path.is_symlink():
                path.unlink()
        self.path("lab.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()
        self.state = {}


def write_if_changed(path, text, mode=0o600):
    """Write a file, leaving its time alone when nothing changed; says whether it did."""
    path = pathlib.Path(path)
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.chmod(mode)
    new.rename(path)
    return True
