"""The command: preparation, the run, the report; and everything as it was before.

The problem: figures are only worth something when it is known what was measured, where and how.
So the command builds what it measures, brings up the lab it measures in, and prints both with the
figures. It needs the database and broker clients of Cinder's virtual environment and goes on
there; whatever it started is stopped at the end, however that comes.
"""

import argparse
import contextlib
import datetime
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

from labkit import auth, env, plan, procs
from labkit.state import REPO, Lab, LabError

from . import results

SECTIONS = ("start", "memory", "ops", "calls", "cpu", "snapshot", "clone", "attach", "floor")
# Named or not at all: the first needs Keystone and Glance, the last has no rival, and all but that much time.
EXTRA = ("image", "backup", "failover", "takeover")
PREPARED = "SCORIA_BENCH_PREPARED"
SERVICES = ("scoria-volume", "cinder-volume")
EPILOG = """\
sections (without an argument all but image, backup, failover and takeover):
  start   from the start of the service to its first answered RPC, by volumes in the database
  memory  PSS of all processes, idle and after 500 operations
  ops     create and delete put straight on the queue: latency and throughput
  calls   get_capabilities and initialize_connection: calls per second and latency
  cpu     CPU of all processes per operation (over what ops and calls do)
  snapshot  create and delete snapshots: latency and throughput
  clone   volumes of snapshots and of volumes
  attach  attachments (attachment_update, attachment_delete)
  image   volumes of images, one and ten at once, and images of a volume: seconds, PSS
  backup  full, incremental and restoration of a half-filled volume of 4 GiB (--quick: 1 GiB), beside stock's
          cinder-backup and librbd alone; PSS of scoria-backup with ten backups at once; by mirroring, apart
  failover  of 10, 100 and 1000 volumes in both modes, there and back, and with the active site killed,
            beside stock (journal mode) and the same librbd calls with nothing around them
  floor   the same librbd calls with nothing around them
  takeover  (Scoria alone) from the kill -9 of one of two members of a Cinder cluster to the end of its
          work by the other

Each sample of scoria-volume has one of stock cinder-volume 29 beside it, taken right before or
after; never both at once. docs/bench.md says what every figure is.

environment: SCORIA_LAB (default target/bench-lab), SCORIA_BIN_DIR (default target/release),
SCORIA_VENV (default target/cinder-venv)
"""


def _parser():
    parser = argparse.ArgumentParser(
        prog="tools/bench", description="Scoria beside stock cinder-volume 29 in the same lab: "
        "medians, ratios, and what was aimed at.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION",
                        help=" ".join(SECTIONS + EXTRA))
    parser.add_argument("--runs", type=int, metavar="N", help="rounds (5)")
    parser.add_argument("--volumes", metavar="N,N", help="failover: other numbers of volumes")
    parser.add_argument("--mode", choices=("journal", "snapshot"), help="failover: in this mode only")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE",
                        help="also write every sample there")
    parser.add_argument("--quick", action="store_true",
                        help="a smoke test of two minutes: one round, small sizes")
    parser.add_argument("--no-build", action="store_true",
                        help="neither install nor build, take the binaries that are there")
    parser.add_argument("--purge", action="store_true", help="remove the lab's data at the end")
    return parser


def _parse(argv):
    parser = _parser()
    args = parser.parse_args(argv)
    known = SECTIONS[:-1] + EXTRA + SECTIONS[-1:]
    unknown = [s for s in args.sections if s not in known]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}'; known: {' '.join(known)}")
    if args.runs is not None and args.runs < 1:
        parser.error("--runs must be at least 1")
    if args.volumes:
        try:
            args.volumes = tuple(int(n) for n in args.volumes.split(","))
        except ValueError:
            parser.error(f"--volumes {args.volumes}: numbers with commas between them")
    args.sections = tuple(s for s in known if s in (args.sections or SECTIONS))
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"{args.json}: there is no such directory")
    return args


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- preparation ------------------------------------------------------------------------------------
def _environment():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPO / "target")
    os.environ.setdefault("SCORIA_LAB", str(REPO / "target" / "bench-lab"))
    os.environ.setdefault("SCORIA_BIN_DIR", str((target / "release").absolute()))


