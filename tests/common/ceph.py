"""What tests do to Ceph behind the service's back: write, read, look; one request a line.

The problem: whether data survived a failover is only known from the images themselves, as
`client.cinder` sees them, on either site, and while the other one is dead or hung. So one process
with connections of its own, each call bounded by Ceph's own timeouts, answers for a whole test.
"""

import hashlib
import json
import os
import random
import sys
import time

import rados
import rbd

CONNECTIONS = {}
CONF = {"a": "SITE_A_CONF", "b": "SITE_B_CONF"}
OPTIONS = {"rados_osd_op_timeout": "8", "rados_mon_op_timeout": "8", "client_mount_timeout": "8"}
MODES = {rbd.RBD_MIRROR_IMAGE_MODE_JOURNAL: "journal", rbd.RBD_MIRROR_IMAGE_MODE_SNAPSHOT: "snapshot"}
STATES = {rbd.RBD_MIRROR_IMAGE_DISABLED: "disabled", rbd.RBD_MIRROR_IMAGE_ENABLED: "enabled",
          rbd.RBD_MIRROR_IMAGE_DISABLING: "disabling"}


def cluster(site, user="cinder"):
    key = (site, user)
    if key not in CONNECTIONS:
        conn = rados.Rados(conffile=os.environ[CONF[site]], name=f"client.{user}", conf=OPTIONS)
        conn.connect()
        CONNECTIONS[key] = conn
    return CONNECTIONS[key]


def ioctx(site, pool, user="cinder"):
    return cluster(site, user).open_ioctx(pool)


def pattern(seed, length):
    """Bytes that depend on the seed alone, and do not compress to zeroes."""
    return random.Random(seed).randbytes(length)


# ---- data -----------------------------------------------------------------------------------------
def write(site, image, seed, offset=0, length=1 << 20, pool="volumes"):
    """Write a pattern and flush; its checksum."""
    data = pattern(seed, length)
    with ioctx(site, pool) as ctx, rbd.Image(ctx, image) as img:
        img.write(data, offset)
        img.flush()
    return hashlib.sha256(data).hexdigest()


def checksum(site, image, offset=0, length=1 << 20, pool="volumes", snapshot=None):
    """SHA-256 of a range, or of the whole image when length is 0."""
    digest = hashlib.sha256()
    with ioctx(site, pool) as ctx, rbd.Image(ctx, image, read_only=True, snapshot=snapshot) as img:
        end = offset + length if length else img.size()
        while offset < end:
            step = min(4 << 20, end - offset)
            digest.update(img.read(offset, step))
            offset += step
    return digest.hexdigest()


def try_write(site, image, seed, offset=1 << 29, length=4096, pool="volumes"):
    """What a virtual machine would see: "ok", or the name of the error."""
    try:
        write(site, image, seed, offset, length, pool)
        return "ok"
    except (rbd.Error, rados.Error) as e:
        return f"{type(e).__name__}: {e}"


# ---- looking --------------------------------------------------------------------------------------
def images(site, pool="volumes"):
    with ioctx(site, pool, "admin") as ctx:
        return sorted(rbd.RBD().list(ctx))


def trash(site, pool="volumes"):
    with ioctx(site, pool, "admin") as ctx:
        return [{"id": t["id"], "name": t["name"], "source": t["source"]}
                for t in rbd.RBD().trash_list(ctx)]


def status_of_pool(site, pool="volumes"):
    """Fails unless every placement group can be read: an object that is not there is asked for in each."""
    with ioctx(site, pool, "admin") as ctx:
        for number in range(64):
            try:
                ctx.stat(f"scoria-tests-{number}")
            except rados.ObjectNotFound:
                pass
    return True


