"""The commands of tools/lab.

The problem: a lab is used by people at a prompt and by tests; both want few, predictable commands
that may be repeated, that say what went wrong in one line and return it as a status.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from . import auth, ceph, cinder, env, keys, mariadb, plan, procs, rabbitmq, scoria, status
from .state import REPO, SECRETS, Lab, LabError

EPILOG = """\
components: mariadb epmd rabbitmq site-X-mon site-X-mgr site-X-osd.N rbd-mirror-X (X = a, b)
cinder-api cinder-scheduler scoria-volume, on demand scoria-backup, cinder-volume and cinder-backup (the
stock services), scoria-volume-2 (another member of a Cinder cluster) and scoria-backup-2 (the backup
service of another host), and with --auth keystone also keystone and glance-api, with --keys barbican also
barbican; site-a and site-b stand for everything of a site.

Keystone and Glance: `up --auth keystone` installs them if they are missing (tools/install auth), starts
them and lets Cinder and Scoria use them. Glance has a store on either site: ceph (site a, the default)
and ceph-b. Users are admin, demo (no administrator) and the services' own cinder, glance, nova; `env`,
`cinder`, `glance` and `exec` act for admin or whom SCORIA_LAB_USER names. Nothing serves the compute
endpoint: its port (SCORIA_NOVA_ENDPOINT in `env`) is left to a test that records what Nova is told.
A lab stays in its mode. `up --auth noauth` or `up --auth keystone` changes it, and restarts what reads
it; the data stays, volumes belonging to the project that they were made in.

