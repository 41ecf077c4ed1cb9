"""The two services that are compared, and what the kernel knows of their processes.

The problem: the lab starts either service for tests, with settings that differ where tests want
it, and waits in its own way. Here both run on their lab configuration plus one file that makes
them equal, and the bench itself decides when they serve. Counted are all processes of a service:
parents, children, workers, and the commands they ran and awaited.
"""

import os
import time

from labkit import procs
from labkit.state import LabError, write_if_changed

from .broker import BenchError
from .results import SCORIA, STOCK

BACKEND, POOL = "ceph", "volumes"
TICK = os.sysconf("SC_CLK_TCK")
# What the lab sets for one of them only (reports to the scheduler every 10 s), at Cinder's default.
EQUAL = """[DEFAULT]
periodic_interval = 60
debug = false
"""


class Side:
    """One contestant."""

    def __init__(self, lab, component, who, host, prefix=""):
        self.lab, self.component, self.who = lab, component, who
        self.name = component.name
        self.service = f"{host}@{BACKEND}"
        self.host = f"{host}@{BACKEND}#{prefix}{BACKEND}"
        self.type_name = f"{prefix}{BACKEND}"
        self.key = f"cinder-volume.{host}@{BACKEND}.{host}"

    def running(self):
        return bool(procs.leader(self.lab, self.name))

    def start(self):
        """Start it without waiting; the moment just before."""
        extra = self.lab.path("conf", "bench.conf")
        write_if_changed(extra, EQUAL)
        self.component.prepare()
        argv, env = self.component.command()
        began = time.monotonic()
        procs.start(self.lab, self.name, [*argv, "--config-file", extra], env)
        return began

    def wait_ready(self):
        """Until all of its backends consume."""
        try:
            self.component.wait_ready(None)
        except LabError as e:
            raise BenchError(str(e)) from None
        self.component.finish()

    def stop(self):
        left = procs.terminate(self.lab, {self.name: self.component.grace})
        if left:
            raise BenchError(f"{self.name} cannot be stopped")

    def pids(self):
        return procs.scan(self.lab).get(self.name, [])

    def memory(self):
        """(PSS of all processes in bytes, their number)."""
        pids = self.pids()
        return procs.memory(pids)[0], len(pids)

    def cpu(self):
        """Seconds of CPU that all processes have used, and those that they have awaited."""
        return sum(map(cpu_of, self.pids()))


def cpu_of(pid):
    """utime, stime, cutime and cstime of a process, in seconds."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICK


def both(lab, every):
    return [Side(lab, every["scoria-volume"], SCORIA, "lab"),
            Side(lab, every["cinder-volume"], STOCK, "stock", "stock-")]