def _prepare(args):
    """Install and build; then become a process of Cinder's environment."""
    if not args.no_build:
        cargo = pathlib.Path.home() / ".cargo/bin"
        if cargo.is_dir():
            os.environ["PATH"] = f"{cargo}:{os.environ.get('PATH', '')}"
        for command in ([REPO / "tools/install"], ["cargo", "build", "--release", "--bins"]):
            say("bench: " + " ".join(map(str, command)))
            done = subprocess.run(command, cwd=REPO, stdout=sys.stderr, check=False)
            if done.returncode:
                raise LabError(f"{command[0]} failed")
    python = Lab().venv / "bin/python"
    if not python.exists():
        raise LabError(f"no Cinder environment in {python.parents[1]}: run tools/install venv")
    sys.stdout.flush()
    os.execve(python, [python, "-B", "-W", "ignore", *sys.argv], {**os.environ, PREPARED: "1"})


def _tool(*words):
    done = subprocess.run([REPO / "tools/lab", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError((done.stderr or done.stdout).strip())


@contextlib.contextmanager
def _lab(purge, mode):
    """The lab with everything but a volume service; afterwards as it was."""
    lab = Lab()
    before = set(procs.scan(lab)) if lab.exists else set()
    host, mode_before = lab.state.get("stock_host", "stock"), auth.mode(lab)
    began = time.monotonic()
    try:
        # Nothing here goes through the API.
        _tool("up", "--auth", mode, "--without", "scoria-volume", "cinder-volume", "cinder-api")
        say(f"bench: lab up after {time.monotonic() - began:.0f} s: {lab.root}")
        lab = Lab()
        every = plan.components(lab)
        for name in SERVICES:
            if every[name].available():
                raise LabError(f"{name}: {every[name].available()}")
        plan.stop(lab, every, list(SERVICES))
        with lab.locked():
            lab.state["stock_host"] = "stock"
            lab.save()
            os.environ.update(env.variables(lab))
            yield lab, every
    finally:
        lab = Lab()
        if lab.exists:
            every = plan.components(lab)
            with lab.locked():
                lab.state["stock_host"] = host
                lab.save()
            started = [n for n in every if n not in before]
            if not before or purge:
                _tool("down", *(["--purge"] if purge else []))
            else:
                plan.stop(lab, every, started)
                if mode_before != mode:
                    _tool("up", "--auth", mode_before, "--without", *SERVICES)
                for name in SERVICES:
                    if name in before:
                        _tool("start", name)


# ---- what was measured, and where -------------------------------------------------------------------
def _output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    except OSError:
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def _sizes(args, sizes, drill):
    yield f"sections {' '.join(args.sections)}"
    if set(args.sections) - {"backup", "failover", "takeover"}:
        operations = ", ".join(f"{k}: {v}" for k, v in sizes.operations.items())
        yield (f"{sizes.runs} round{'s' * (sizes.runs > 1)}; operations by number in flight {operations}; "
               f"calls for {sizes.seconds:g} s; 1 GiB volumes, not mirrored")
    if "failover" in args.sections:
        yield (f"{drill.runs} round{'s' * (drill.runs > 1)} of failovers; empty volumes of 1 GiB; "
               f"{drill.threads} threads of the floor, {drill.threads} volumes at once of scoria")


def _header(args, sizes, drill, binary):
    import importlib.metadata
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) / 2**20
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")),
                     platform.machine())
    packages = {name: _output("dpkg-query", "-W", "-f", "${Version}", package) for name, package in (
        ("Ceph", "librbd1"), ("RabbitMQ", "rabbitmq-server"), ("MariaDB", "mariadb-server-core"))}
    load = os.getloadavg()[0]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores ({model}), {memory:.1f} GiB, Linux "
                   f"{platform.release()}, load {load:.1f} before the start",
        "scoria": f"{_output(str(binary), '--version')} ({binary.parent.name}), commit "
                  f"{_output('git', 'describe', '--always', '--dirty', '--abbrev=10')}",
        "stock": f"cinder {importlib.metadata.version('cinder')}, Python {platform.python_version()}",
        "beside": ", ".join(f"{k} {v}" for k, v in packages.items()),
        "sizes": "; ".join(_sizes(args, sizes, drill)),
    }


