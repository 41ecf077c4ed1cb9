"""The drill of tools/demo: what happens to a replicated volume when its site is lost.

The problem: whether a failover works is a question of data, not of statuses. So data is written as a
virtual machine's disk would write it, the primary site is killed for real, and what counts is that
the bytes are there on the other site, that writing goes on, and that everything is back on the first
site in the end. Exits non-zero when that is not so.
"""

import hashlib
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

import rados
import rbd
from cinderclient import client as cinderclient
from cinderclient.contrib import noauth
from cinderclient.exceptions import ClientException
from keystoneauth1 import session

ROOT = pathlib.Path(__file__).resolve().parents[1]
BACKEND, POOL, MIB = "lab@ceph", "volumes", 1 << 20
STOCK = os.environ["DEMO_SERVICE"] == "cinder-volume"
TTY = sys.stdout.isatty()
DIM, BOLD, GREEN, RED, OFF = ("\033[2m", "\033[1m", "\033[32m", "\033[31m", "\033[0m") if TTY else [""] * 5
BEGAN = time.monotonic()
# Where the pieces of data lie: (offset, length, seed of its content).
FIRST, SECOND = (0, 32 * MIB, 1), (512 * MIB, 4 * MIB, 2)


class Failed(Exception):
    """The drill did not go as it must; shown without a traceback."""


# ---- the timeline -----------------------------------------------------------------------------------
class Step:
    """One line of the timeline: what is done, the running clock, the outcome."""

    number = 0

    def __init__(self, what):
        Step.number += 1
        self.what, self.begin, self.outcome = what, time.monotonic(), ""
        self.over = threading.Event()

    def line(self):
        return f"{Step.number:3d}  {self.what:<52} {time.monotonic() - self.begin:6.1f} s"

    def tick(self):
        while not self.over.wait(0.1):
            sys.stdout.write(f"\r{self.line()} ")
            sys.stdout.flush()

    def __enter__(self):
        if TTY:
            self.clock = threading.Thread(target=self.tick, daemon=True)
            self.clock.start()
        return self

    def say(self, text):
        """A line of detail while the step runs."""
        sys.stdout.write(("\r\033[K" if TTY else "") + f"        {DIM}{text}{OFF}\n")
        sys.stdout.flush()

    def __exit__(self, kind, error, _trace):
        self.over.set()
        if TTY:
            self.clock.join()
            sys.stdout.write("\r\033[K")
        mark = f"{RED}failed{OFF}" if error else self.outcome
        sys.stdout.write(f"{self.line()}   {mark}\n")
        sys.stdout.flush()


def wait(what, seconds, ask):
    """Ask until there is an answer."""
    end, pause = time.monotonic() + seconds, 0.05
    while True:
        found = ask()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(pause)
        pause = min(0.7, pause * 1.4)


# ---- who is asked -----------------------------------------------------------------------------------
def connect_api():
    auth = noauth.CinderNoAuthPlugin(os.environ["OS_USER_ID"], os.environ["OS_PROJECT_ID"], None,
                                     os.environ["CINDER_ENDPOINT"])
    return cinderclient.Client("3.71", session=session.Session(auth=auth))


def service(api):
    found = [s for s in api.services.list(binary="cinder-volume") if s.host == BACKEND]
    if not found:
        raise Failed(f"no service {BACKEND}")
    return found[0]


