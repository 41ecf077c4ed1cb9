"""What is measured, in rounds in which each contestant has its turn.

The problem: a machine that is slow for a minute must not be slow for one contestant only. So one
round is one sample of every contestant, one after the other and never two at once, and the order
of the two services changes from round to round.
"""

import contextlib
import dataclasses
import os
import statistics
import time
import uuid

import driver
import wire

from . import copies, images
from .broker import MSG, REPLY, UNIQUE
from .results import FLOOR, HIGHER, SLOWER

SECTIONS = ("start", "memory", "ops", "calls", "cpu", *copies.SECTIONS, "image", "floor")
START_AIM, MEMORY_AIM, CPU_AIM = 0.1, 0.25, 0.2
CONNECTOR = {"host": "compute1", "ip": "10.0.0.1", "initiator": "iqn.x", "multipath": False,
             "platform": "x86_64", "os_type": "linux2", "do_local_attach": False}
MEMORY_WINDOW = 10


@dataclasses.dataclass
class Sizes:
    """How much of everything."""

    runs: int = 5
    volumes: tuple = (0, 1000, 10000)   # rows per host in section start
    memory_ops: int = 500               # half creations, half deletions
    operations: dict = dataclasses.field(default_factory=lambda: {1: 20, 10: 60, 100: 200})
    calls: tuple = (1, 10, 100)
    copies: dict = dataclasses.field(default_factory=lambda: {1: 20, 10: 60})
    seconds: float = 3.0                # of one call measurement
    settle: float = 5.0                 # between a start and what is called idle
    trail: float = 0.5                  # work that goes on after the last answer
    image_mib: int = 1024               # data of an image
    downloads: int = 10                 # at once

    @classmethod
    def quick(cls):
        return cls(runs=1, volumes=(0, 200), memory_ops=40, operations={1: 5, 10: 20},
                   calls=(1, 10), copies={1: 5, 10: 20}, seconds=1.0, settle=2.0, image_mib=64, downloads=3)


