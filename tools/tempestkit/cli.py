"""The command: a lab with Keystone and Glance, one volume service in it, the suites, the comparison.

The problem: the two services answer for the same host, so only one may run at a time, and what is compared
must be run in the same lab; the tests themselves come from PyPI, into an environment of their own, in which
this command goes on once it is there.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import signal
import subprocess
import sys
import time

from labkit import auth, plan, procs
from labkit.state import REPO, SITES, Lab, LabError

from . import network, results, run, suites

PREPARED = "SCORIA_TEMPEST_PREPARED"
SERVICES = {results.SCORIA: "scoria-volume", results.STOCK: "cinder-volume"}
HOST = "lab"                   # of both: stock takes Scoria's backends over
EPILOG = """\
suites:
  tempest          tempest.api.volume, and the API and role tests of cinder-tempest-plugin
  cinderclient     the functional tests of python-cinderclient: the `cinder` command
  sdk              the functional tests of openstacksdk for block storage
  openstackclient  the functional tests of python-openstackclient: `openstack volume`

The results of a side are kept in target/tempest until its next run. A run with REGEX replaces only the
tests that it ran. `compare` returns 1 when stock passes a test that Scoria does not.

environment: SCORIA_LAB (default target/tempest-lab), SCORIA_BIN_DIR (where scoria-volume is, default the
newest of target/debug and target/release), SCORIA_VENV, SCORIA_AUTH_VENV (see tools/lab),
SCORIA_TEMPEST_VENV (the suites, default target/tempest-venv), SCORIA_TEMPEST_DIR (results, default
target/tempest)
"""


def say(text):
    print(text, file=sys.stderr, flush=True)


def home():
    """Where configuration and results are."""
    return pathlib.Path(REPO, os.environ.get("SCORIA_TEMPEST_DIR") or "target/tempest")


def _parser():
    parser = argparse.ArgumentParser(
        prog="tools/tempest", description="OpenStack's own API tests against Scoria, test by test beside stock "
        "cinder-volume.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    sub = commands.add_parser("run", help="run the suites against Scoria, or against stock")
    sub.add_argument("regexes", nargs="*", metavar="REGEX", help="only tests whose name has it")
    sub.add_argument("--stock", action="store_true", help="against stock cinder-volume")
    sub.add_argument("--both", action="store_true", help="against either, one after the other")
    sub.add_argument("--suite", choices=list(suites.SUITES), action="append", help="only this one (may be repeated)")
    sub.add_argument("--jobs", type=int, default=4, metavar="N", help="tests at a time (4)")
    sub.add_argument("--keep", action="store_true", help="leave the lab running at the end")
    sub = commands.add_parser("compare", help="both sides, test by test")
    sub.add_argument("--summary", action="store_true", help="only counts and what is not the same")
    return parser


# ---- preparation ----------------------------------------------------------------------------------------
def _go_on_in_the_environment():
    """Install what is missing and become a process of the suites' environment."""
    if subprocess.call([REPO / "tools/install", "tempest"], stdout=sys.stderr, stdin=subprocess.DEVNULL):
        raise LabError("the suites could not be installed")
    venv = pathlib.Path(REPO, os.environ.get("SCORIA_TEMPEST_VENV") or "target/tempest-venv")
    os.environ.setdefault("SCORIA_LAB", str(REPO / "target" / "tempest-lab"))
    python = venv / "bin/python"
    os.execve(python, [python, "-B", "-W", "ignore", *sys.argv], {**os.environ, PREPARED: "1"})


