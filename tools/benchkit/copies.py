"""Snapshots, volumes made of them and of volumes, and attachments.

The problem: each of these needs something that is there before, and that must not be counted. So a section makes
its volumes first, then measures what is asked of them, and then removes all of it, measured where a user would wait
for it too.
"""

import statistics
import uuid

import driver
import wire

from .broker import MSG, REPLY, UNIQUE
from .results import HIGHER, SLOWER

SECTIONS = ("snapshot", "clone", "attach")
SNAPSHOT = ("INSERT INTO snapshots (id, created_at, updated_at, deleted, volume_id, user_id, project_id, status, "
            "progress, volume_size, volume_type_id, use_quota) SELECT %s, %s, %s, 0, id, user_id, project_id, "
            "'creating', '0%%', size, volume_type_id, 1 FROM volumes WHERE id=%s")
ATTACHMENT = ("INSERT INTO volume_attachment (id, created_at, updated_at, deleted, volume_id, instance_uuid, "
              "attach_mode, attach_status) VALUES (%s, %s, %s, 0, %s, %s, 'null', 'reserved')")
CONNECTOR = {"host": "compute1", "ip": "10.0.0.1", "initiator": "iqn.x", "multipath": False, "platform": "x86_64",
             "os_type": "linux2", "do_local_attach": False, "mountpoint": "/dev/vdb"}


class Snapshots:
    """Their rows, as `Broker.operations` asks for them."""

    def __init__(self, rows):
        self.rows = rows

    def statuses(self, ids):
        found = self.rows.sql("SELECT id, status FROM snapshots WHERE id IN %s", [list(ids)])
        return [(row["id"], row["status"]) for row in found]

    def insert(self, volumes):
        at, ids = self.rows.now(), [str(uuid.uuid4()) for _ in volumes]
        self.rows.many(SNAPSHOT, [(i, at, at, v) for i, v in zip(ids, volumes)])
        return ids

    def begin_delete(self, ids):
        self.rows.sql("UPDATE snapshots SET status='deleting' WHERE id IN %s", [ids])


class Copies:
    """The sections that one side has to serve."""

    def __init__(self, bench, side):
        self.bench, self.side = bench, side
        self.rows, self.broker = bench.rows, bench.broker
        self.snapshots = Snapshots(bench.rows)

    def run(self, sections):
        for window, count in self.bench.sizes.copies.items():
            volumes = self.volumes(count)
            if "attach" in sections:
                self.attach(volumes, window)
            if set(sections) & {"snapshot", "clone"}:
                snapshots = self.snapshot(volumes, window, "snapshot" in sections)
                if "clone" in sections:
                    self.clone(volumes, snapshots, window)
                self.unsnapshot(snapshots, window, "snapshot" in sections)
            self.bench.remove(self.side, volumes)

    def volumes(self, count):
        ids = self.rows.insert(self.side.host, self.side.type_name, count, "creating")
        self.made(ids, [{} for _ in ids], 10)
        return ids

    def made(self, ids, sources, window):
        requests = [(i, cast("create_volume", wire.create_args(self.rows.sql, i, **source)))
                    for i, source in zip(ids, sources)]
        return self.broker.operations(self.rows, self.side.key, requests, window, "available")

    def snapshot(self, volumes, window, counted):
        ids = self.snapshots.insert(volumes)
        requests = []
        for i in ids:
            found = wire.snapshot_object(self.rows.sql, i)
            found["versioned_object.data"].pop("volume", None)
            found["versioned_object.changes"] = []
            requests.append((i, cast("create_snapshot", {"snapshot": found})))
        done = self.broker.operations(self.snapshots, self.side.key, requests, window, "available")
        if counted:
            self.keep("create_snapshot", window, *done)
        return ids

    def unsnapshot(self, ids, window, counted):
        self.snapshots.begin_delete(ids)
        requests = [(i, cast("delete_snapshot", {"snapshot": wire.snapshot_object(self.rows.sql, i),
                                                 "unmanage_only": False})) for i in ids]
        done = self.broker.operations(self.snapshots, self.side.key, requests, window, "deleted")
        if counted:
            self.keep("delete_snapshot", window, *done)

    def clone(self, volumes, snapshots, window):
        for what, column, sources in (
                ("volume of a snapshot", "snapshot_id", [{"snapshot": s} for s in snapshots]),
                ("volume of a volume", "source_volid", [{"source": v} for v in volumes])):
            ids = self.rows.insert(self.side.host, self.side.type_name, len(volumes), "creating")
            for ident, source in zip(ids, sources):
                self.rows.sql(f"UPDATE volumes SET {column}=%s WHERE id=%s", [*source.values(), ident])
            self.keep(what, window, *self.made(ids, sources, window))
            self.bench.remove(self.side, ids)

    def attach(self, volumes, window):
        at, ids = self.rows.now(), [str(uuid.uuid4()) for _ in volumes]
        self.rows.many(ATTACHMENT, [(i, at, at, v, str(uuid.uuid4())) for i, v in zip(ids, volumes)])
        self.rows.sql("UPDATE volumes SET status='reserved' WHERE id IN %s", [volumes])
        self.calls("attachment_update", ids, volumes, window, {"connector": CONNECTOR})
        self.calls("attachment_delete", ids, volumes, window, {})
        self.rows.sql("UPDATE volumes SET status='available', attach_status='detached' WHERE id IN %s", [volumes])

    def calls(self, method, attachments, volumes, window, more):
        bodies = [driver.envelope({
            "method": method, "args": {"vref": wire.volume_object(self.rows.sql, v), "attachment_id": a, **more},
            "version": "3.9", **driver.context(), "_msg_id": MSG, "_reply_q": REPLY, "_timeout": None,
            "_unique_id": UNIQUE}) for a, v in zip(attachments, volumes)]
        self.keep(method, window, *self.broker.each(self.side.key, bodies, window))

    def keep(self, what, window, latencies, elapsed):
        flight = f"{window} in flight"
        key, who = what.replace(" ", "_"), self.side.who
        self.bench.note(f"{what}: latency", f"{key}_latency_{window}", flight, "ms", who,
                        statistics.median(latencies) * 1000, aim=SLOWER)
        self.bench.note(f"{what}: throughput", f"{key}_rate_{window}", flight, "1/s", who,
                        len(latencies) / elapsed, better=HIGHER, aim=1 / SLOWER)
        self.bench.say(f"round {self.bench.round + 1}: {what} {flight}: {who} {len(latencies) / elapsed:.1f}/s, "
                       f"{statistics.median(latencies) * 1000:.1f} ms")


def cast(method, args):
    return driver.envelope({"method": method, "args": args, "version": "3.0", **driver.context(),
                            "_unique_id": uuid.uuid4().hex})
