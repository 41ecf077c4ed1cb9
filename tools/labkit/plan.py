"""What to start, stop or signal, and in which order.

The problem: an `up` that starts one thing after the other takes a minute, most of it waiting; but
a scheduler without a database dies. So every component waits only for what it needs, each in a
thread of its own, and the few steps that are no process (pools, peers) take part as if they were.
"""

import sys
import threading
import time

from . import backup, barbican, ceph, cinder, glance, keystone, mariadb, procs, rabbitmq, scoria
from .state import LabError


def components(lab):
    """All components by name, in the order of the table."""
    every = [mariadb.MariaDb(lab), rabbitmq.Epmd(lab), rabbitmq.RabbitMq(lab),
             *ceph.components(lab), keystone.Keystone(lab), glance.GlanceApi(lab), barbican.Barbican(lab),
             cinder.Api(lab), cinder.Scheduler(lab), scoria.ScoriaVolume(lab),
             scoria.SecondScoriaVolume(lab), cinder.StockVolume(lab), backup.StockBackup(lab), backup.ScoriaBackup(lab),
             backup.SecondScoriaBackup(lab)]
    return {c.name: c for c in every}


def expand(every, names):
    """Component names for what the user wrote; a site stands for all that belongs to it."""
    found = []
    for name in names:
        if name in ("site-a", "site-b"):
            group = [c.name for c in every.values() if c.site == name[-1]]
        elif name in every:
            group = [name]
        else:
            raise LabError(f"unknown component '{name}'; known: site-a site-b "
                           + " ".join(every))
        found += [n for n in group if n not in found]
    return found


def with_needs(every, names):
    """The names and everything they need, needs first."""
    found = []

    def visit(name):
        for need in every[name].needs:
            visit(need)
        if name not in found:
            found.append(name)

    for name in names:
        visit(name)
    return found


class _Task:
    def __init__(self, name, needs, work):
        self.name, self.needs, self.work = name, needs, work
        self.done = threading.Event()
        self.error, self.failed = None, False
        self.seconds = 0.0


def run(tasks, report=None):
    """Run tasks in parallel, each after its needs; raise what went wrong, roots first."""
    by_name = {t.name: t for t in tasks}

    def one(task):
        try:
            for need in task.needs:
                if need in by_name:
                    by_name[need].done.wait()
                    if by_name[need].failed:
                        task.failed = True     # the need reports the cause
                        return
            begin = time.monotonic()
            said = task.work()
            task.seconds = time.monotonic() - begin
            if report:
                report(task, said)
        except LabError as e:
            task.error, task.failed = str(e), True
        except Exception as e:                 # a bug or the system: say where it came from
            task.error, task.failed = f"{task.name}: {type(e).__name__}: {e}", True
        finally:
            task.done.set()

    threads = [threading.Thread(target=one, args=(t,), daemon=True) for t in tasks]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    errors = [t.error for t in tasks if t.error]
    if errors:
        raise LabError("\n".join(errors))


def up(lab, every, names, say):
    """Start these components and make what a lab has to have in them."""
    tasks = [_Task(n, every[n].needs, every[n].start) for n in names]
    sites = {}
    for site in ("a", "b"):
        daemons = [n for n in names if every[n].site == site and not n.startswith("rbd-mirror")]
        osds = [n for n in daemons if "-osd." in n]
        if osds:
            sites[site] = f"site-{site}-pools"
            make = ceph.wait_ready if lab.state.get("bare") else ceph.make_pools
            tasks.append(_Task(sites[site], daemons, lambda s=site, m=make: m(lab, s)))
    mirrored = all(f"rbd-mirror-{s}" in names for s in sites) and not lab.state.get("bare")
    if len(sites) == 2 and mirrored:
        tasks.append(_Task("peers", list(sites.values()), lambda: ceph.make_peers(lab)))
        for t in tasks:
            if t.name.startswith("rbd-mirror-"):
                t.needs = (*t.needs, "peers")
        tasks.append(_Task("mirroring", ["rbd-mirror-a", "rbd-mirror-b"],
                           lambda: wait_mirroring(lab)))

    def report(task, said):
        if said or task.seconds > 0.5:
            say(f"{task.name:<22} {'up' if task.name in every else 'done'}"
                f" after {task.seconds:.1f} s")

    run(tasks, report)


def wait_mirroring(lab, seconds=60):
    """Until both daemons call themselves healthy; a warning when they do not, since images in
    trouble are what tests are about."""
    for site in ("a", "b"):
        lost = ceph.give_up_lost(lab, site)
        if lost:
            print(f"lab: warning: site {site} has lost {lost} objects", file=sys.stderr)
    end = time.monotonic() + seconds
    while True:
        found = {s: ceph.mirroring_health(lab, s) for s in ("a", "b")}
        if all(h and h[0] == "OK" for h in found.values()):
            return
        if time.monotonic() > end:
            print(f"lab: warning: rbd-mirror is not healthy after {seconds} s: {found}",
                  file=sys.stderr)
            return
        time.sleep(0.2)


def start(lab, every, names, say, args=(), wait=True):
    """Start components that the user named, the others they need being taken as given."""
    def work(name):
        return lambda: every[name].start(args if len(names) == 1 else (), wait)

    word = "up" if wait else "started"
    run([_Task(n, every[n].needs, work(n)) for n in names],
        lambda t, said: say(f"{t.name} " + (f"{word} after {t.seconds:.1f} s" if said
                                            else "was running")))


# Volume services first, while all they may still want to tell is there; a site's mirror daemon
# before its cluster, so that it lets go of its locks; monitors last, since the others take leave.
STOP_ORDER = (("scoria-volume", "cinder-volume", "cinder-backup", "scoria-backup", "cinder-api", "cinder-scheduler", "glance-api", "barbican",
               "rbd-mirror"),
              ("site-a-osd", "site-b-osd", "site-a-mgr", "site-b-mgr", "keystone", "mariadb", "rabbitmq"),
              ("",))


HURRY = (1.5, 1.5, 0.5)        # what `down`, which has to take less than 5 s, grants each of them


def stop(lab, every, names, hurry=False):
    """SIGTERM, then SIGKILL after each component's grace."""
    left = list(names)
    for prefixes, most in zip(STOP_ORDER, HURRY):
        wave = [n for n in left if n.startswith(prefixes)]
        left = [n for n in left if n not in wave]
        graces = {n: every[n].grace if n in every else 1.0 for n in wave}
        if hurry:
            graces = {n: min(g, most) for n, g in graces.items()}
        bad = procs.terminate(lab, graces)
        if bad:
            raise LabError("cannot be stopped: " + ", ".join(bad))
