"""Two small Ceph clusters on loopback, mirrored both ways.

The problem: mirroring, failover and split-brain can only be tried on two real clusters, and a
normal deployment needs hosts, disks, systemd and /etc/ceph. Here a site is one monitor, one
manager, OSDs on sparse files and one rbd-mirror, in the foreground, on a loopback address of its
own (monitors must keep their address for life, so the lab remembers it).

All keys go into the monitor's first keyring, which saves every `ceph auth` call. Intervals are
shortened where tests would wait for them; the rest is Ceph's default or the smallest footprint.
"""

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid

from . import auth, procs
from .component import Component
from .state import LabError, REPO, write_if_changed

POOLS = ("volumes", "volumes2", "backups", "images")
MIRRORED = ("volumes", "volumes2", "images")
# What the manager loads: only the modules it insists on and those that rbd needs.
MGR_MODULES = ("mgr_module.py", "mgr_util.py", "rbd_support", "balancer", "crash", "devicehealth",
               "orchestrator", "pg_autoscaler", "progress", "status", "volumes", "telemetry",
               "iostat")
MGR_SOURCE = "/usr/share/ceph/mgr"


def site_dir(lab, site):
    return lab.path("ceph", f"site-{site}")


def daemon_conf(lab, site):
    return lab.path("ceph", f"site-{site}.conf")


def client_conf(lab, site):
    """What SITE_A_CONF and SITE_B_CONF name: monitors and keyrings, nothing else."""
    return lab.path("conf", f"site-{site}.conf")


def keyring(lab, site, entity):
    return site_dir(lab, site) / "keys" / f"{entity}.keyring"


