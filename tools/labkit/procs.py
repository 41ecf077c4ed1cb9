"""Which processes belong to the lab, and how to signal them without ever hitting another.

The problem: a pid in a file may have been given to somebody else since, a crashed parent leaves
children behind, and some daemons fork. So every process is started with a marker in its
environment, which its children inherit and which the kernel shows in /proc/PID/environ: a process
is ours when it carries the marker, or when it is the recorded leader with the recorded start time
in this boot, or belongs to that living leader's session.
"""

import json
import os
import signal
import subprocess
import time

MARKER = "SCORIA_LAB_OWNER"
# Names of what is no component: short-lived clients, which may run at any time, and steps of
# making a lab, which run under its lock (so one found at the start of an `up` is a leftover).
HELPER, SETUP = "helper", "setup"
# Would redirect or confuse what the lab starts.
UNSET = ("CEPH_CONF", "CEPH_ARGS", "CEPH_KEYRING", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
         "LISTEN_FDS", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "ERL_EPMD_PORT", MARKER)


def _boot_id():
    with open("/proc/sys/kernel/random/boot_id") as f:
        return f.read().strip()


def stat(pid):
    """(state letter, parent, session, start time), or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19])


def clean_env(lab, name, extra=None):
    """The caller's environment without what would mislead, with the marker and with `extra`."""
    env = {k: v for k, v in os.environ.items()
           if k not in UNSET and not k.startswith(("RABBITMQ_", "MYSQL_", "MARIADB_"))}
    env.update(LC_ALL="C.UTF-8", LANG="C.UTF-8", XDG_CACHE_HOME=str(lab.cache / "xdg"))
    env.update(extra or {})
    env[MARKER] = f"{lab.state['id']}/{name}"
    return env


def _record(lab, name):
    try:
        return json.loads(lab.path("run", name + ".json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def leader(lab, name):
    """The pid that was started for a component, if that very process still lives."""
    rec = _record(lab, name)
    if not rec or rec["boot"] != _boot_id():
        return None
    st = stat(rec["pid"])
    if st is None or st[0] in "ZX" or st[3] != rec["start"]:
        return None
    return rec["pid"]


def scan(lab):
    """Every living process of this lab: {component: [pid, ...]}, leaders first."""
    found = {}
    prefix = f"{MARKER}={lab.state['id']}/".encode()
    sessions = {}
    rundir = lab.path("run")
    if rundir.is_dir():
        for path in rundir.glob("*.json"):
            pid = leader(lab, path.stem)
            if pid:
                sessions[pid] = path.stem
                found[path.stem] = [pid]
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        pid = int(entry)
        st = stat(pid)
        if st is None or st[0] in "ZX":
            continue
        name = sessions.get(st[2])
        if name is None:
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    environ = f.read()
            except OSError:
                continue
            at = 0 if environ.startswith(prefix) else environ.find(b"\0" + prefix) + 1
            if at == 0 and not environ.startswith(prefix):
                continue
            name = environ[at + len(prefix):].partition(b"\0")[0].decode(errors="replace")
        pids = found.setdefault(name, [])
        if pid not in pids:
            pids.append(pid)
    return found


def start(lab, name, argv, env=None, cwd=None):
    """Start a component detached from us, its output in its log, its identity on record."""
    logdir = lab.path("log")
    logdir.mkdir(exist_ok=True)
    lab.path("run").mkdir(exist_ok=True)
    with open(logdir / f"{name}.log", "ab") as log:
        log.write(f"=== {time.strftime('%F %T')} lab starts {name}\n".encode())
        log.flush()
        child = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=log,
                                 stderr=log, start_new_session=True, cwd=cwd or lab.root,
                                 env=clean_env(lab, name, env))
    st = stat(child.pid)
    rec = {"pid": child.pid, "start": st[3] if st else 0, "boot": _boot_id(),
           "argv": [str(a) for a in argv]}
    lab.path("run", name + ".json").write_text(json.dumps(rec))
    return child


def record_argv(lab, name):
    rec = _record(lab, name)
    return rec["argv"] if rec else None


def paused(pids):
    """Whether all of them are stopped by a signal."""
    states = [st[0] for st in map(stat, pids) if st]
    return bool(states) and all(s in "Tt" for s in states)


def send(pids, sig):
    for pid in pids:
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            pass


def signal_all(lab, names, sig):
    """Signal every process of the components, again until no new one turns up."""
    seen = set()
    for _ in range(5):
        now = scan(lab)
        new = [p for n in names for p in now.get(n, []) if p not in seen]
        if not new:
            break
        send(new, sig)
        seen.update(new)
    return seen


def wait_gone(lab, names, seconds):
    """Names that still have processes after at most so long."""
    end = time.monotonic() + seconds
    while True:
        now = scan(lab)
        left = [n for n in names if now.get(n)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.03)


def kill(lab, names):
    """SIGKILL everything of the components and wait until the kernel has let go."""
    signal_all(lab, names, signal.SIGKILL)
    left = wait_gone(lab, names, 10)
    for name in names:
        if name not in left:
            lab.path("run", name + ".json").unlink(missing_ok=True)
    return left


def terminate(lab, graces):
    """SIGTERM the leaders of {name: grace}; who is left after its grace is killed.

    A paused process gets SIGCONT after it, or it could not act on the first.
    """
    now = scan(lab)
    names = [n for n in graces if now.get(n)]
    for name in names:
        pid = leader(lab, name)
        targets = [pid] if pid else now[name]
        send(targets, signal.SIGTERM)
        send(now[name], signal.SIGCONT)
    begin, orphaned = time.monotonic(), {}
    while True:
        now, at = scan(lab), time.monotonic()
        left = [n for n in names if now.get(n)]
        if not left:
            break
        for name in left:
            if not leader(lab, name):      # children that outlive their parent get a second
                orphaned.setdefault(name, at)
        late = [n for n in left if at > begin + graces[n] or at > orphaned.get(n, at) + 1]
        if late:
            kill(lab, late)
        else:
            time.sleep(0.03)
    for name in graces:
        if not leader(lab, name):
            lab.path("run", name + ".json").unlink(missing_ok=True)
    return wait_gone(lab, list(graces), 0)


def memory(pids):
    """(PSS, RSS) in bytes of these processes together."""
    pss = rss = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as f:
                for line in f:
                    if line.startswith("Pss:"):
                        pss += int(line.split()[1]) * 1024
                    elif line.startswith("Rss:"):
                        rss += int(line.split()[1]) * 1024
        except OSError:
            continue
    return pss, rss


def maps(pid, needle):
    """Whether a file whose name contains `needle` is mapped; None when it cannot be told."""
    try:
        with open(f"/proc/{pid}/maps") as f:
            return any(needle in line for line in f)
    except OSError:
        return None
