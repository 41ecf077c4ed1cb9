"""How long the work of a member of a Cinder cluster lies, when the member dies.

The problem: "within 15 s" is only worth something when it is known what the time goes into. So requests are
begun by two members while an OSD of their site is stopped, one member is killed with SIGKILL, the OSD goes on
in the same moment, and the database is watched: how long the leases of the dead one still held, when the
other one had taken all of its work over, and when the last volume was there.
"""

import os
import signal
import time

from labkit import procs, scoria
from labkit.state import LabError, write_if_changed

from .broker import BenchError
from .results import SCORIA
from .sections import create_body, delete_body
from .sides import BACKEND, EQUAL

CLUSTER = f"{scoria.CLUSTER}@{BACKEND}"
KEY = f"cinder-volume.{CLUSTER}.{scoria.CLUSTER}"
OSD = "site-a-osd.0"
COUNT = 12                      # requests in a round
PATIENCE = 120
PAUSE = 0.02
TITLE = "takeover: a member of a Cinder cluster is killed"
OPEN = ("SELECT COUNT(*) AS n, MAX(TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), lease_until)) / 1e6 AS lease "
        "FROM scoria_operations WHERE state='open' AND owner_host=%s")
AFTERWARDS = (
    "UPDATE services SET deleted=1, deleted_at=UTC_TIMESTAMP() WHERE host LIKE 'lab2@%' AND deleted=0",
    "UPDATE services SET cluster_name=NULL WHERE cluster_name IS NOT NULL",
    "DELETE FROM clusters",
)


class Takeover:
    """Two members in one lab."""

    def __init__(self, lab, every, rows, broker, results, say):
        self.lab, self.rows, self.broker, self.results, self.say = lab, rows, broker, results, say
        self.first, self.second = every[scoria.BINARY], every[scoria.SECOND]

    def run(self, rounds):
        try:
            self.second.prepare()               # writes what makes the first one a member
            self.second.finish()
            for member in (self.first, self.second):
                self.start(member)
            # Their first requests connect to Ceph.
            self.remove(self.make(COUNT))
            for number in range(rounds):
                self.round(number)
        except LabError as e:
            raise BenchError(str(e)) from None
        finally:
            self.osd(signal.SIGCONT)
            procs.terminate(self.lab, {m.name: m.grace for m in (self.first, self.second)})
            for statement in AFTERWARDS:
                self.rows.sql(statement)

    def start(self, member):
        extra = self.lab.path("conf", "bench.conf")
        write_if_changed(extra, EQUAL)
        member.prepare()
        argv, env = member.command()
        files = [extra] if member is self.second else [scoria.cluster_conf(self.lab), extra]
        procs.start(self.lab, member.name,
                    [*argv, *(word for file in files for word in ("--config-file", file))], env)
        member.wait_ready(None)
        member.finish()

    def osd(self, sig):
        procs.signal_all(self.lab, [OSD], sig)

    def volumes(self, count, status):
        ids = self.rows.insert(f"{scoria.HOST}@{BACKEND}#{BACKEND}", BACKEND, count, status)
        self.rows.sql("UPDATE volumes SET cluster_name=%s WHERE id IN %s", [f"{CLUSTER}#{BACKEND}", ids])
        return ids

    def make(self, count):
        ids = self.volumes(count, "creating")
        self.broker.operations(self.rows, KEY, [(i, create_body(self.rows.sql, i)) for i in ids], count,
                               "available")
        return ids

    def remove(self, ids):
        self.rows.begin_delete(ids)
        self.broker.operations(self.rows, KEY, [(i, delete_body(self.rows.sql, i)) for i in ids], 10, "deleted")

    def open(self, host):
        found = self.rows.sql(OPEN, [host])[0]
        return int(found["n"]), float(found["lease"] or 0)

    def wait(self, what, ready):
        until = time.monotonic() + PATIENCE
        while not ready():
            if time.monotonic() > until:
                raise BenchError(f"{what}: not within {PATIENCE} s")
            time.sleep(PAUSE)
        return time.monotonic()

    def round(self, number):
        ids = self.volumes(COUNT, "creating")
        self.osd(signal.SIGSTOP)
        for ident in ids:
            self.broker.publish(KEY, create_body(self.rows.sql, ident))
        self.wait("both members have begun", lambda: sum(self.open(h)[0] for h in (
            scoria.HOST, scoria.SECOND_HOST)) == COUNT and self.open(scoria.SECOND_HOST)[0] > 0)
        left = self.open(scoria.SECOND_HOST)
        killed = time.monotonic()
        os.kill(procs.leader(self.lab, self.second.name), signal.SIGKILL)
        self.osd(signal.SIGCONT)
        taken = self.wait("its work has been taken over", lambda: not self.open(scoria.SECOND_HOST)[0])
        done = self.wait("the volumes are there", lambda: all(
            status == "available" for _, status in self.rows.statuses(ids)))
        self.say(f"round {number + 1}: {left[0]} requests of {COUNT}, lease {left[1]:.1f} s, taken over after "
                 f"{taken - killed:.1f} s, done after {done - killed:.1f} s")
        for key, label, value in (
                ("lease", "its leases still held", left[1]),
                ("taken", "until its work was taken over", taken - killed),
                ("rest", "from there until the last volume was there", done - taken),
                ("done", "from the kill until the last volume was there", done - killed)):
            self.results.metric(TITLE, f"takeover_{key}", label, "s").samples.setdefault(SCORIA, {})[number] = value
        procs.kill(self.lab, [self.second.name])        # what is left of its group
        self.start(self.second)
        self.remove(ids)