class Bench:
    """Contestants, tools and results of one run."""

    def __init__(self, sides, rows, broker, floor, glance, sizes, sections, results, say):
        self.sides, self.rows, self.broker, self.floor = sides, rows, broker, floor
        self.glance, self.disks = glance, {}
        self.sizes, self.sections, self.results, self.say = sizes, sections, results, say
        self.round = 0
        self.capabilities = call_body("get_capabilities", {"discover": False})

    # ---- rounds -------------------------------------------------------------------------------------
    def run(self):
        served = set(self.sections) - {"floor"}
        for side in self.sides if served else ():   # queues, rows of services, caches of files
            self.say(f"warming up: {side.name}")
            with self.serving(side):
                self.work(side, 4, 2)
        if "image" in self.sections:
            self.say("making images")
            self.disks = self.glance.disks(self.sizes.image_mib, os.environ["SCORIA_LAB"])
        if "start" in self.sections:
            self.starts()
        if set(self.sections) - {"start"}:
            for self.round in range(self.sizes.runs):
                self.loads()

    def order(self):
        return self.sides if self.round % 2 == 0 else self.sides[::-1]

    def note(self, section, key, label, unit, who, value, **kind):
        self.results.metric(section, key, label, unit, **kind).samples.setdefault(
            who, {})[self.round] = value

    @contextlib.contextmanager
    def serving(self, side):
        """The service, from its first answer to its stop; yields (began, answered)."""
        try:
            known = self.broker.empty(side.key)
            began = side.start()
            if not known:                   # its first start ever: nobody has declared the queue
                side.wait_ready()
            answered = self.broker.first_answer(side.key, self.capabilities, alive=side.running)
            side.wait_ready()
            yield began, answered
        finally:
            side.stop()
            self.broker.empty("notifications.info")

    # ---- start --------------------------------------------------------------------------------------
    def starts(self):
        have = 0
        for count in self.sizes.volumes:
            for side in self.sides:
                self.rows.insert(side.host, side.type_name, count - have, "available")
            have = count
            for self.round in range(self.sizes.runs):
                for side in self.order():
                    with self.serving(side) as (began, answered):
                        pass
                    self.say(f"round {self.round + 1}: start with {count} volumes: {side.who} "
                             f"{answered - began:.2f} s")
                    self.note("start to first answered RPC", f"start_{count}",
                              f"{count:,} volumes", "s", side.who, answered - began,
                              aim=START_AIM if count >= 10000 else SLOWER)
        self.rows.purge()

    # ---- everything that needs a service under load ---------------------------------------------------
    def loads(self):
        loaded = set(self.sections) - {"start", "floor"}
        for side in self.order() if loaded else ():
            with self.serving(side):
                if "memory" in self.sections:
                    self.memory(side)
                if {"ops", "cpu"} & set(self.sections):
                    self.operations(side)
                if "calls" in self.sections:
                    self.calls(side)
                if set(copies.SECTIONS) & set(self.sections):
                    copies.Copies(self, side).run(self.sections)
                if "image" in self.sections:
                    self.transfers(side)
        if "floor" in self.sections:
            self.floors()

    def memory(self, side):
        time.sleep(self.sizes.settle)
        self.keep_memory(side, "idle", "idle")
        count = self.sizes.memory_ops
        self.work(side, count // 2, MEMORY_WINDOW)
        time.sleep(self.sizes.settle)
        self.keep_memory(side, "used", f"after {count} operations")

    def keep_memory(self, side, key, label):
        size, processes = side.memory()
        self.say(f"round {self.round + 1}: memory {label}: {side.who} {size / 2**20:.0f} MiB in "
                 f"{processes} processes")
        self.note("memory (PSS of all processes)", f"memory_{key}", label, "MiB", side.who,
                  size / 2**20, aim=MEMORY_AIM)

    def operations(self, side):
        for window, count in self.sizes.operations.items():
            for what, latencies, elapsed, cpu in self.work(side, count, window):
                self.keep(side.who, what, window, latencies, elapsed, cpu)

    def work(self, side, count, window):
        """Create so many volumes and delete them: [(what, latencies, elapsed, CPU seconds)]."""
        ids = self.rows.insert(side.host, side.type_name, count, "creating")
        requests = [(i, create_body(self.rows.sql, i)) for i in ids]
        done = [("create", *self.measured(side, requests, window, "available"))]
        self.rows.begin_delete(ids)
        requests = [(i, delete_body(self.rows.sql, i)) for i in ids]
        done.append(("delete", *self.measured(side, requests, window, "deleted")))
        return done

    def measured(self, side, requests, window, status):
        before = side.cpu()
        latencies, elapsed = self.broker.operations(self.rows, side.key, requests, window, status)
        time.sleep(self.sizes.trail)
        return latencies, elapsed, side.cpu() - before

    def keep(self, who, what, window, latencies, elapsed, cpu):
        count = len(latencies)
        flight = f"{window} in flight"
        if "ops" in self.sections or who == FLOOR:
            self.note(f"{what}: latency", f"{what}_latency_{window}", flight, "ms", who,
                      statistics.median(latencies) * 1000, aim=SLOWER)
            self.note(f"{what}: throughput", f"{what}_rate_{window}", flight, "1/s", who,
                      count / elapsed, better=HIGHER, aim=1 / SLOWER)
        if "cpu" in self.sections:
            self.note(f"{what}: CPU per operation", f"{what}_cpu_{window}", flight, "ms", who,
                      cpu / count * 1000, aim=CPU_AIM)
        self.say(f"round {self.round + 1}: {what} {flight}: {who} {count / elapsed:.1f}/s, "
                 f"{statistics.median(latencies) * 1000:.1f} ms, CPU {cpu / count * 1000:.1f} ms")

    # ---- calls --------------------------------------------------------------------------------------
    def calls(self, side):
        for window in self.sizes.calls:
            self.call(side, "get_capabilities", self.capabilities, window)
        ids = self.rows.insert(side.host, side.type_name, 1, "creating")
        self.broker.operations(self.rows, side.key,
                               [(i, create_body(self.rows.sql, i)) for i in ids], 1, "available")
        volume = wire.volume_object(self.rows.sql, ids[0])
        body = call_body("initialize_connection", {"connector": CONNECTOR, "volume": volume})
        for window in self.sizes.calls:
            self.call(side, "initialize_connection", body, window)
        self.rows.begin_delete(ids)
        self.broker.operations(self.rows, side.key,
                               [(i, delete_body(self.rows.sql, i)) for i in ids], 1, "deleted")

    def call(self, side, method, body, window):
        before = side.cpu()
        latencies, elapsed = self.broker.calls(side.key, body, window, self.sizes.seconds)
        time.sleep(self.sizes.trail)
        self.keep_calls(side.who, method, window, latencies, elapsed, side.cpu() - before)

    def keep_calls(self, who, method, window, latencies, elapsed, cpu=None):
        count, callers = len(latencies), f"{window} caller" + "s" * (window > 1)
        self.note(f"{method}: calls per second", f"{method}_rate_{window}", callers, "1/s", who,
                  count / elapsed, better=HIGHER, aim=1 / SLOWER)
        self.note(f"{method}: latency", f"{method}_latency_{window}", callers, "ms", who,
                  statistics.median(latencies) * 1000, aim=SLOWER)
        if "cpu" in self.sections and cpu is not None:
            self.note(f"{method}: CPU per call", f"{method}_cpu_{window}", callers, "ms", who,
                      cpu / count * 1000, aim=CPU_AIM)
        self.say(f"round {self.round + 1}: {method} {callers}: {who} {count / elapsed:.1f}/s")

    # ---- images -------------------------------------------------------------------------------------
    def transfers(self, side):
        mib = self.sizes.image_mib
        for disk_format in ("raw", "qcow2"):
            ids, elapsed, _ = self.download(side, disk_format, 1)
            self.keep_transfer(side, f"download_{disk_format}", f"{mib} MiB, {disk_format}", elapsed)
            if disk_format == "raw":
                for target in ("raw", "qcow2"):
                    self.keep_transfer(side, f"upload_{target}", f"upload as {target}",
                                       self.upload(side, ids[0], target))
            self.remove(side, ids)
        count = self.sizes.downloads
        ids, elapsed, peak = self.download(side, "raw", count)
        self.keep_transfer(side, "downloads", f"{count} at once, raw", elapsed)
        self.say(f"round {self.round + 1}: {count} downloads at once: {side.who} {peak / 2**20:.0f} MiB")
        self.note("memory (PSS of all processes)", "memory_downloads", f"{count} downloads at once", "MiB",
                  side.who, peak / 2**20, aim=MEMORY_AIM)
        self.remove(side, ids)

    def download(self, side, disk_format, count):
        """Volumes of an image, all at once: (ids, elapsed, most memory)."""
        ids = self.rows.insert(side.host, side.type_name, count, "creating")
        requests = [(i, images.create_body(self.glance, self.rows.sql, i, self.disks[disk_format])) for i in ids]
        with images.Peak(side) as peak:
            _, elapsed = self.broker.operations(self.rows, side.key, requests, count, "available",
                                                images.PATIENCE)
        return ids, elapsed, peak.most

    def upload(self, side, ident, disk_format):
        image = self.glance.new("upload", disk_format)
        self.rows.sql("UPDATE volumes SET status='uploading' WHERE id=%s", [ident])
        request = (ident, images.upload_body(self.glance, ident, image, disk_format))
        _, elapsed = self.broker.operations(self.rows, side.key, [request], 1, "available", images.PATIENCE)
        self.glance.take_uploaded(image)
        return elapsed

    def remove(self, side, ids):
        self.rows.begin_delete(ids)
        requests = [(i, delete_body(self.rows.sql, i)) for i in ids]
        self.broker.operations(self.rows, side.key, requests, 10, "deleted")

    def keep_transfer(self, side, key, label, elapsed):
        self.say(f"round {self.round + 1}: {key}: {side.who} {elapsed:.1f} s")
        self.note("images: a volume of one, and one of a volume", key, label, "s", side.who, elapsed, aim=SLOWER)

    # ---- floor --------------------------------------------------------------------------------------
    def floors(self):
        for window, count in self.sizes.operations.items():
            for what, call in (("create", self.floor.create), ("delete", self.floor.remove)):
                self.keep(FLOOR, what, window, *self.floor.run(call, count, window))
        if not set(self.sections) & {"memory", "ops", "cpu"} or "calls" in self.sections:
            for window in self.sizes.calls:
                latencies, elapsed = self.broker.echo(self.capabilities, window, self.sizes.seconds)
                self.keep_calls(FLOOR, "get_capabilities", window, latencies, elapsed)
                count = max(20, 4 * window)
                latencies, elapsed, _ = self.floor.run(self.floor.mon_dump, count, window)
                self.keep_calls(FLOOR, "initialize_connection", window, latencies, elapsed)


# ---- requests ---------------------------------------------------------------------------------------
def create_body(sql, ident):
    return driver.envelope({"method": "create_volume", "args": wire.create_args(sql, ident),
                            "version": "3.0", **driver.context(), "_unique_id": uuid.uuid4().hex})


def delete_body(sql, ident):
    return driver.envelope({
        "method": "delete_volume", "args": {"volume": wire.volume_object(sql, ident),
                                            "unmanage_only": False, "cascade": False},
        "version": "3.0", **driver.context(), "_unique_id": uuid.uuid4().hex})


def call_body(method, args):
    """A call with places for the ids that differ from one to the next."""
    return driver.envelope({"method": method, "args": args, "version": "3.0", **driver.context(),
                            "_msg_id": MSG, "_reply_q": REPLY, "_timeout": None,
                            "_unique_id": UNIQUE})