environment: SCORIA_LAB (the lab's directory, default target/lab), SCORIA_BIN_DIR (where
scoria-volume is, default the newest of target/debug and target/release), SCORIA_VENV (Cinder's
virtual environment, default target/cinder-venv), SCORIA_AUTH_VENV (that of Keystone and Glance,
default target/auth-venv), SCORIA_BARBICAN_VENV (Barbican's,
default target/barbican-venv), SCORIA_LAB_USER (admin), TMPDIR (where the sockets' directory is made)
"""


def say(text):
    print(text, flush=True)


def _pass_on(argv, environ=None):
    """Become another program, which keeps our terminal, signals and status."""
    sys.stdout.flush()
    os.execvpe(str(argv[0]), [str(a) for a in argv], environ or os.environ.copy())


# ---- commands that change the lab -----------------------------------------------------------------
def up(lab, args):
    begin = time.monotonic()
    if not lab.exists:
        lab.create()
    lab.ensure_sockdir()
    if args.rabbit_mode:
        lab.state["rabbit_mode"] = args.rabbit_mode
    if args.osds:
        if lab.done("site-a-keys") and args.osds != lab.state["osds"]:
            raise LabError("the number of OSDs is chosen with the first up: down --purge first")
        lab.state["osds"] = args.osds
    if args.bare and not lab.state.get("bare"):
        if lab.done("site-a-keys"):
            raise LabError("a bare lab is chosen with the first up: down --purge first")
        lab.state["bare"] = True
    new_timeout = args.watch_timeout and args.watch_timeout != lab.state["watch_timeout"]
    if new_timeout:
        lab.state["watch_timeout"] = args.watch_timeout
    lab.save()
    procs.kill(lab, [procs.SETUP])      # of an `up` that was killed
    restarted = [*_new_auth(lab, args.auth), *_new_keys(lab, args.keys), *_new_secrets(lab)]
    every = plan.components(lab)
    without = plan.expand(every, args.without or [])
    named = plan.expand(every, args.components)
    names = plan.with_needs(every, named or [c.name for c in every.values() if c.by_default])
    names += [n for n in plan.with_needs(every, restarted) if n not in names]
    names = [n for n in names if n not in without]
    for name in list(names):
        reason = every[name].available()
        if reason and (name in named or name != scoria.BINARY):
            raise LabError(f"{name}: {reason}")
        if reason:
            print(f"lab: warning: {name} left out: {reason}", file=sys.stderr)
            names.remove(name)
    _new_rabbit_mode(lab, every, names, without)
    for site in ("a", "b"):     # clients' files are there even when a site is left out
        ceph.create_identity(lab, site)
    cinder.write_conf(lab)
    scoria.write_conf(lab)
    plan.up(lab, every, names, say)
    if new_timeout:
        ceph.set_watch_timeout(lab)
    say(f"lab up in {time.monotonic() - begin:.1f} s: {lab.root}")


def _new_auth(lab, wanted):
    """Go over to another mode: everybody who reads it is stopped. Says who ran and is to run again."""
    if (wanted or auth.mode(lab)) == "keystone" and not (lab.auth_venv / ".scoria-hash").exists():
        if subprocess.call([REPO / "tools/install", "auth"], stdin=subprocess.DEVNULL):
            raise LabError("Keystone and Glance could not be installed; once `tools/install auth` "
                           "succeeds, run this again")
    if wanted is None or wanted == auth.mode(lab):
        return []
    running = [n for n in (*auth.CLIENTS, *auth.COMPONENTS) if procs.leader(lab, n)]
    plan.stop(lab, plan.components(lab), running)
    auth.choose(lab, wanted)
    return [n for n in running if n not in auth.COMPONENTS]


def _new_keys(lab, wanted):
    """The same for who keeps the keys of encrypted volumes."""
    target = wanted or keys.mode(lab)
    if auth.on(lab) and target == "barbican" and not (lab.barbican_venv / ".scoria-hash").exists():
        if subprocess.call([REPO / "tools/install", "barbican"], stdin=subprocess.DEVNULL):
            raise LabError("Barbican could not be installed; once `tools/install barbican` succeeds, run this again")
    if wanted is None or wanted == keys.mode(lab):
        return []
    running = [n for n in (*auth.CLIENTS, "glance-api", keys.COMPONENT) if procs.leader(lab, n)]
    keys.choose(lab, wanted)
    plan.stop(lab, plan.components(lab), running)
    return [n for n in running if n != keys.COMPONENT]


def _new_secrets(lab):
    """Give an older lab what later ones are made with: who reads it is stopped. Says who ran."""
    if not lab.add_secrets(*SECRETS):
        return []
    lab.save()
    running = [n for n in auth.CLIENTS if procs.leader(lab, n)]
    plan.stop(lab, plan.components(lab), running)
    return running


def _new_rabbit_mode(lab, every, names, without):
    """Queues of another kind are in the way: everybody off the broker, new vhost, back on who was
    on it and is wanted."""
    made = lab.state.get("rabbit_mode_made")
    if made is None or made == lab.state["rabbit_mode"]:
        return
    users = ["scoria-volume", scoria.SECOND, "cinder-volume", "cinder-backup", "cinder-api",
             "cinder-scheduler"]
    running = [n for n in users if procs.leader(lab, n)]
    plan.stop(lab, every, users)
    names += [n for n in running if n not in names and n not in without]
    if "rabbitmq" not in names:
        names[:0] = [n for n in ("epmd", "rabbitmq") if n not in names]


def down(lab, args):
    if not lab.exists:
        say(f"no lab in {lab.root}")
        return
    begin = time.monotonic()
    every = plan.components(lab)
    names = [n for n in dict.fromkeys([*every, *procs.scan(lab)]) if n != procs.HELPER]
    if args.purge:
        left = procs.kill(lab, names)
        if left:
            raise LabError("cannot be killed: " + ", ".join(left))
        lab.purge()
    else:
        plan.stop(lab, every, names, hurry=True)
        lab.remove_sockdir()
    say(f"lab down in {time.monotonic() - begin:.1f} s" + (", purged" if args.purge else ""))


def _named(lab, args):
    lab.require()
    lab.ensure_sockdir()
    every = plan.components(lab)
    return every, plan.expand(every, args.names)


def start(lab, args):
    lab.require()
    if args.host and args.host != lab.state["stock_host"]:
        if procs.leader(lab, "cinder-volume"):
            raise LabError(f"cinder-volume runs as host {lab.state['stock_host']}: stop it first")
        lab.state["stock_host"] = args.host
    lab.ensure_sockdir()
    lab.save()
    every, names = _named(lab, args)
    for name in names:
        if every[name].available():
            raise LabError(f"{name}: {every[name].available()}")
    if not args.no_needs:
        names = [n for n in plan.with_needs(every, names)
                 if n in names or not procs.leader(lab, n)]
    plan.start(lab, every, names, say, args.extra, not args.no_wait)


def stop(lab, args):
    every, names = _named(lab, args)
    plan.stop(lab, every, names)


def kill(lab, args):
    _, names = _named(lab, args)
    left = procs.kill(lab, names)
    if left:
        raise LabError("cannot be killed: " + ", ".join(left))


def pause(lab, args):
    _, names = _named(lab, args)
    if not procs.signal_all(lab, names, signal.SIGSTOP):
        raise LabError("nothing of that runs: " + " ".join(args.names))


def resume(lab, args):
    _, names = _named(lab, args)
    paused = [name for name, pids in procs.scan(lab).items() if name in names and procs.paused(pids)]
    procs.signal_all(lab, names, signal.SIGCONT)
    for site in ("a", "b"):
        # Not of those that ran: peering stops their clients for seconds, and loses their watches.
        if any(name.startswith(f"site-{site}-osd") for name in paused):
            ceph.peer_again(lab, site)


def restart(lab, args):
    stop(lab, args)
    start(lab, args)


# ---- commands that look at it, or use it ----------------------------------------------------------
def show_status(lab, _args):
    lab.require()
    return 0 if status.show(lab, plan.components(lab)) else 1


def logs(lab, args):
    lab.require()
    files = []
    every = plan.components(lab)
    for name in plan.expand(every, [args.name]):
        files.append(lab.path("log", name + ".log"))
        if every[name].site:
            what = name.split("-", 2)[2] if name.startswith("site-") else name
            files += sorted(ceph.site_dir(lab, every[name].site).joinpath("log").glob(
                f"{what.split('.')[0].removesuffix('-a').removesuffix('-b')}*.log"))
    if name == "rabbitmq":
        files += sorted(lab.path("rabbitmq", "log").glob("*.log"))
    files = [f for f in files if f.exists()]
    if not files:
        raise LabError(f"{args.name} has no log yet")
    _pass_on(["tail", "-n", str(args.lines), *(["-F"] if args.follow else []), *files])


def show_env(lab, _args):
    lab.require()
    sys.stdout.write(env.exports(lab))


def run_cinder(lab, args):
    lab.require()
    _pass_on([lab.venv / "bin/cinder", *args.args], env.applied(lab, {
        **cinder.client_environment(lab), "XDG_CACHE_HOME": str(lab.cache / "xdg"),
        "CINDERCLIENT_UUID_CACHE_DIR": str(lab.path("tmp"))}))


def run_glance(lab, args):
    """Its client keeps schemas in $HOME."""
    lab.require()
    if not auth.on(lab):
        raise LabError(auth.unavailable(lab))
    home = lab.path("home")
    home.mkdir(exist_ok=True)
    _pass_on([lab.venv / "bin/glance", *args.args],
             env.applied(lab, {**auth.client_environment(lab), "HOME": str(home)}))


def run_ceph_tool(lab, args):
    lab.require()
    environ = {k: v for k, v in os.environ.items() if k not in procs.UNSET}
    _pass_on([args.command, "-c", ceph.client_conf(lab, args.site), *args.args], environ)


def run_sql(lab, args):
    lab.require()
    argv, extra = mariadb.client(lab, args.args)
    _pass_on(argv, {**os.environ, **extra})


def run_rabbitmqctl(lab, args):
    """Queue commands mean the lab's vhost unless another is named."""
    lab.require()
    words = list(args.args)
    if words and words[0] in rabbitmq.VHOST_COMMANDS and not {"-p", "--vhost"} & set(words):
        words[1:1] = ["-p", rabbitmq.VHOST]
    argv, environ = rabbitmq.ctl_command(lab, words)
    _pass_on(argv, environ)


def run_exec(lab, args):
    """Any command with the lab's environment set."""
    lab.require()
    if not args.args:
        raise LabError("exec: no command given")
    variables = env.variables(lab)
    path = f"{lab.venv}/bin:{os.environ.get('PATH', '')}"
    sys.exit(subprocess.call(args.args, env=env.applied(lab, {**variables, "PATH": path})))


# Commands whose arguments belong to another program, and how many words are ours.
PASSED_ON = {"cinder": 1, "glance": 1, "sql": 1, "rabbitmqctl": 1, "exec": 1, "rbd": 2, "ceph": 2,
             "rados": 2}
CHANGING = (up, down, start, stop, kill, pause, resume, restart)


def _parser():
    parser = argparse.ArgumentParser(
        prog="tools/lab", description="Cinder, RabbitMQ, MariaDB and two mirrored Ceph clusters "
        "as ordinary processes on loopback.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name, work, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(work=work)
        return sub

    sub = add("up", up, "start everything, or the named components and what they need; "
              "a second time it starts only what is missing")
    sub.add_argument("components", nargs="*", metavar="COMPONENT")
    sub.add_argument("--without", nargs="+", action="extend", metavar="NAME")
    sub.add_argument("--auth", choices=list(auth.MODES),
                     help="without Keystone and Glance (noauth, the default) or with them; remembered, and "
                     "changed by naming the other")
    sub.add_argument("--keys", choices=list(keys.MODES),
                     help="one key in a file for all encrypted volumes (fixed, the default), or Barbican, which "
                     "needs --auth keystone; remembered")
    sub.add_argument("--rabbit-mode", choices=list(rabbitmq.MODES),
                     help="how queues are declared; remembered")
    sub.add_argument("--watch-timeout", type=int, metavar="SECONDS",
                     help="osd_client_watch_timeout (10; Ceph's default is 30); remembered")
    sub.add_argument("--osds", type=int, metavar="N", help="OSDs per site, with the first up (1)")
    sub.add_argument("--bare", action="store_true",
                     help="clusters without pools, peers and rbd-mirror, with the first up; start rbd-mirror-a and "
                          "rbd-mirror-b when there is something to mirror")
    sub = add("down", down, "stop everything; the data stays")
    sub.add_argument("--purge", action="store_true", help="remove the data as well")
    add("status", show_status, "table of components; status 1 when one that runs is not well")
    for name, work, text in (
            ("start", start, "start components; after -- arguments for a single one"),
            ("stop", stop, "SIGTERM, then SIGKILL after a grace"),
            ("kill", kill, "SIGKILL every process of the components"),
            ("pause", pause, "SIGSTOP every process of the components"),
            ("resume", resume, "SIGCONT every process of the components"),
            ("restart", restart, "stop and start")):
        sub = add(name, work, text)
        sub.add_argument("names", nargs="+", metavar="NAME")
        if work in (start, restart):
            sub.add_argument("--host", help="host of the stock cinder-volume (default 'stock'; "
                             "'lab' takes over Scoria's backends); remembered")
            sub.add_argument("--no-needs", action="store_true",
                             help="only these, not what they need (which may be away)")
            sub.add_argument("--no-wait", action="store_true",
                             help="return when they are started, not when they serve")
    sub = add("logs", logs, "the end of a component's logs")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("-f", "--follow", action="store_true")
    sub.add_argument("-n", "--lines", type=int, default=200)
    add("env", show_env, "export lines for a shell: eval \"$(tools/lab env)\"")
    for name, work, text in (("cinder", run_cinder, "python-cinderclient on the lab's API"),
                             ("glance", run_glance, "python-glanceclient on the lab's Glance"),
                             ("sql", run_sql, "mariadb client on the lab's Cinder database"),
                             ("rabbitmqctl", run_rabbitmqctl, "rabbitmqctl on the lab's node"),
                             ("exec", run_exec, "a command with the lab's environment")):
        add(name, work, text).usage = f"tools/lab {name} [ARGS...]"
    for name in ("rbd", "ceph", "rados"):
        sub = add(name, run_ceph_tool, f"{name} on a site, as client.admin")
        sub.add_argument("site", choices=("a", "b"))
        sub.usage = f"tools/lab {name} a|b [ARGS...]"
    return parser


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    extra = []
    if argv[:1] in (["start"], ["restart"]) and "--" in argv:
        at = argv.index("--")
        argv, extra = argv[:at], argv[at + 1:]
    passed = None            # argparse would take a leading -x of theirs for ours
    if argv[:1] and argv[0] in PASSED_ON:
        at = PASSED_ON[argv[0]]
        argv, passed = argv[:at], argv[at:]
    args = _parser().parse_args(argv)
    args.extra, args.host, args.args = extra, getattr(args, "host", None), passed
    os.umask(0o077)
    os.environ.pop(procs.MARKER, None)
    try:
        lab = Lab()
        if args.work in CHANGING and (args.work is up or lab.exists):
            with lab.locked():
                return args.work(lab, args) or 0
        return args.work(lab, args) or 0
    except LabError as e:
        print(f"lab: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
