"""Failover of a whole backend, beside stock and beside the bare minimum.

The problem: what an operator waits for on the worst day is the time from the order to the last row. So the
order is put on the queue and the row of the service is watched; both services move the same kind of images,
with the source alive and dead, and the bare minimum moves them with the same librbd calls and nothing else.
A contestant that ends quickly with volumes that nobody can write to has not won: that is counted too.
"""

import contextlib
import dataclasses
import json
import time
import uuid

import driver

from labkit import plan, procs

from .broker import BenchError
from .mirrors import JOURNAL, SNAPSHOT, Mirrors, name_of
from .results import FLOOR, HIGHER, SCORIA
from .sections import call_body

TARGET, HOME = "site-b", "default"
# Within so much of the bare minimum, at 1,000 volumes; what a smaller number takes has no aim.
FLOOR_AIM, AIMED = 1.25, 1000
LINGER = 2.0                    # of a dead site before the order: nobody orders in the same instant
# As the driver writes it at the creation: what a disabling would give back.
DRIVER_DATA = json.dumps({"had_exclusive_lock": True, "had_journaling": False})
ENDED = ("failed-over", "failover-error", "error", "enabled")


@dataclasses.dataclass
class Sizes:
    """How much of everything."""

    runs: int = 1
    counts: tuple = (10, 100, 1000)
    modes: tuple = (JOURNAL, SNAPSHOT)
    threads: int = 32           # the default of scoria_failover_concurrency
    limit: float = 900.0        # seconds of one sample of stock that is still waited for

    @classmethod
    def quick(cls):
        return cls(counts=(10,))


