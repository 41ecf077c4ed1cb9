"""What every part of the lab has in common.

The problem: a monitor, a broker and a Python service differ in how they are prepared, how they
are started and how one sees that they serve, while up, start, status and down want to treat them
alike. A component answers these questions and nothing else; procs does the starting.
"""

import time

from . import procs
from .state import LabError, port_free


class Component:
    """One process (with its children) of the lab."""

    name = ""
    site = None            # "a" or "b" when it belongs to a Ceph site
    needs = ()             # components that must serve before this one is started
    by_default = True      # part of a plain `up`
    grace = 3.0            # seconds from SIGTERM to SIGKILL
    ready_within = 60.0    # seconds that a start may take

    def __init__(self, lab):
        self.lab = lab

    def available(self):
        """None, or why it cannot be started (a warning for `up`, an error when named)."""
        return None

    def listens(self):
        """(address, port) pairs that have to be free before a start: with somebody else on one,
        clients would talk to the wrong server, and `ready` could take that one for ours."""
        return ()

    def prepare(self):
        """Make data directories and configuration; called before every start, idempotent."""

    def command(self):
        """(argv, environment additions)."""
        raise NotImplementedError

    def ready(self):
        """Whether it serves. Called repeatedly after a start."""
        return True

    def finish(self):
        """What has to be done once it serves for the first time; idempotent."""

    def address(self):
        return "-"

    def health(self):
        """A word for status; called only when the process runs and is not paused."""
        return "ok" if self.ready() else "not ready"

    # ---- the same for all -------------------------------------------------------------------
    def pids(self, scanned=None):
        return (scanned if scanned is not None else procs.scan(self.lab)).get(self.name, [])

    def log_tail(self, lines=12):
        try:
            text = self.lab.path("log", self.name + ".log").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join("    " + line for line in text.splitlines()[-lines:])

    def start(self, args=(), wait=True):
        """Start it unless it runs, wait until it serves. Says whether it was started."""
        running = procs.leader(self.lab, self.name)
        if running and procs.paused([running]):
            raise LabError(f"{self.name} is paused: tools/lab resume {self.name}")
        if running:
            if wait:
                self.wait_ready(None)
                self.finish()
            return False
        left = self.pids()
        if left:       # children of a leader that died
            procs.kill(self.lab, [self.name])
        for ip, port in self.listens():
            if not port_free(port, ip):
                raise LabError(f"{self.name}: {ip}:{port}, which this lab uses, is taken by another "
                               "process: end that, or tools/lab down --purge for new ports")
        self.prepare()
        argv, env = self.command()
        child = procs.start(self.lab, self.name, [*argv, *args], env)
        if wait:
            self.wait_ready(child)
            self.finish()
        return True

    def wait_ready(self, child):
        end = time.monotonic() + self.ready_within
        pause = 0.03
        while True:
            if self.ready():
                return
            if child is not None and child.poll() is not None:
                raise LabError(f"{self.name} ended at once (status {child.returncode}); its log "
                               f"ends with:\n{self.log_tail()}")
            if child is None and not procs.leader(self.lab, self.name):
                raise LabError(f"{self.name} died; its log ends with:\n{self.log_tail()}")
            if time.monotonic() > end:
                raise LabError(f"{self.name} does not serve after {self.ready_within:.0f} s; its "
                               f"log ends with:\n{self.log_tail()}")
            time.sleep(pause)
            pause = min(pause * 1.3, 0.3)
