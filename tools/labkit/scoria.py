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


def conf(lab):
    return lab.path("conf", "scoria.conf")


def write_conf(lab):
    base = lab.path("scoria")
    base.mkdir(parents=True, exist_ok=True)
    write_if_changed(conf(lab), f"""[DEFAULT]
host = {HOST}
enabled_backends = {",".join(cinder.BACKENDS)}
transport_url = {rabbitmq.transport_url(lab)}
state_path = {base}
use_stderr = true
{auth.cinder_defaults(lab)}
[oslo_concurrency]
lock_path = {base}

{cinder.shared_sections(lab)}{cinder.backend_sections(lab)}""", mode=auth.conf_mode(lab))


def binary():
    """The scoria-volume to run, or None."""
    chosen = os.environ.get("SCORIA_BIN_DIR")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPO / "target")
    dirs = [pathlib.Path(chosen)] if chosen else [target / "debug", target / "release"]
    found = [d / BINARY for d in dirs if os.access(d / BINARY, os.X_OK)]
    return max(found, key=lambda p: p.stat().st_mtime).absolute() if found else None


class ScoriaVolume(Component):
    name = BINARY
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
        path = self.lab.sock("notify")
        pathlib.Path(path).unlink(missing_ok=True)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(path)
        self.notify.setblocking(False)

    def command(self):
        if binary() is None:
            raise LabError(self.available())
        return [binary(), "--config-file", conf(self.lab)], {
            "NOTIFY_SOCKET": self.lab.sock("notify")}

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
        queues = [f"cinder-volume.{HOST}@{b}.{HOST}" for b in cinder.BACKENDS]
        found = amqp.consumers(self.lab, queues)
        return bool(found) and all(found.values())

    def finish(self):
        if self.notify is not None:
            self.notify.close()
            self.notify = None

    def health(self):
        queues = [f"cinder-volume.{HOST}@{b}.{HOST}" for b in cinder.BACKENDS]
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