def _tool(*words):
    done = subprocess.run([REPO / "tools/lab", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError((done.stderr or done.stdout).strip())


@contextlib.contextmanager
def _lab(keep):
    """The lab with Keystone, Glance and cinder-backup; afterwards as it was."""
    lab = Lab()
    before = set(procs.scan(lab)) if lab.exists else set()
    host, mode = lab.state.get("stock_host", "stock"), auth.mode(lab)
    began = time.monotonic()
    try:
        _tool("up", "--auth", "keystone", "--without", *SERVICES.values())
        _tool("start", "cinder-backup")
        say(f"tempest: lab up after {time.monotonic() - began:.0f} s: {lab.root}")
        yield
    finally:
        if not keep:
            _restore(before, host, mode)


def _restore(before, host, mode):
    if not before:
        _tool("down")
        return
    lab = Lab()
    with lab.locked():
        plan.stop(lab, plan.components(lab), [n for n in procs.scan(lab) if n not in before and n != procs.HELPER])
    if auth.mode(Lab()) != mode:
        _tool("up", "--auth", mode, "--without", *SERVICES.values())
    for service in SERVICES.values():
        if service in before:
            _tool("start", "--host", host, service)


def _serve(side):
    """The volume service of that side, and no other."""
    other = next(s for who, s in SERVICES.items() if who != side)
    _tool("stop", other)
    _tool("start", *(["--host", HOST] if side == results.STOCK else []), SERVICES[side])


def _header(side):
    def git():
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=REPO,
                              capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"

    def cinder():
        done = subprocess.run([Lab().venv / "bin/python", "-c", "import importlib.metadata as m; "
                               "print(m.version('cinder'))"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"

    version = importlib.metadata.version
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "service": f"commit {git()}" if side == results.SCORIA else f"cinder {cinder()}",
        "suites": ", ".join(f"{name} {version(name)}" for name in (
            "tempest", "cinder-tempest-plugin", "python-cinderclient", "openstacksdk",
            "python-openstackclient"))}


# ---- the commands ---------------------------------------------------------------------------------------
def _file(side):
    return home() / f"{side}.json"


def _run(args):
    home().mkdir(parents=True, exist_ok=True)
    sides = [results.SCORIA, results.STOCK] if args.both else [results.STOCK if args.stock else results.SCORIA]
    with _lab(args.keep):
        lab = Lab()
        for site in SITES:
            # As devstack's Ceph: an image that has clones can be deleted from Glance.
            _tool("ceph", site, "osd", "set-require-min-compat-client", "mimic")
        with contextlib.closing(suites.administrator(lab)) as admin, network.served(admin), \
                suites.types_of_nobody_hidden(admin):
            suites.prepare(lab, admin, home())
            for side in sides:
                _serve(side)
                _side(lab, side, args)
    return 0


def _side(lab, side, args):
    """Run what is asked for. What came of a suite is kept at once: the next one may be interrupted."""
    kept = results.Results() if not args.regexes and not args.suite else results.Results.read(_file(side))
    found = results.Results(_header(side))
    for name in args.suite or suites.SUITES:
        began = time.monotonic()
        tests = run.run(lab, suites.SUITES[name], home(), args.jobs, args.regexes)
        say(f"tempest: {side}, {name}: {len(tests)} tests in {time.monotonic() - began:.0f} s")
        found.tests.update(tests)
        kept.merge(found)
        kept.write(_file(side))
    bad = [n for n, t in sorted(found.tests.items()) if t["outcome"] == results.FAILED]
    say(f"tempest: {side}: {found.count(results.PASSED)} passed, {len(bad)} failed, "
        f"{found.count(results.SKIPPED)} skipped")
    for n in bad:
        say(f"  {results.short(n)}\n      {found.tests[n]['why']}")


def _compare(args):
    sides = [results.Results.read(_file(side)) for side in SERVICES]
    comparison = results.Comparison(*sides)
    if not comparison.names:
        raise LabError("nothing was run yet: tools/tempest run --both")
    for line in comparison.summary() if args.summary else (*comparison.table(), "", *comparison.summary()):
        print(line)
    return 1 if comparison.unmet else 0


def main(argv=None):
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    os.umask(0o077)
    os.environ.pop(procs.MARKER, None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.command == "compare":
            return _compare(args)
        if PREPARED not in os.environ:
            _go_on_in_the_environment()
        return _run(args)
    except LabError as e:
        say(f"tempest: {e}")
        return 1
    except KeyboardInterrupt:
        return 130
