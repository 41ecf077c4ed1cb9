"""Backups by scoria-backup and by stock's cinder-backup with its driver for Ceph, of the same volume, in the same pools.

The problem: how long a backup takes is a matter of the cluster above all. So one volume is half filled with data that
nothing shortens, both services take turns with it, scoria-volume serves both, and the same amount is copied by
librbd alone, with nothing around it: what neither can be faster than.
"""

import concurrent.futures
import contextlib
import os
import time
import uuid

import driver
import rados
import rbd
import wire

from labkit import procs
from labkit.state import LabError, write_if_changed

from .broker import BenchError
from .images import Peak
from .results import FLOOR, SCORIA, SLOWER, STOCK
from .rows import PROJECT
from .sections import create_body, delete_body
from .sides import EQUAL

TITLE = "backup"
QUEUE = "cinder-backup.lab"
BACKUPS = "backups"             # the pool
PATIENCE = 3600
MIB, GIB = 1 << 20, 1 << 30
STRIPE = 4 * MIB                # every second object has data
CHANGED = 64 * MIB
MEMORY_AIM = 200 * MIB
FULL_AIM, RESTORE_AIM, FLOOR_AIM = 1 / 2, 1 / 3, 1.25
THREADS = 4                     # of the floor
ROW = ("INSERT INTO backups (id, created_at, updated_at, deleted, volume_id, user_id, project_id, host, availability_zone, "
       "status, size, parent_id, num_dependent_backups, object_count, data_timestamp, container) VALUES "
       "(%s, %s, %s, 0, %s, %s, %s, 'lab', 'nova', 'creating', %s, %s, 0, 0, %s, %s)")


