"""Steps of making a Ceph site that need a connection, run in a child process.

The problem: `ceph` and `rbd` commands cost a fifth of a second of start-up each, and a librados
call can hang beyond any deadline. So each step is one child process with one connection, which
the lab kills when it does not come back.

    python3 -m labkit.ceph_setup osd-new CONF ID | pools CONF OSDS POOL... | peers CONF CONF POOL...
                               | entity CONF KEYRING | give-up-lost CONF
"""

import json
import re
import sys
import time
import uuid

import rados
import rbd

DEADLINE = 60


def connect(conf):
    cluster = rados.Rados(conffile=conf, name="client.admin")
    cluster.connect(timeout=30)
    return cluster


def command(cluster, given=b"", **words):
    code, out, err = cluster.mon_command(json.dumps({**words, "format": "json"}), given, timeout=30)
    if code:
        raise RuntimeError(f"{words}: {code} {err}")
    return json.loads(out) if out.strip() else None


def wait(what, check):
    end = time.monotonic() + DEADLINE
    while not check():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {DEADLINE} s")
        time.sleep(0.1)


def osd_new(conf, ident):
    cluster = connect(conf)
    known = {str(o["osd"]): o["uuid"] for o in command(cluster, prefix="osd dump")["osds"]}
    uid = known.get(ident) or str(uuid.uuid4())     # known: an interrupted run left it
    if ident not in known:
        command(cluster, prefix="osd new", uuid=uid, id=int(ident))
    print(uid)


def pools(conf, osds, *names):
    cluster = connect(conf)
    wait("OSDs up", lambda: command(cluster, prefix="osd stat")["num_up_osds"] >= int(osds))
    for name in names:      # creating an existing pool again succeeds
        command(cluster, prefix="osd pool create", pool=name, pg_num=8, pgp_num=8,
                pool_type="replicated", size=1)
    for name in names:
        with cluster.open_ioctx(name) as ioctx:
            rbd.RBD().pool_init(ioctx, True)
    wait("manager", lambda: command(cluster, prefix="mgr stat")["available"])


def peers(conf_a, conf_b, *names):
    sites = {"site-a": connect(conf_a), "site-b": connect(conf_b)}
    lib = rbd.RBD()
    for site, cluster in sites.items():
        lib.mirror_site_name_set(cluster, site)
    for name in names:
        a, b = (cluster.open_ioctx(name) for cluster in sites.values())
        for ioctx in (a, b):
            lib.mirror_mode_set(ioctx, rbd.RBD_MIRROR_MODE_IMAGE)
        if list(lib.mirror_peer_list(b)):
            continue
        token = lib.mirror_peer_bootstrap_create(a)
        lib.mirror_peer_bootstrap_import(b, rbd.RBD_MIRROR_PEER_DIRECTION_RX_TX, token)


def entity(conf, keyring):
    """A client with the key and the capabilities that the file says; again is no harm."""
    with open(keyring, "rb") as f:
        command(connect(conf), f.read(), prefix="auth import")


def give_up_lost(conf):
    """Objects that no OSD has any more are gone, instead of being waited for; prints how many."""
    cluster = connect(conf)
    given = 0
    found = command(cluster, prefix="health", detail="detail")["checks"].get("OBJECT_UNFOUND", {})
    for line in found.get("detail", ()):
        pg, count = re.match(r"pg (\S+) has (\d+) unfound", line["message"]).groups()
        words = {"prefix": "mark_unfound_lost", "pgid": pg, "mulcmd": "delete"}
        code, _, err = cluster.pg_command(pg, json.dumps(words), b"", 30)
        if code:
            raise RuntimeError(f"{words}: {code} {err}")
        given += int(count)
    print(given)


if __name__ == "__main__":
    {"osd-new": osd_new, "pools": pools, "peers": peers, "entity": entity,
     "give-up-lost": give_up_lost}[sys.argv[1]](*sys.argv[2:])