def _report(header, results_):
    for key, value in header.items():
        print(f"{key:<9}{value}")
    print()
    print("median (min–max) of the rounds; ratio of the medians (min–max of the rounds' ratios)")
    print()
    for line in results.table(results_):
        print(line)
    print()
    print(results.summary(results_), flush=True)


def _measure(args, lab, every):
    sys.path.insert(0, str(REPO / "tests" / "common"))
    from . import rows as rows_module
    os.environ["OS_PROJECT_ID"] = rows_module.PROJECT        # of contexts and messages
    from . import backup, broker, failover, floor, pins, sections, sides, takeover
    from labkit import scoria
    sizes = sections.Sizes.quick() if args.quick else sections.Sizes()
    sizes.runs = args.runs or sizes.runs
    drill = failover.Sizes.quick() if args.quick else failover.Sizes()
    drill.runs, drill.counts = args.runs or drill.runs, args.volumes or drill.counts
    drill.modes = (args.mode,) if args.mode else drill.modes
    header = _header(args, sizes, drill, scoria.binary())
    found = results.Results()
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(contextlib.closing(
            rows_module.Rows(os.environ["SCORIA_DATABASE_URL"].replace("+pymysql", ""))))
        client = stack.enter_context(contextlib.closing(
            broker.Broker(os.environ["SCORIA_TRANSPORT_URL"])))
        ceph = stack.enter_context(contextlib.closing(floor.Floor(os.environ["SITE_A_CONF"])))

        def purge():
            # By a connection of its own: one that has seen its cluster die may not answer again.
            with contextlib.closing(floor.Floor(os.environ["SITE_A_CONF"])) as fresh:
                fresh.purge(rows.ours())
            rows.purge()

        purge()                    # of an interrupted run
        stack.callback(purge)
        glance = None
        if "image" in args.sections:
            from . import images
            glance = stack.enter_context(contextlib.closing(images.Glance()))
        began = time.monotonic()
        compared = tuple(s for s in args.sections if s not in ("backup", "failover", "takeover"))

        def tell(text):
            say(f"{time.monotonic() - began:6.0f} s  {text}")

        confs = os.environ["SITE_A_CONF"], os.environ["SITE_B_CONF"]
        try:
            services = sides.both(lab, every)
            if compared:
                sections.Bench(services, rows, client, ceph, glance, sizes, compared, found, tell).run()
            if "backup" in args.sections:
                gib, at_once = (1, 3) if args.quick else (4, 10)
                backup.Backups(lab, every, services[0], rows, client, ceph, sizes, found,
                               tell).run(sizes.runs, gib, at_once, pins.Pins(confs))
            if "failover" in args.sections:
                with contextlib.closing(failover.Failovers(lab, every, services, rows, client, confs, drill,
                                                           found, tell)) as failovers:
                    failovers.run()
            if "takeover" in args.sections:
                takeover.Takeover(lab, every, rows, client, found, tell).run(sizes.runs)
        except broker.BenchError as e:
            raise LabError(f"{e} (logs: {lab.path('log')})") from None
        finally:                   # also what an interrupted run has
            header["took"] = f"{time.monotonic() - began:.0f} s"
            if found.all():
                _report(header, found)
                if args.json:
                    args.json.write_text(found.as_json(header))
    return 0


def main(argv=None):
    args = _parse(sys.argv[1:] if argv is None else argv)
    os.umask(0o077)
    os.environ.pop(procs.MARKER, None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if PREPARED not in os.environ:
            _environment()
            _prepare(args)
        mode = "keystone" if "image" in args.sections else "noauth"
        with _lab(args.purge, mode) as (lab, every):
            return _measure(args, lab, every)
    except LabError as e:
        say(f"bench: {e}")
        return 1
    except KeyboardInterrupt:
        return 130
