"""scoria-volume itself, on the same kind of configuration file that an operator has.

The problem: the service is built by cargo into one of several places and may not be built at all
yet; and "started" must mean that it serves. So the newest binary is taken (or what
$SCORIA_BIN_DIR says), and a start waits for sd-notify's READY=1 or for consumers on its queues,
whichever comes first.
"""

import os
import pathlib
import socket

from . import amqp, auth, cinder, procs, rabbitmq
from .component import Component
from .state import LabError, REPO, write_if_changed

BINARY, HOST = "scoria-volume", "lab"
# Another member of a Cinder cluster, on demand.
SECOND, SECOND_HOST, CLUSTER = "scoria-volume-2", "lab2", "lab-cluster"


def conf(lab, host=HOST):
    return lab.path("conf", "scoria.conf" if host == HOST else f"scoria-{host}.conf")


def cluster_conf(lab):
    """What makes the first service a member of the second one's cluster: a second --config-file."""
    return lab.path("conf", "scoria-cluster.conf")


def write_conf(lab, host=HOST):
    base, member = lab.path("scoria"), ""
    if host != HOST:
        base, member = base / host, f"cluster = {CLUSTER}\n"
        write_if_changed(cluster_conf(lab), f"[DEFAULT]\ncluster = {CLUSTER}\n")
    base.mkdir(parents=True, exist_ok=True)
    write_if_changed(conf(lab, host), f"""[DEFAULT]
host = {host}
{member}enabled_backends = {",".join(cinder.BACKENDS)}
transport_url = {rabbitmq.transport_url(lab)}
state_path = {base}
use_stderr = true
{auth.cinder_defaults(lab)}
[oslo_concurrency]
lock_path = {base}

{cinder.shared_sections(lab)}{cinder.backend_sections(lab)}
[scoria]
scoria_site_dir = {base}/sites
""", mode=auth.conf_mode(lab))


def binary():
    """The scoria-volume to run, or None."""
    chosen = os.environ.get("SCORIA_BIN_DIR")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPO / "target")
    dirs = [pathlib.Path(chosen)] if chosen else [target / "debug", target / "release"]
    found = [d / BINARY for d in dirs if os.access(d / BINARY, os.X_OK)]
    return max(found, key=lambda p: p.stat().st_mtime).absolute() if found else None


class ScoriaVolume(Component):
    name = BINARY
    host = HOST
    grace = 30.0          # it drains

    def __init__(self, lab):
        super().__init__(lab)
        self.needs = ("mariadb", "rabbitmq", *auth.needs(lab))
        self.notify = None

    def available(self):
        if binary() is None:
            where = os.environ.get("SCORIA_BIN_DIR") or "target/debug or target/release"
            return f"no scoria-volume in {where}: run cargo build"
        return None

    def prepare(self):
        if not conf(self.lab).exists():
            write_conf(self.lab)
        self._listen()

    def _listen(self):
        path = self._socket()
        pathlib.Path(path).unlink(missing_ok=True)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(path)
        self.notify.setblocking(False)

    def _socket(self):
        return self.lab.sock("notify" if self.host == HOST else f"notify-{self.host}")

    def _queues(self):
        return [f"cinder-volume.{self.host}@{b}.{self.host}" for b in cinder.BACKENDS]

    def command(self):
        if binary() is None:
            raise LabError(self.available())
        return [binary(), "--config-file", conf(self.lab, self.host)], {
            "NOTIFY_SOCKET": self._socket()}

    def _told_ready(self):
        while self.notify is not None:
            try:
                if b"READY=1" in self.notify.recv(4096).split(b"\n"):
                    return True
            except OSError:
                break
        return False

    def ready(self):
        if self._told_ready():
            return True
        found = amqp.consumers(self.lab, self._queues())
        return bool(found) and all(found.values())

    def finish(self):
        if self.notify is not None:
            self.notify.close()
            self.notify = None

    def health(self):
        queues = self._queues()
        found = amqp.consumers(self.lab, queues)
        if found is None:
            return "broker not answering"
        deaf = [b for b, q in zip(cinder.BACKENDS, queues) if not found[q]]
        consuming = "ok" if not deaf else "not consuming: " + ",".join(deaf)
        # Only its workers may: a service that maps librados is not well, however well it serves.
        mapped = self._maps_librados()
        if mapped:
            return f"LIBRADOS MAPPED; {consuming}"
        return consuming + ("" if mapped is None else "; librados not mapped")

    def _maps_librados(self):
        """None when it cannot be told."""
        pid = procs.leader(self.lab, self.name)
        found = [procs.maps(pid, library) if pid else None for library in ("librados", "librbd")]
        return None if None in found else any(found)

    def address(self):
        argv = procs.record_argv(self.lab, self.name)
        return os.path.relpath(os.path.dirname(argv[0]), REPO) if argv else "-"


class SecondScoriaVolume(ScoriaVolume):
    """`start scoria-volume-2`: it shares its queues with a scoria-volume that was started with
    `-- --config-file <lab>/conf/scoria-cluster.conf`."""

    name = SECOND
    host = SECOND_HOST
    by_default = False

    def prepare(self):
        write_conf(self.lab, self.host)
        self._listen()
