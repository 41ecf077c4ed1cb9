"""Mirrored images on both sites, made and moved with nothing but librbd.

The problem: a failover of a thousand volumes needs a thousand images that replay, quickly made and quickly
removed, whatever state the last contestant left them in; and it needs its bare minimum to be compared with:
the same demotions and promotions, as many at a time, with no rows, no verdicts and no steps around them.
"""

import concurrent.futures
import contextlib
import time

import rados
import rbd

from .broker import BenchError
from .sides import POOL

JOURNAL, SNAPSHOT = "journal", "snapshot"
MODES = {JOURNAL: rbd.RBD_MIRROR_IMAGE_MODE_JOURNAL, SNAPSHOT: rbd.RBD_MIRROR_IMAGE_MODE_SNAPSHOT}
FEATURES = {JOURNAL: 125, SNAPSHOT: 61}     # with and without journaling
GIB, ORDER = 1 << 30, 22
THREADS = 16                                # of what is not measured
POLL = 0.05                                 # between two attempts of a promotion
PAGE = 1024
# What librbd answers until the demotion has reached the copy (lab facts).
NOT_YET = (rbd.ImageBusy, rbd.ReadOnlyImage)


def name_of(ident):
    return f"volume-{ident}"


class Site:
    """A connection as client.cinder to one cluster."""

    def __init__(self, conf):
        self.conf, self.cluster = conf, None

    def connect(self):
        """Anew: a connection that has seen its cluster die is not waited for."""
        self.close()
        self.cluster = rados.Rados(conffile=self.conf, name="client.cinder", conf={
            "rados_osd_op_timeout": "60", "rados_mon_op_timeout": "60", "client_mount_timeout": "10"})
        self.cluster.connect()
        self.ioctx = self.cluster.open_ioctx(POOL)

    def close(self):
        if self.cluster:
            self.ioctx.close()
            self.cluster.shutdown()
        self.cluster = None

    def image(self, name, read_only=False):
        return rbd.Image(self.ioctx, name, read_only=read_only)

    def primary(self, name):
        with self.image(name, read_only=True) as image:
            return image.mirror_image_get_info()["primary"]

    def replaying(self, names):
        """How many of these the daemon of this site replays."""
        wanted, found = set(names), 0
        for status in rbd.RBD().mirror_image_status_list(self.ioctx):
            local = [s for s in (status, *status.get("remote_statuses", [])) if not s.get("mirror_uuid")]
            found += status["name"] in wanted and any(
                s["up"] and s["state"] == rbd.MIRROR_IMAGE_STATUS_STATE_REPLAYING for s in local)
        return found

    def linked(self, name):
        """Whether another site's daemon is registered in the image's journal."""
        with self.image(name, read_only=True) as image:
            journal = f"journal.{image.id()}"
        with rados.ReadOpCtx() as op:
            values, _ = self.ioctx.get_omap_vals(op, "", "client_", 16)
            self.ioctx.operate_read_op(op, journal)
            return any(key != "client_" for key, _ in values)

    def write(self, name):
        """Whether a client may write; the content is zeros, as it was."""
        try:
            with self.image(name) as image:
                image.write(b"\0" * 4096, 0)
                image.flush()
            return True
        except (rbd.Error, rados.Error):
            return False

    def discard(self, name):
        """Removes an image whatever mirroring thinks of it."""
        with contextlib.suppress(rbd.ImageNotFound):
            with self.image(name) as image:
                with contextlib.suppress(rbd.InvalidArgument):
                    image.mirror_image_disable(True)
                # What a first copy that a forced promotion has cut short leaves behind.
                for snap in list(image.list_snaps()):
                    image.remove_snap(snap["name"])
            self.retried(lambda: rbd.RBD().remove(self.ioctx, name))

    @staticmethod
    def retried(call, seconds=600):
        """Until the other daemon has let go of it: with a thousand it has much to do."""
        end = time.monotonic() + seconds
        while True:
            try:
                return call()
            except (rbd.ImageBusy, rbd.ImageHasSnapshots):
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)


class Mirrors:
    """The images of one measurement on sites a and b."""

    def __init__(self, conf_a, conf_b):
        self.sites = {"a": Site(conf_a), "b": Site(conf_b)}
        for site in self.sites.values():
            site.connect()

    def close(self):
        for site in self.sites.values():
            site.close()

    def each(self, call, names, threads=THREADS):
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return list(pool.map(call, names))

    def make(self, names, mode):
        """Empty images of 1 GiB on site a, mirrored in this mode."""
        site = self.sites["a"]

        def one(name):
            rbd.RBD().create(site.ioctx, name, GIB, ORDER, old_format=False, features=FEATURES[mode])
            with site.image(name) as image:
                image.mirror_image_enable(MODES[mode])

        self.each(one, names)

    def remove(self, names):
        for site in self.sites.values():
            self.each(site.discard, names)

    def wait(self, names, mode, on, seconds=900):
        """Until all replay on this site, and could be followed from the other one after a move."""
        site, end = self.sites[on], time.monotonic() + seconds
        left = list(names) if mode == JOURNAL else []
        while site.replaying(names) < len(names):
            self._patience(end, "replay", on)
        while left:
            linked = self.each(site.linked, left)
            left = [name for name, is_linked in zip(left, linked) if not is_linked]
            if left:
                self._patience(end, "are known to the other daemon", on)

    @staticmethod
    def _patience(end, what, on):
        if time.monotonic() > end:
            raise BenchError(f"not all images {what} on site {on}")
        time.sleep(1)

    def primaries(self, names, on):
        return sum(self.each(self.sites[on].primary, names))

    def writable(self, names, on):
        return sum(self.each(self.sites[on].write, names))

    # ---- the bare minimum ---------------------------------------------------------------------------
    def move(self, names, source, target, threads):
        """Demote and promote each, pipelined: the seconds it takes."""
        source, target = self.sites[source], self.sites[target]

        def one(name):
            with source.image(name) as image:
                image.mirror_image_demote()
            while True:
                try:
                    with target.image(name) as image:
                        image.mirror_image_promote(False)
                    return
                except NOT_YET:
                    time.sleep(POLL)

        began = time.monotonic()
        self.each(one, names, threads)
        return time.monotonic() - began

    def force(self, names, target, threads):
        """Promote each by force: the seconds it takes."""
        target = self.sites[target]

        def one(name):
            with target.image(name) as image:
                image.mirror_image_promote(True)

        began = time.monotonic()
        self.each(one, names, threads)
        return time.monotonic() - began
