"""Backups by mirroring (method mirror), which stock has nothing to set beside.

The problem: such a backup copies nothing itself, so that what it takes is how far the copy on the other site is behind.
Measured is therefore the same volume twice: with its copy up to date, and right after some of it has changed. The
restoration is the one that only this method has: back into its own volume, by what has changed since the point.
"""

import contextlib
import time

import rbd

from .backup import BACKUPS, CHANGED, MIB, TITLE, discard
from .broker import BenchError
from .mirrors import JOURNAL, MODES, SNAPSHOT, Site, name_of
from .results import SCORIA

OPTIONS = "backup_method = mirror\nbackup_site = site-b\n"
PATIENCE = 900


class Pins:
    """One volume in each mode of mirroring, from site a to site b."""

    def __init__(self, confs):
        self.backups = None
        self.sites = {name: Site(conf) for name, conf in zip("ab", confs)}

    def run(self, backups, component, rounds, gib):
        self.backups = backups
        for site in self.sites.values():
            site.connect()
        try:
            with self.backups.serving(component, OPTIONS):
                for mode in (JOURNAL, SNAPSHOT):
                    with self.mirrored(mode, gib) as volume:
                        for number in range(rounds):
                            self.measure(number, mode, volume, gib)
        finally:
            self.purge()
            for site in self.sites.values():
                site.close()

    def measure(self, number, mode, volume, gib):
        first = self.backups.order(volume, gib)
        self.note(number, mode, "in_sync", "backup, the copy up to date", self.backups.make(first))
        self.backups.change(volume)
        second = self.backups.order(volume, gib, first)
        label = f"backup, {CHANGED // MIB} MiB changed right before"
        self.note(number, mode, "changed", label, self.backups.make(second))
        self.backups.change(volume)
        label = f"restoration to the same volume, {CHANGED // MIB} MiB changed since"
        self.note(number, mode, "back", label, self.backups.restore(second, volume))
        for backup in (second, first):
            self.backups.delete(backup)
        self.settled(name_of(volume), mode)

    def note(self, number, mode, key, label, seconds):
        results = self.backups.results
        metric = results.metric(f"{TITLE} by mirroring, {mode}", f"backup_{mode}_{key}", label, "s")
        metric.samples.setdefault(SCORIA, {})[number] = seconds
        self.backups.say(f"round {number + 1}: by {mode}: {label}: {seconds:.1f} s")

    # ---- the volume ---------------------------------------------------------------------------------
    @contextlib.contextmanager
    def mirrored(self, mode, gib):
        """A half-filled volume whose copy is complete."""
        volume = self.backups.volume(gib)
        name = name_of(volume)
        try:
            self.backups.fill(volume, gib)
            with self.sites["a"].image(name) as image:
                if mode == JOURNAL and not image.features() & rbd.RBD_FEATURE_JOURNALING:
                    image.update_features(rbd.RBD_FEATURE_JOURNALING, True)
                image.mirror_image_enable(MODES[mode])
            self.settled(name, mode)
            self.backups.say(f"a volume of {gib} GiB is mirrored by {mode}")
            yield volume
        finally:
            for site in self.sites.values():
                site.discard(name)

    def settled(self, name, mode):
        """Until the copy replays, has the newest point, and the daemon is at rest."""
        end = time.monotonic() + PATIENCE
        while not (self.sites["b"].replaying([name]) and self.has_all(name, mode)):
            if time.monotonic() > end:
                raise BenchError(f"{name} is not whole on site b")
            time.sleep(0.5)

    def has_all(self, name, mode):
        """In snapshot mode: whether the copy has finished the newest mirror snapshot."""
        if mode == JOURNAL:
            return True
        with self.sites["a"].image(name, read_only=True) as here:
            newest = max((s["id"] for s in here.list_snaps() if "mirror" in s), default=None)
        with self.sites["b"].image(name, read_only=True) as there:
            found = [s["mirror"] for s in there.list_snaps() if "mirror" in s]
        return any(m["primary_snap_id"] == newest and m["complete"] for m in found)

    def purge(self):
        """What an interrupted run has left on site b."""
        with contextlib.closing(self.sites["b"].cluster.open_ioctx(BACKUPS)) as there:
            for name in rbd.RBD().list(there):
                if any(ident in name for ident in self.backups.idents()):
                    with contextlib.suppress(rbd.Error):
                        discard(there, name)