def _run(lab, argv, what, timeout=60):
    try:
        done = subprocess.run([str(a) for a in argv], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=timeout, check=False,
                              env=procs.clean_env(lab, procs.SETUP))
    except subprocess.TimeoutExpired:
        raise LabError(f"{what}: no answer within {timeout} s") from None
    if done.returncode:
        raise LabError(f"{what}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def setup_step(lab, step, *args, timeout=90):
    """Run a step of ceph_setup in a child: librados can hang, and a child can be killed."""
    env = {"PYTHONPATH": str(REPO / "tools")}
    argv = [sys.executable, "-B", "-m", "labkit.ceph_setup", step, *map(str, args)]
    try:
        done = subprocess.run(argv, env={**procs.clean_env(lab, procs.SETUP), **env}, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout,
                              check=False)
    except subprocess.TimeoutExpired:
        raise LabError(f"ceph setup step '{step}': not done within {timeout} s") from None
    if done.returncode:
        raise LabError(f"ceph setup step '{step}': {done.stderr.strip()[-2000:]}")
    return done.stdout


def ask(lab, site, daemon, command, timeout=2.0):
    """Ask a daemon through its admin socket: quick, and it never waits for a quorum."""
    path = lab.sock(f"site-{site}.{daemon}.asok")
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(timeout)
            s.connect(path)
            s.sendall(json.dumps({"prefix": command, "format": "json"}).encode() + b"\0")
            need = struct.unpack(">I", s.recv(4, socket.MSG_WAITALL))[0]
            data = b""
            while len(data) < need:
                more = s.recv(need - len(data))
                if not more:
                    return None
                data += more
        return json.loads(data)
    except (OSError, ValueError, struct.error):
        return None


# ---- configuration ----------------------------------------------------------------------------
def _common(lab, site):
    ip = lab.state["ips"][site]
    return f"""\
fsid = {lab.state["fsid"][site]}
mon_host = [v2:{ip}:3300,v1:{ip}:6789]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
"""


def write_conf(lab, site):
    """The daemons' conf and the clients' conf of a site."""
    d, ip, s = site_dir(lab, site), lab.state["ips"][site], f"site-{site}"
    write_if_changed(client_conf(lab, site), f"[global]\n{_common(lab, site)}"
                     "log_file =\nadmin_socket =\n" + "".join(
                         f"[{who}]\nkeyring = {keyring(lab, site, who)}\n"
                         for who in ("client.admin", "client.cinder",
                                     *(("client.glance",) if auth.on(lab) else ()))))
    write_if_changed(daemon_conf(lab, site), f"""[global]
{_common(lab, site)}mon_initial_members = m
public_addr = {ip}
cluster_addr = {ip}
keyring = {d}/keys/$name.keyring
admin_socket = {lab.state["sockdir"]}/{s}.$name.asok
run_dir = {lab.state["sockdir"]}
log_file = {d}/log/$name.log
log_to_stderr = false
crash_dir = {d}/crash
auth_allow_insecure_global_id_reclaim = false
ms_async_op_threads = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
[client]
log_file =
admin_socket =
[client.rbd-mirror.{s}]
log_file = {d}/log/rbd-mirror.log
admin_socket = {lab.state["sockdir"]}/{s}.rbd-mirror.$pid.$cctid.asok
rbd_mirror_pool_replayers_refresh_interval = 3
rbd_mirror_image_state_check_interval = 3
rbd_mirror_leader_heartbeat_interval = 1
rbd_mirror_journal_poll_age = 1
[mon]
keyring = {d}/keys/mon..keyring
mon_data = {d}/mon
mon_cluster_log_file = {d}/log/cluster.log
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
mon_warn_on_insecure_global_id_reclaim_allowed = false
mon_data_avail_warn = 1
mon_data_avail_crit = 0
mon_max_pg_per_osd = 1000
mon_pg_warn_min_per_osd = 0
mon_tick_interval = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_osd_min_down_reporters = 1
mon_cpu_threads = 1
mon_memory_target = 256Mi
mon_memory_autotune = false
rocksdb_cache_size = 16Mi
[mgr]
mgr_data = {d}/mgr
mgr_initial_modules =
mgr_tick_period = 1
mgr_stats_period = 5
mgr_service_beacon_grace = 12
mgr_module_path = {d}/mgr_modules
[osd]
osd_data = {d}/osd.$id
osd_objectstore = bluestore
osd_class_load_list = *
osd_class_default_list = *
osd_client_watch_timeout = {lab.state["watch_timeout"]}
# A client killed while its watch is being set up leaves one that an OSD forgets to time out until the
# object leaves this cache (default 64 a PG), which in a cluster as idle as this one never happens.
osd_pg_object_context_cache_count = 1
# An OSD that is marked down more than five times in ten minutes ends itself; here that is a pause (and
# `peer_again`) too many.
osd_max_markdown_count = 1000
bluestore_block_size = {64 << 30}
bluestore_block_wal_create = false
bluestore_block_db_create = false
bluestore_cache_autotune = false
bluestore_cache_size = 64Mi
osd_memory_target = 900Mi
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
osd_max_backfills = 4
osd_scrub_begin_hour = 0
osd_scrub_load_threshold = 100
osd_pg_max_concurrent_snap_trims = 4
""")


def create_identity(lab, site):
    """A site's fsid for life, and its configuration files."""
    if site not in lab.state["fsid"]:
        lab.state["fsid"][site] = str(uuid.uuid4())
        lab.save()
    write_conf(lab, site)


def create_site(lab, site):
    """Keys, configuration and the monitor's store, once per site."""
    create_identity(lab, site)
    if lab.done(f"site-{site}-keys"):
        return
    d, s = site_dir(lab, site), f"site-{site}"
    shutil.rmtree(d, ignore_errors=True)
    for sub in ("mon", "mgr", "log", "keys", "crash", "mgr_modules"):
        (d / sub).mkdir(parents=True)
    rbd = ", ".join(f"profile rbd pool={p}" for p in POOLS)
    entities = {
        "mon.": {"mon": "allow *"},
        "client.admin": dict.fromkeys(("mon", "osd", "mgr", "mds"), "allow *"),
        "mgr.x": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
        "client.cinder": {"mon": "profile rbd", "osd": rbd, "mgr": rbd},
        f"client.rbd-mirror.{s}": {"mon": "profile rbd-mirror", "osd": "profile rbd",
                                   "mgr": "profile rbd"},
        "client.rbd-mirror-peer": {"mon": "profile rbd-mirror-peer", "osd": "profile rbd"},
    }
    for i in range(lab.state["osds"]):
        entities[f"osd.{i}"] = {"mon": "allow profile osd", "mgr": "allow profile osd",
                                "osd": "allow *"}
    text = {}
    for name, caps in entities.items():
        text[name] = _new_key(name, caps)
        write_if_changed(keyring(lab, site, name), text[name])
    write_if_changed(d / "all.keyring", "".join(text.values()))
    for name in MGR_MODULES:
        if os.path.exists(f"{MGR_SOURCE}/{name}"):
            (d / "mgr_modules" / name).symlink_to(f"{MGR_SOURCE}/{name}")
    ip = lab.state["ips"][site]
    _run(lab, ["monmaptool", "--create", "--fsid", lab.state["fsid"][site], "--addv", "m",
          f"[v2:{ip}:3300,v1:{ip}:6789]", d / "monmap"], "monmaptool")
    _run(lab, ["ceph-mon", "-c", daemon_conf(lab, site), "-i", "m", "--mkfs", "--monmap",
          d / "monmap", "--keyring", d / "all.keyring"], f"{s}: mon mkfs")
    lab.mark(f"site-{site}-keys")


def _new_key(name, caps):
    """Text of a keyring. A cephx secret is type, creation time, length, 16 random bytes; making it here
    saves a process per key."""
    key = base64.b64encode(struct.pack("<HIIH", 1, int(time.time()), 0, 16) + os.urandom(16))
    return f"[{name}]\n\tkey = {key.decode()}\n" + "".join(
        f'\tcaps {kind} = "{cap}"\n' for kind, cap in caps.items())


def add_entity(lab, site, name, caps):
    """One more client of a running site, once."""
    step = f"site-{site}-{name}"
    if not lab.done(step):
        path = keyring(lab, site, name)
        if not path.exists():
            write_if_changed(path, _new_key(name, caps))
        setup_step(lab, "entity", daemon_conf(lab, site), path)
        lab.mark(step)


def make_pools(lab, site):
    """Pools of a site, and wait until its manager answers; once."""
    if not lab.done(f"site-{site}-pools"):
        setup_step(lab, "pools", daemon_conf(lab, site), lab.state["osds"], *POOLS)
        lab.mark(f"site-{site}-pools")


def wait_ready(lab, site):
    """Wait until a site without pools has its OSDs and a manager."""
    setup_step(lab, "pools", daemon_conf(lab, site), lab.state["osds"])


def make_peers(lab):
    """Mirroring of the mirrored pools, both ways; once, with both sites running."""
    if not lab.done("peers"):
        setup_step(lab, "peers", daemon_conf(lab, "a"), daemon_conf(lab, "b"), *MIRRORED)
        lab.mark("peers")


def give_up_lost(lab, site):
    """Let go of objects that an OSD has lost, if its log says so; how many.

    An OSD of Ceph 16.2.15 that was killed may find another object's bytes in a block when it is back. Everybody who
    asks for what was there then waits without an end, a mirror daemon too, which says nothing."""
    logs = lab.path("log").glob(f"site-{site}-osd.*.log")
    if not any("unfound" in log.read_text(errors="replace") for log in logs):
        return 0
    return int(setup_step(lab, "give-up-lost", daemon_conf(lab, site)))


def mirroring_health(lab, site, pool="volumes", timeout=8):
    """(daemon health, image health) as rbd-mirror reports them, or None."""
    try:
        out = subprocess.run(
            ["rbd", "-c", client_conf(lab, site), "mirror", "pool", "status", pool, "--format",
             "json"], capture_output=True, timeout=timeout, check=True, stdin=subprocess.DEVNULL,
            env=procs.clean_env(lab, procs.HELPER)).stdout
        summary = json.loads(out)["summary"]
        return summary["daemon_health"], summary["image_health"]
    except (subprocess.SubprocessError, ValueError, KeyError):
        return None


# ---- components ---------------------------------------------------------------------------------
class _Daemon(Component):
    """What the daemons of a site share."""

    kind = ""

    def __init__(self, lab, site, ident):
        super().__init__(lab)
        self.site, self.ident = site, ident
        self.name = f"site-{site}-{self.kind}"

    def available(self):
        if not shutil.which(f"ceph-{self.kind}"):
            return f"ceph-{self.kind} is not installed (tools/install packages)"
        return None

    def prepare(self):
        write_conf(self.lab, self.site)

    def command(self):
        return [f"ceph-{self.kind}", "-f", "-c", daemon_conf(self.lab, self.site), "-i",
                self.ident], {}

    def ask(self, command):
        return ask(self.lab, self.site, f"{self.kind}.{self.ident}", command)

    def address(self):
        return self.lab.state["ips"][self.site]


class Mon(_Daemon):
    kind = "mon"

    def listens(self):
        ip = self.lab.state["ips"][self.site]
        return ((ip, 3300), (ip, 6789))

    def prepare(self):
        create_site(self.lab, self.site)

    def ready(self):
        answer = self.ask("mon_status") or {}
        return answer.get("state") in ("leader", "peon")

    def health(self):
        return (self.ask("mon_status") or {}).get("state", "not answering")

    def address(self):
        return super().address() + ":3300"


class Mgr(_Daemon):
    kind = "mgr"

    def __init__(self, lab, site, ident):
        super().__init__(lab, site, ident)
        self.needs = (f"site-{site}-mon",)

    def ready(self):
        return self.ask("version") is not None


class Osd(_Daemon):
    kind = "osd"

    def __init__(self, lab, site, ident):
        super().__init__(lab, site, ident)
        self.name += f".{ident}"
        self.needs = (f"site-{site}-mon",)

    def prepare(self):
        super().prepare()
        step = f"{self.name}-mkfs"
        if self.lab.done(step):
            return
        data = site_dir(self.lab, self.site) / f"osd.{self.ident}"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        shutil.copy(keyring(self.lab, self.site, f"osd.{self.ident}"), data / "keyring")
        conf = daemon_conf(self.lab, self.site)
        uid = setup_step(self.lab, "osd-new", conf, self.ident).strip()
        _run(self.lab, ["ceph-osd", "-c", conf, "-i", self.ident, "--mkfs", "--osd-uuid", uid,
              "--log-to-stderr=false"], f"{self.name}: mkfs")
        self.lab.mark(step)

    def ready(self):
        return (self.ask("status") or {}).get("state") == "active"

    def health(self):
        return (self.ask("status") or {}).get("state", "not answering")


class RbdMirror(Component):
    """One per site; also makes the peers, since it serves nothing before."""

    def __init__(self, lab, site):
        super().__init__(lab)
        self.by_default = not lab.state.get("bare")
        self.site = site
        self.name = f"rbd-mirror-{site}"
        self.needs = tuple(f"site-{site}-osd.{i}" for i in range(lab.state.get("osds", 1)))

    def available(self):
        return None if shutil.which("rbd-mirror") else "rbd-mirror is not installed"

    def prepare(self):
        """It looks for its pools' conf by cluster name in $HOME/.ceph, whatever -c says."""
        write_conf(self.lab, self.site)
        home = self.lab.path("home", ".ceph")
        home.mkdir(parents=True, exist_ok=True)
        link = home / f"site-{self.site}.conf"
        if not link.is_symlink():
            link.symlink_to(daemon_conf(self.lab, self.site))

    def command(self):
        s = f"site-{self.site}"
        return ["rbd-mirror", "-f", "-c", daemon_conf(self.lab, self.site), "--cluster", s, "-n",
                f"client.rbd-mirror.{s}"], {"HOME": str(self.lab.path("home"))}

    def address(self):
        return self.lab.state["ips"][self.site]

    def health(self):
        found = mirroring_health(self.lab, self.site)
        if found is None:
            return "pool not answering"
        return "ok" if found == ("OK", "OK") else f"daemons {found[0]}, images {found[1]}"


def components(lab):
    found = []
    for site in ("a", "b"):
        found.append(Mon(lab, site, "m"))
        found.append(Mgr(lab, site, "x"))
        found += [Osd(lab, site, str(i)) for i in range(lab.state.get("osds", 1))]
        found.append(RbdMirror(lab, site))
    return found


def peer_again(lab, site):
    """Let the placement groups of resumed OSDs peer anew. One without replicas whose read lease ran out
    meanwhile (16 s) stays "laggy" for ever, and its objects with it."""
    if procs.leader(lab, f"site-{site}-mon"):
        try:
            _run(lab, ["ceph", "-c", client_conf(lab, site), "--connect-timeout", "10", "osd", "down", "all"],
                 f"site-{site}: peering")
        except LabError:
            pass      # its monitor is still paused: resuming that is another command


def set_watch_timeout(lab):
    """Tell the running OSDs a changed watch timeout (the conf serves the next start)."""
    for site in ("a", "b"):
        write_conf(lab, site)
        if procs.leader(lab, f"site-{site}-mon"):
            _run(lab, ["ceph", "-c", client_conf(lab, site), "--connect-timeout", "5", "tell",
                  "osd.*", "config", "set", "osd_client_watch_timeout", lab.state["watch_timeout"]],
                 f"site-{site}: watch timeout")