class Failovers:
    """Contestants, tools and results of one run."""

    def __init__(self, lab, every, sides, rows, broker, confs, sizes, results, say):
        self.lab, self.every, self.sides = lab, every, sides
        self.rows, self.broker, self.sizes, self.results, self.say = rows, broker, sizes, results, say
        self.mirrors = Mirrors(*confs)
        self.round, self.slow = 0, {}

    def close(self):
        self.mirrors.close()

    # ---- rounds -------------------------------------------------------------------------------------
    def run(self):
        for mode in self.sizes.modes:
            for count in self.sizes.counts:
                for self.round in range(self.sizes.runs):
                    self.planned(mode, count)
                    self.unplanned(mode, count)

    def contestants(self, mode):
        """In turn, stock knows the journal only."""
        sides = [s for s in self.sides if mode == JOURNAL or s.who == SCORIA]
        return sides if self.round % 2 == 0 else sides[::-1]

    def planned(self, mode, count):
        """The same images go there and back with each contestant."""
        with self.images(mode, count) as (ids, names):
            # The first way of an image is quicker than all that follow: nobody is measured on it.
            for measured in (False, True):
                for there, source, target in ((True, "a", "b"), (False, "b", "a")):
                    self.mirrors.wait(names, mode, target)
                    elapsed = self.mirrors.move(names, source, target, self.sizes.threads)
                    if measured:
                        self.keep(mode, count, "there" if there else "back", FLOOR, elapsed)
            for side in self.contestants(mode):
                if self.skipped(side, ("alive", mode), count):
                    continue
                with self.serving(side, ids):
                    for there, source, target in ((True, "a", "b"), (False, "b", "a")):
                        self.mirrors.wait(names, mode, target)
                        elapsed = self.order(side, TARGET if there else HOME, ids)
                        good = self.mirrors.primaries(names, target)
                        self.keep(mode, count, "there" if there else "back", side.who, elapsed, good)
                        if good < count:
                            raise BenchError(f"{side.who} has moved {good} of {count} volumes")
                self.slow[side.who, "alive", mode] = elapsed / count

    def unplanned(self, mode, count):
        """Each contestant gets images of its own: those of a dead site are split afterwards."""
        for who in (*self.contestants(mode), None):
            if who and self.skipped(who, ("dead", mode), count):
                continue
            with self.images(mode, count) as (ids, names):
                self.mirrors.wait(names, mode, "b")
                if who is None:
                    with self.dead_site():
                        elapsed = self.mirrors.force(names, "b", self.sizes.threads)
                        self.keep(mode, count, "dead", FLOOR, elapsed)
                    continue
                with self.serving(who, ids), self.dead_site():
                    elapsed = self.order(who, TARGET, ids)
                    good = self.mirrors.writable(names, "b")
                    self.keep(mode, count, "dead", who.who, elapsed, good)
                self.slow[who.who, "dead", mode] = elapsed / count

    def skipped(self, side, kind, count):
        """Whether a sample would take longer than anybody waits, by the one before."""
        expected = self.slow.get((side.who, *kind), 0) * count
        if expected > self.sizes.limit:
            self.say(f"{count} volumes, {' '.join(kind)}: {side.who} left out, about {expected:.0f} s")
            return True
        return False

    def keep(self, mode, count, what, who, elapsed, good=None):
        title = {"there": "failover, both sites alive", "back": "failback, both sites alive",
                 "dead": "failover, active site killed"}[what]
        title, key = f"{title}: {mode}", f"{what}_{mode}_{count}"
        aim = {"aim": FLOOR_AIM, "over": FLOOR} if count >= AIMED else {}
        self.note(title, key, f"{count:,} volumes", "s", who, elapsed, **aim)
        self.say(f"{title}, {count}: {who} {elapsed:.2f} s" + ("" if good is None else f", {good} good"))
        if what == "dead" and good is not None:
            self.note(title, f"{key}_writable", f"{count:,} volumes: writable", "volumes", who, good,
                      better=HIGHER)

    def note(self, section, key, label, unit, who, value, **kind):
        self.results.metric(section, key, label, unit, **kind).samples.setdefault(
            who, {})[self.round] = value

    # ---- images and rows ----------------------------------------------------------------------------
    @contextlib.contextmanager
    def images(self, mode, count):
        """Volumes of nobody yet, with mirrored images; yields (ids, image names)."""
        side = self.sides[0]
        ids = self.rows.insert(side.host, side.type_name, count, "available")
        names = [name_of(i) for i in ids]
        try:
            self.mirrors.make(names, mode)
            yield ids, names
        finally:
            self.mirrors.remove(names)
            self.rows.purge()

    @contextlib.contextmanager
    def serving(self, side, ids):
        """The service with these volumes, its backend active at home."""
        self.rows.replicate(side.host, side.type_name, ids, DRIVER_DATA)
        self.at_home(side)
        try:
            self.broker.empty(side.key)
            side.start()
            side.wait_ready()
            self.broker.first_answer(side.key, call_body("get_capabilities", {"discover": False}),
                                     alive=side.running)
            yield
        finally:
            side.stop()
            self.broker.empty("notifications.info")
            self.at_home(side)

    def at_home(self, side):
        self.rows.sql("UPDATE services SET active_backend_id=NULL, replication_status='enabled', "
                      "disabled=0, disabled_reason=NULL, frozen=0 WHERE host=%s AND "
                      "`binary`='cinder-volume' AND deleted=0", [side.service])

    @contextlib.contextmanager
    def dead_site(self):
        """Site a killed; started again afterwards, and its daemon well."""
        names = plan.expand(self.every, ["site-a", "rbd-mirror-a"])
        left = procs.kill(self.lab, names)
        if left:
            raise BenchError("cannot be killed: " + ", ".join(left))
        time.sleep(LINGER)
        try:
            yield
        finally:
            plan.start(self.lab, self.every, names, lambda _: None)
            self.mirrors.sites["a"].connect()
            plan.wait_mirroring(self.lab, 120)

    # ---- the order ----------------------------------------------------------------------------------
    def order(self, side, target, ids):
        """As cinder-api does it; seconds until the service's row has ended it."""
        self.rows.sql("UPDATE services SET replication_status='failing-over' WHERE host=%s AND "
                      "`binary`='cinder-volume' AND deleted=0", [side.service])
        body = driver.envelope({"method": "failover", "args": {"secondary_backend_id": target},
                                "version": "3.8", **driver.context(), "_unique_id": uuid.uuid4().hex})
        began = time.monotonic()
        self.broker.publish(side.key, body)
        while True:
            time.sleep(0.02)
            found = self.rows.sql("SELECT replication_status AS status FROM services WHERE host=%s AND "
                                  "`binary`='cinder-volume' AND deleted=0", [side.service])[0]["status"]
            elapsed = time.monotonic() - began
            if found in ENDED:
                break
            if elapsed > 2 * self.sizes.limit:
                raise BenchError(f"{side.who}: the failover has not ended after {elapsed:.0f} s")
        if found not in ("failed-over", "enabled"):
            raise BenchError(f"{side.who}: the failover ended as {found}")
        return elapsed