class Backups:
    """Both services, one after the other, on one lab."""

    def __init__(self, lab, every, volumes, rows, broker, floor, sizes, results, say):
        self.lab, self.volumes, self.rows, self.broker = lab, volumes, rows, broker
        self.floor, self.sizes, self.results, self.say = floor, sizes, results, say
        self.services = [(SCORIA, every["scoria-backup"]), (STOCK, every["cinder-backup"])]
        self.seed = 0

    # ---- the run ------------------------------------------------------------------------------------
    def run(self, rounds, gib, at_once, apart):
        for _, component in self.services:
            if component.available():
                raise BenchError(f"{component.name}: {component.available()}")
        self.volumes.start()
        self.volumes.wait_ready()
        try:
            source = self.volume(gib)
            self.fill(source, gib)
            self.say(f"a volume of {gib} GiB is half full")
            small = self.volume(1)
            for number in range(rounds):
                turns = self.services if number % 2 == 0 else self.services[::-1]
                for who, component in turns:
                    with self.serving(component):
                        self.warm_up(small)
                        self.measure(number, who, source, gib)
                self.measure_floor(number, source, gib)
            with self.serving(self.services[0][1]) as component:
                self.measure_memory(component, at_once)
            apart.run(self, self.services[0][1], rounds, gib)
            self.remove([source, small])
        finally:
            self.volumes.stop()
            self.purge()

    def warm_up(self, small):
        """Connections and workers are there when it counts, as they are in a service that has run for days."""
        backup = self.order(small, 1)
        self.make(backup)
        self.delete(backup)

    def measure(self, number, who, source, gib):
        full = self.order(source, gib)
        self.note("full", "full backup", who, number, self.make(full), FULL_AIM)
        self.change(source)
        more = self.order(source, gib, full)
        self.note("incremental", f"incremental, {CHANGED // MIB} MiB changed", who, number, self.make(more), SLOWER)
        target = self.volume(gib)
        self.note("restore", "restoration to a new volume", who, number, self.restore(more, target), RESTORE_AIM)
        for backup in (more, full):
            self.delete(backup)
        self.remove([target])

    def measure_floor(self, number, source, gib):
        """The same bytes from image to image: read and written by as many threads, and nothing else."""
        name = f"bench-floor-{uuid.uuid4()}"
        with contextlib.closing(self.floor.cluster.open_ioctx(BACKUPS)) as there:
            rbd.RBD().create(there, name, gib * GIB, 22, old_format=False, features=61)
            began = time.monotonic()
            self._copy(f"volume-{source}", there, name, gib)
            took = time.monotonic() - began
            rbd.RBD().remove(there, name)
        for key, label in (("full", "full backup"), ("restore", "restoration to a new volume")):
            self.metric(key, label, None).samples.setdefault(FLOOR, {})[number] = took
        self.say(f"round {number + 1}: floor {took:.1f} s")

    def _copy(self, image, there, name, gib):
        with rbd.Image(self.floor.ioctx, image, read_only=True) as source, rbd.Image(there, name) as dest:
            extents = []
            source.diff_iterate(0, gib * GIB, None, lambda at, length, there: extents.append((at, length)))
            parts = [(at + n, min(STRIPE, length - n)) for at, length in extents for n in range(0, length, STRIPE)]

            def one(part):
                at, length = part
                dest.write(source.read(at, length), at)

            with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(one, parts))
            dest.flush()

    def measure_memory(self, component, at_once):
        """The most that service and workers have while as many backups as that are made at once."""
        sources = [self.volume(1) for _ in range(at_once)]
        for source in sources:
            self.fill(source, 1)
        backups = [self.order(source, 1) for source in sources]
        with Peak(Memory(self.lab, component.name)) as peak:
            for backup in backups:
                self.cast("create_backup", {"backup": self.object(backup)})
            for backup in backups:
                self.wait(backup, "available")
        metric = self.results.metric(TITLE, "backup_memory", f"PSS with {at_once} backups at once", "MiB")
        metric.samples.setdefault(SCORIA, {})[0] = peak.most / MIB
        self.say(f"{at_once} backups at once: {peak.most / MIB:.0f} MiB (aim: under {MEMORY_AIM // MIB})")
        for backup in backups:
            self.delete(backup)
        self.remove(sources)

    # ---- what is measured ---------------------------------------------------------------------------
    def metric(self, key, label, aim):
        # Where stock is near the floor itself, being near it is all that can be asked.
        or_floor = FLOOR_AIM if aim in (FULL_AIM, RESTORE_AIM) else None
        return self.results.metric(TITLE, f"backup_{key}", label, "s", aim=aim, or_floor=or_floor)

    def note(self, key, label, who, number, seconds, aim):
        self.metric(key, label, aim).samples.setdefault(who, {})[number] = seconds
        self.say(f"round {number + 1}: {label}: {who} {seconds:.1f} s")

    @contextlib.contextmanager
    def serving(self, component, options=""):
        extra = self.lab.path("conf", "bench-backup.conf")
        write_if_changed(extra, EQUAL + options)
        component.prepare()
        argv, env = component.command()
        procs.start(self.lab, component.name, [*argv, "--config-file", extra], env)
        try:
            component.wait_ready(None)
            component.finish()
            yield component
        except LabError as e:
            raise BenchError(str(e)) from None
        finally:
            procs.terminate(self.lab, {component.name: component.grace})

    def cast(self, method, args):
        self.broker.publish(QUEUE, driver.envelope({
            "method": method, "args": args, "version": "2.0", **driver.context(), "_unique_id": uuid.uuid4().hex}))

    def object(self, ident):
        """The Backup as its row says it."""
        row = self.rows.sql("SELECT * FROM backups WHERE id=%s", [ident])[0]
        obj = wire.mould("create_backup-cast-to-cinder-backup")["backup"]
        data = obj["versioned_object.data"]
        data.pop("parent", None)        # asked for when it is wanted
        for key in data:
            if key in row:
                data[key] = bool(row[key]) if isinstance(data[key], bool) else wire.iso(row[key])
        return obj

    def order(self, volume, gib, parent=None):
        ident, at = str(uuid.uuid4()), self.rows.now()
        self.rows.sql("UPDATE volumes SET previous_status=status, status='backing-up' WHERE id=%s", [volume])
        self.rows.sql(ROW, [ident, at, at, volume, os.environ["OS_USER_ID"], PROJECT, gib, parent, at, BACKUPS])
        return ident

    def make(self, backup):
        return self.timed(backup, "create_backup", {"backup": self.object(backup)})

    def restore(self, backup, volume):
        self.rows.sql("UPDATE volumes SET status='restoring-backup' WHERE id=%s", [volume])
        self.rows.sql("UPDATE backups SET status='restoring', restore_volume_id=%s WHERE id=%s", [volume, backup])
        args = {"backup": self.object(backup), "volume_id": volume, "volume_is_new": True}
        return self.timed(backup, "restore_backup", args)

    def timed(self, backup, method, args):
        began = time.monotonic()
        self.cast(method, args)
        self.wait(backup, "available")
        return time.monotonic() - began

    def delete(self, backup):
        self.rows.sql("UPDATE backups SET status='deleting' WHERE id=%s", [backup])
        self.cast("delete_backup", {"backup": self.object(backup)})
        self.wait(backup, "deleted")

    def wait(self, backup, status):
        until = time.monotonic() + PATIENCE
        while True:
            row = self.rows.sql("SELECT status, fail_reason FROM backups WHERE id=%s", [backup])[0]
            if row["status"] == status:
                return
            if row["status"].startswith("error") or time.monotonic() > until:
                raise BenchError(f"backup {backup} is {row['status']}, not {status}: {row['fail_reason']}")
            time.sleep(0.01)

    # ---- volumes ------------------------------------------------------------------------------------
    def volume(self, gib):
        ids = self.rows.insert(self.volumes.host, self.volumes.type_name, 1, "creating")
        self.rows.sql("UPDATE volumes SET size=%s WHERE id=%s", [gib, ids[0]])
        self.broker.operations(self.rows, self.volumes.key, [(ids[0], create_body(self.rows.sql, ids[0]))], 1,
                               "available")
        return ids[0]

    def remove(self, ids):
        self.rows.begin_delete(ids)
        self.broker.operations(self.rows, self.volumes.key, [(i, delete_body(self.rows.sql, i)) for i in ids], 4,
                               "deleted")

    def fill(self, volume, gib):
        with rbd.Image(self.floor.ioctx, f"volume-{volume}") as image:
            for at in range(0, gib * GIB, 2 * STRIPE):
                image.write(os.urandom(STRIPE), at)
            image.flush()

    def change(self, volume):
        """Other data in places that had some."""
        self.seed += 1
        with rbd.Image(self.floor.ioctx, f"volume-{volume}") as image:
            step = image.size() // (CHANGED // STRIPE) // (2 * STRIPE) * (2 * STRIPE)
            for number in range(CHANGED // STRIPE):
                image.write(os.urandom(STRIPE), number * step)
            image.flush()

    def idents(self):
        """Backups of the bench's project, of those that are deleted, too."""
        return [row["id"] for row in self.rows.sql("SELECT id FROM backups WHERE project_id=%s", [PROJECT])]

    def purge(self):
        """What an interrupted run has left in the backup pool, and its rows."""
        ids = self.idents()
        with contextlib.closing(self.floor.cluster.open_ioctx(BACKUPS)) as there:
            for name in rbd.RBD().list(there):
                if any(ident in name for ident in ids) or name.startswith("bench-floor-"):
                    with contextlib.suppress(rbd.Error):
                        discard(there, name)
            for ident in ids:
                for what in ("meta", "sums"):
                    with contextlib.suppress(rados.Error):
                        there.remove_object(f"backup.{ident}.{what}")
        self.rows.sql("DELETE FROM backups WHERE project_id=%s", [PROJECT])


def discard(there, name):
    """An image with its snapshots."""
    with rbd.Image(there, name) as image:
        for snap in list(image.list_snaps()):
            image.remove_snap(snap["name"])
    rbd.RBD().remove(there, name)


class Memory:
    """What `Peak` asks."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name

    def memory(self):
        pids = procs.scan(self.lab).get(self.name, [])
        return procs.memory(pids)[0], len(pids)


