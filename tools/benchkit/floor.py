"""The floor: the calls into librbd that the work needs, with no service around them.

The problem: neither service can be faster than Ceph on this machine, and a ratio of the two says
nothing about how much of a request is Ceph's own time. So the same calls are made from threads of
this process, over one connection, as many at a time.
"""

import concurrent.futures
import contextlib
import json
import resource
import time

import rados
import rbd

from .sides import POOL

PREFIX = "bench-floor-"
GIB, ORDER = 1 << 30, 22
FEATURES = 61           # rbd_default_features of Ceph, which both services take


class Floor:
    """A connection as client.cinder to site A."""

    def __init__(self, conf):
        self.cluster = rados.Rados(conffile=conf, name="client.cinder", conf={
            "rados_osd_op_timeout": "60", "rados_mon_op_timeout": "60", "client_mount_timeout": "10"})
        self.cluster.connect()
        self.ioctx = self.cluster.open_ioctx(POOL)
        self.rbd = rbd.RBD()

    def close(self):
        self.ioctx.close()
        self.cluster.shutdown()

    def create(self, number):
        self.rbd.create(self.ioctx, f"{PREFIX}{number}", GIB, ORDER, old_format=False,
                        features=FEATURES)

    def remove(self, number):
        """What any deletion has to know first, then the removal."""
        with rbd.Image(self.ioctx, f"{PREFIX}{number}", read_only=True) as image:
            image.stat()
            with contextlib.suppress(rbd.ImageNotFound):
                image.parent_info()
            list(image.list_snaps())
        self.rbd.remove(self.ioctx, f"{PREFIX}{number}")

    def mon_dump(self, _number):
        code, _out, error = self.cluster.mon_command(
            json.dumps({"prefix": "mon dump", "format": "json"}), b"", timeout=30)
        if code:
            raise rados.Error(error)

    def run(self, call, count, window):
        """(latencies, elapsed, CPU seconds) of `count` calls, `window` at a time."""
        latencies = []

        def one(number):
            begin = time.monotonic()
            call(number)
            latencies.append(time.monotonic() - begin)

        with concurrent.futures.ThreadPoolExecutor(window) as pool:
            before, begin = _cpu(), time.monotonic()
            for _ in pool.map(one, range(count)):
                pass
            return latencies, time.monotonic() - begin, _cpu() - before

    def purge(self, volumes):
        """Remove images of a former floor, and of these volumes; clones before what they were made of."""
        wanted = {f"volume-{v}" for v in volumes}
        for _ in range(3):
            left = [n for n in self.rbd.list(self.ioctx)
                    if n.startswith(PREFIX) or n.removesuffix(".deleted") in wanted]
            for name in left:
                with contextlib.suppress(rbd.Error):
                    self._unsnap(name)
                with contextlib.suppress(rbd.Error):
                    self.rbd.remove(self.ioctx, name)

    def _unsnap(self, name):
        with rbd.Image(self.ioctx, name) as image:
            for snap in list(image.list_snaps()):
                with contextlib.suppress(rbd.Error):
                    if image.is_protected_snap(snap["name"]):
                        image.unprotect_snap(snap["name"])
                    image.remove_snap(snap["name"])


def _cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