def lab(*args, check=True):
    done = subprocess.run([ROOT / "tools/lab", *args], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise Failed(f"tools/lab {' '.join(args)}: {(done.stderr or done.stdout).strip()}")
    return done


class Site:
    """One Ceph cluster, as client.cinder; connected for one action at a time, never for ever."""

    def __init__(self, name):
        self.conf = os.environ[f"SITE_{name.upper()}_CONF"]

    def __enter__(self):
        self.cluster = rados.Rados(conffile=self.conf, name="client.cinder", conf={
            "rados_osd_op_timeout": "10", "rados_mon_op_timeout": "10", "client_mount_timeout": "10"})
        self.cluster.connect()
        self.ioctx = self.cluster.open_ioctx(POOL)
        return self

    def __exit__(self, *_):
        self.ioctx.close()
        self.cluster.shutdown()

    def write(self, image, piece):
        offset, length, seed = piece
        data = random.Random(seed).randbytes(length)
        with rbd.Image(self.ioctx, image) as img:
            for at in range(0, length, 4 * MIB):
                img.write(data[at:at + 4 * MIB], offset + at)
            img.flush()

    def checksum(self, image, *pieces):
        digest = hashlib.sha256()
        with rbd.Image(self.ioctx, image, read_only=True) as img:
            for offset, length, _ in pieces:
                for at in range(0, length, 4 * MIB):
                    digest.update(img.read(offset + at, 4 * MIB))
        return digest.hexdigest()

    def primary(self, image):
        with rbd.Image(self.ioctx, image, read_only=True) as img:
            return img.mirror_image_get_info()["primary"]


def site_checksum(name, image, *pieces):
    try:
        with Site(name) as site:
            return site.checksum(image, *pieces)
    except (rbd.Error, rados.Error):
        return None


def short(digest):
    return f"sha256 {digest[:16]}…"


# ---- the drill --------------------------------------------------------------------------------------
def fail_over(api, target, status):
    api.services.failover_host(BACKEND, target)
    found = wait("the failover", 240, lambda: (
        lambda s: s if s.replication_status != "failing-over" else None)(service(api)))
    if found.replication_status != status:
        raise Failed(f"the service is {found.replication_status}, not {status}: {found.disabled_reason}")


def manage(step, *args):
    """`scoria-manage replication`, its output as details of the step."""
    argv = [os.path.join(os.environ["SCORIA_BIN_DIR"], "scoria-manage"), "--config-file",
            os.environ["SCORIA_CONF"], "replication", *args, "--yes"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in child.stdout:
        step.say(line.rstrip())
    if child.wait():
        raise Failed(f"scoria-manage replication {args[0]} ended with status {child.returncode}")


def resync(step, image):
    """The explicit order to discard what site A has: Scoria's command, or by hand."""
    if not STOCK:
        manage(step, "resync", "--backend", BACKEND, "--discard", "default")
        return
    spec = f"{POOL}/{image}"
    lab("rbd", "a", "mirror", "image", "demote", spec)
    lab("rbd", "a", "mirror", "image", "resync", spec)


def tidy(api):
    """Volumes of earlier runs."""
    old = [v for v in api.volumes.list() if v.name == "demo" and v.status in ("available", "error")]
    for volume in old:
        api.volumes.delete(volume)
    wait("earlier demo volumes are deleted", 60, lambda: not (
        {v.id for v in old} & {v.id for v in api.volumes.list()}))


def come_home(api):
    """An interrupted run may have left the backend on site B."""
    now = service(api)
    if now.replication_status == "enabled" and not now.active_backend_id:
        return
    with Step("an earlier run was interrupted: back to site A") as step:
        if not STOCK:
            resync(step, "")
        if now.replication_status in ("failover-error", "error"):
            manage(step, "reset", "--backend", BACKEND)
        fail_over(api, "default", "enabled")
        step.outcome = "enabled"


def drill():
    api = connect_api()
    print(f"\n{BOLD}A replicated volume loses its site{OFF}   ({os.environ['DEMO_SERVICE']}, times per step)\n")
    wait("the service is up", 90, lambda: service(api).state == "up")
    wait("the scheduler knows the backend", 90, lambda: [
        p for p in api.pools.list(detailed=True) if p.name.startswith(BACKEND)])
    come_home(api)
    tidy(api)

    with Step("cinder create --volume-type replicated demo 1") as step:
        volume = api.volumes.create(1, name="demo", volume_type="replicated")
        image = f"volume-{volume.id}"
        volume = wait("the volume is available", 60, lambda: (
            lambda v: v if v.status != "creating" else None)(api.volumes.get(volume.id)))
        if volume.status != "available":
            raise Failed(f"the volume is {volume.status}")
        step.outcome = f"{volume.status}, replication {volume.replication_status}"
    print(f"        {DIM}volume {volume.id}{OFF}")

    with Step("write 32 MiB to it on site A (librbd)") as step:
        with Site("a") as site:
            site.write(image, FIRST)
            before = site.checksum(image, FIRST)
        step.outcome = short(before)

    with Step("wait until site B has every byte") as step:
        wait("the data is mirrored", 180, lambda: site_checksum("b", image, FIRST) == before)
        step.outcome = "mirrored"

    with Step("kill -9 site A: monitor, manager, OSD, rbd-mirror") as step:
        lab("kill", "site-a")
        step.outcome = "gone"

    with Step(f"cinder failover-host {BACKEND} --backend_id site-b") as step:
        fail_over(api, "site-b", "failed-over")
        step.outcome = f"service failed-over, volume {api.volumes.get(volume.id).replication_status}"

    with Step("read it on site B") as step:
        after = site_checksum("b", image, FIRST)
        if after != before:
            raise Failed(f"site B has {after}, site A had {before}")
        step.outcome = f"{short(after)} {GREEN}equal{OFF}"

    refused = None
    with Step("write 4 MiB more on site B, site A still away") as step:
        try:
            with Site("b") as site:
                site.write(image, SECOND)
            step.outcome = f"{GREEN}accepted{OFF}"
        except rbd.Error as e:
            refused = str(e)
            step.outcome = f"{RED}refused{OFF}: {refused}"
    if refused and not STOCK:
        raise Failed("failed over, but not writable")

    with Step("bring site A back") as step:
        lab("start", "site-a")
        wait("site A answers", 120, lambda: site_checksum("a", image, FIRST))
        lab("up", "--without", "scoria-volume")
        with Site("a") as a, Site("b") as b:
            if not (a.primary(image) and b.primary(image)):
                raise Failed("expected two primaries now")
        step.outcome = "both sites say primary now"

    if refused:            # stock: writable once the other site is back
        with Site("b") as site:
            site.write(image, SECOND)
    kept = site_checksum("b", image, FIRST, SECOND)

    what = "demote and resync by hand" if STOCK else "scoria-manage replication resync --discard default"
    with Step(what) as step:
        resync(step, image)
        wait("site A has what site B has", 240,
             lambda: site_checksum("a", image, FIRST, SECOND) == kept)
        step.outcome = "site A mirrors site B"

    with Step(f"cinder failover-host {BACKEND} --backend_id default") as step:
        fail_over(api, "default", "enabled")
        step.outcome = f"service enabled, volume {api.volumes.get(volume.id).replication_status}"

    with Step("read it on site A") as step:
        home = site_checksum("a", image, FIRST, SECOND)
        step.outcome = f"{short(home or 'nothing')} {'equal' if home == kept else 'DIFFERENT'}"

    print(f"\n        site B, before going home  {kept}")
    print(f"        site A, at home again      {home}")
    if home != kept:
        raise Failed("the checksums differ")
    with Site("a") as site:
        if not site.primary(image):
            raise Failed("site A is not the primary")
    return volume.id


LOOK = """
{good}Nothing was lost.{off} {total:.0f} s in all. The lab is still running:

  tools/lab status                                  what runs where
  tools/lab cinder show {volume}
  tools/lab cinder service-list --withreplication
  tools/lab rbd b mirror image status volumes/volume-{volume}
  tools/lab logs {service} -f
  eval "$(tools/lab env)"                           names for a shell: database, broker, sites
  tools/lab down [--purge]                          stop it [and remove its data]
"""


def main():
    try:
        volume = drill()
    except (Failed, rados.Error, rbd.Error, ClientException) as e:
        print(f"\n{RED}demo failed:{OFF} {e}\n        tools/lab status, tools/lab logs "
              f"{os.environ['DEMO_SERVICE']}; a new lab: tools/lab down --purge", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next run brings the lab back", file=sys.stderr)
        return 130
    print(LOOK.format(good=GREEN, off=OFF, total=time.monotonic() - BEGAN, volume=volume,
                      service=os.environ["DEMO_SERVICE"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