def info(site, image, pool="volumes"):
    """Everything about an image that a test may want; null when it is not there."""
    with ioctx(site, pool, "admin") as ctx:
        try:
            with rbd.Image(ctx, image, read_only=True) as img:
                mirror = img.mirror_image_get_info()
                found = {
                    "id": img.id(), "size": img.size(), "features": img.features(),
                    "state": STATES.get(mirror["state"], str(mirror["state"])),
                    "primary": mirror["primary"], "global_id": mirror["global_id"],
                    "snapshots": [s["name"] for s in img.list_snaps()
                                  if s["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER]}
                if found["state"] != "disabled":
                    mode = img.mirror_image_get_mode()
                    found["mode"] = MODES.get(mode, str(mode))
                try:
                    found["parent"] = "/".join(img.parent_info())
                except rbd.ImageNotFound:
                    found["parent"] = None
                return found
        except rbd.ImageNotFound:
            return None


def status(site, image, pool="volumes"):
    """(state, description) of this site's own mirror status, null when there is none."""
    with ioctx(site, pool, "admin") as ctx:
        try:
            with rbd.Image(ctx, image, read_only=True) as img:
                found = img.mirror_image_get_status()
        except rbd.Error:
            return None
    names = ("unknown", "error", "syncing", "starting_replay", "replaying", "stopping_replay", "stopped")
    if "state" not in found:
        return None
    return {"state": names[found["state"]], "up": found["up"], "description": found["description"]}


def owners(site, image, pool="volumes"):
    """Who holds the exclusive lock."""
    with ioctx(site, pool, "admin") as ctx, rbd.Image(ctx, image) as img:
        return [o["owner"] for o in img.lock_get_owners()]


def mirrored(image, to="b", pool="volumes"):
    """Whether the peer's replica is there and replays."""
    found = status(to, image, pool)
    return bool(found and found["up"] and found["state"] == "replaying")


def caught_up(source, image, seed, offset=0, length=1 << 20, pool="volumes"):
    """Whether the other site's replica has this pattern (a replica can be read, not written)."""
    want = hashlib.sha256(pattern(seed, length)).hexdigest()
    try:
        return checksum("b" if source == "a" else "a", image, offset, length, pool) == want
    except (rbd.Error, rados.Error):
        return False


# ---- changing -------------------------------------------------------------------------------------
def mirror_snapshot(site, image, pool="volumes"):
    with ioctx(site, pool, "admin") as ctx, rbd.Image(ctx, image) as img:
        return img.mirror_image_create_snapshot()


def demote(site, image, pool="volumes"):
    with ioctx(site, pool, "admin") as ctx, rbd.Image(ctx, image) as img:
        img.mirror_image_demote()


def promote(site, image, force=False, pool="volumes"):
    with ioctx(site, pool, "admin") as ctx, rbd.Image(ctx, image) as img:
        img.mirror_image_promote(force)


def create(site, image, size=1 << 30, pool="volumes"):
    """An image that Cinder does not know."""
    with ioctx(site, pool, "admin") as ctx:
        rbd.RBD().create(ctx, image, size)


def rename(site, image, to, pool="volumes"):
    with ioctx(site, pool, "admin") as ctx:
        rbd.RBD().rename(ctx, image, to)


def hold(site, image, pool="volumes", exclusive=False):
    """Open an image and keep its watch, as a virtual machine does, until `release`; the client's address.
    `exclusive`: take its lock and give it to nobody, so that the image cannot be demoted."""
    key = ("held", site, pool, image)
    ctx = ioctx(site, pool)
    img = rbd.Image(ctx, image)
    if exclusive:
        img.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
    CONNECTIONS[key] = (img, ctx)
    return cluster(site).get_addrs()


def held_write(site, image, seed, pool="volumes"):
    """A write of that client, with the image as it has it open: the checksum, or the name of the error."""
    data = pattern(seed, 1 << 20)
    img, _ = CONNECTIONS[("held", site, pool, image)]
    try:
        img.write(data, 0)
        img.flush()
    except (rbd.Error, rados.Error) as e:
        return f"{type(e).__name__}: {e}"
    return hashlib.sha256(data).hexdigest()


def release(site, image, pool="volumes"):
    img, ctx = CONNECTIONS.pop(("held", site, pool, image))
    img.close()
    ctx.close()


def command(site, **words):
    """A command to the monitors, as administrator; what they answer."""
    code, out, text = cluster(site, "admin").mon_command(json.dumps({"format": "json", **words}), b"")
    if code:
        raise rados.Error(f"{words}: {code} {text}")
    # The blocklist is followed by that of ranges.
    return json.JSONDecoder().raw_decode(out.decode())[0] if out.strip() else text


def blocklist(site):
    """Addresses that are not let in."""
    return [entry["addr"] for entry in command(site, prefix="osd blocklist ls")]


def may_unfence(site, allowed):
    """Whether `client.cinder` may take an address from the blocklist, which `profile rbd` alone does not allow."""
    caps = command(site, prefix="auth get", entity="client.cinder")[0]["caps"]
    caps["mon"] = "profile rbd" + (', allow command "osd blocklist"' if allowed else "")
    command(site, prefix="auth caps", entity="client.cinder", caps=[w for cap in caps.items() for w in cap])


def _remove_one(ctx, name):
    with rbd.Image(ctx, name) as img:
        mirror = img.mirror_image_get_info()
        if mirror["state"] != rbd.RBD_MIRROR_IMAGE_DISABLED:
            if not mirror["primary"]:
                img.mirror_image_promote(True)
            img.mirror_image_disable(True)
        for snap in list(img.list_snaps()):
            if snap["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER:
                if img.is_protected_snap(snap["name"]):
                    img.unprotect_snap(snap["name"])
                img.remove_snap(snap["name"])
    rbd.RBD().remove(ctx, name)


def _remove_objects(ctx, names):
    for name in names:
        try:
            ctx.remove_object(name)
        except rados.ObjectNotFound:
            pass


def _take_apart(ctx, ident, index, keys):
    """Every object of an image, and its entries in the directory or the trash."""
    parts = [f"rbd_header.{ident}", f"rbd_data.{ident}.", f"rbd_object_map.{ident}", f"journal.{ident}"]
    _remove_objects(ctx, [o.key for o in ctx.list_objects() if any(o.key.startswith(p) for p in parts)])
    with rados.WriteOpCtx() as op:
        ctx.remove_omap_keys(op, keys)
        ctx.operate_write_op(op, index)


def _remove_pieces(ctx, name):
    """What is left of an image without a header, object by object: librbd 16 crashes when it is to remove one
    of which only the journal is there. Its name is in the directory, or it is in the trash, being removed."""
    found = {}
    for index, keys in (("rbd_directory", f"name_{name}"), ("rbd_trash", "id_")):
        with rados.ReadOpCtx() as op:
            entries, _ = ctx.get_omap_vals(op, "", keys, 100)
            ctx.operate_read_op(op, index)
        for key, value in entries:
            if index == "rbd_directory" and key == keys:
                found[value[4:].decode()] = (index, (key, f"id_{value[4:].decode()}"))      # after its length
            elif index == "rbd_trash" and name.encode() in value:
                found[key[3:]] = (index, (key,))
    for ident, (index, keys) in found.items():
        _take_apart(ctx, ident, index, keys)
    _remove_objects(ctx, (f"rbd_id.{name}",))


def _fence_watchers(site, pool, name):
    """A client killed at the wrong moment leaves a watch that no timeout ends; blocklisting it does."""
    with ioctx(site, pool, "admin") as ctx, rbd.Image(ctx, name, read_only=True) as img:
        addresses = [w["addr"] for w in img.watchers_list()]
    for address in addresses:
        command = {"prefix": "osd blocklist", "blocklistop": "add", "addr": address, "expire": 600.0}
        cluster(site, "admin").mon_command(json.dumps(command), b"")


def _raze(site, pool, name):
    """Remove an image object by object; `trash/<id>` for one in the trash. What is left of a replica whose
    mirroring was ended while it had a ruined clone (see the behaviour suite) has a protected snapshot and is
    read-only, or is being removed for ever: librbd has no way out."""
    with ioctx(site, pool, "admin") as ctx:
        if name.startswith("trash/"):
            ident = name.removeprefix("trash/")
            _take_apart(ctx, ident, "rbd_trash", (f"id_{ident}",))
        else:
            with rbd.Image(ctx, name, read_only=True) as img:
                ident = img.id()
            _take_apart(ctx, ident, "rbd_directory", (f"name_{name}", f"id_{ident}"))
            _remove_objects(ctx, (f"rbd_id.{name}",))


def _remove_all(site, pool):
    left = {}
    for entry in trash(site, pool):      # restored, so that its snapshots can be removed as well
        with ioctx(site, pool, "admin") as ctx:
            try:
                rbd.RBD().trash_restore(ctx, entry["id"], entry["name"])
            except rbd.Error as e:
                left[f"{site}:{pool}/trash/{entry['id']}"] = f"{type(e).__name__}: {e}"
    for name in images(site, pool):
        with ioctx(site, pool, "admin") as ctx:
            try:
                _remove_one(ctx, name)
            except rbd.ImageNotFound:      # gone meanwhile, or half of one
                _remove_pieces(ctx, name)
            except rbd.Error as e:
                left[f"{site}:{pool}/{name}"] = f"{type(e).__name__}: {e}"
    return left


def wipe(pools=("volumes", "volumes2", "images", "backups"), seconds=60):
    """Remove every image of both sites, whatever state it is in; what is left, with the reason."""
    begin, left = time.monotonic(), {}
    end = begin + seconds
    while time.monotonic() < end:
        left = {}
        for site in ("a", "b"):
            for pool in pools:
                try:
                    left.update(_remove_all(site, pool))
                except (rbd.Error, rados.Error) as e:      # a site that has only just started
                    left[f"{site}:{pool}"] = f"{type(e).__name__}: {e}"
        if not left:
            return left
        for what, why in left.items():
            try:
                place, name = what.split("/", 1)
                waited, in_trash = time.monotonic() - begin, name.startswith("trash/")
                if waited > 10 and (in_trash or why.startswith("ReadOnlyImage")):
                    _raze(*place.split(":"), name)
                elif waited > 20 and why.startswith("ImageBusy"):
                    _fence_watchers(*place.split(":"), name)      # nobody who lives watches for so long
            except (rbd.Error, rados.Error, ValueError):
                pass      # gone, or something else next time
        time.sleep(0.5)
    return left


OPS = {f.__name__: f for f in (write, checksum, try_write, images, trash, status_of_pool, info, status, owners, mirrored,
                               caught_up, mirror_snapshot, demote, promote, create, rename, hold, held_write, release,
                               blocklist, may_unfence, wipe)}


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": OPS[request.pop("op")](**request)}
        except Exception as e:
            # A connection may be of no use any more (its site was killed): the next call makes one.
            for key in [k for k in CONNECTIONS if k[0] != "held"]:
                CONNECTIONS.pop(key)
            answer = {"error": {"type": type(e).__name__, "message": str(e), "code": None}}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
