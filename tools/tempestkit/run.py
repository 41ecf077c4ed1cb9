"""One run of the suites under stestr, and what came of it.

The problem: stestr keeps its results in a repository of its own, in a binary stream; and a test that was
killed with its worker is in it only as begun. So the last run is read back at once, test by test, and
what says nothing of its end has failed.
"""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys

from labkit.state import LabError

from . import results
from .suites import environment, site_packages


def _stestr(suite, home, env, out, *words, answer=False):
    """Run a command of stestr; with `answer`, what it wrote. An interrupted run takes its workers with it."""
    top = site_packages()
    child = subprocess.Popen(
        [sys.executable, "-m", "stestr.cli", "--test-path", str(top / suite.path), "--top-dir", str(top),
         "--repo-url", str(home / f"stestr-{suite.name}"), "--group_regex", r"([^\.]*\.)*", *words],
        cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if answer else out, stderr=out,
        start_new_session=True)
    try:
        told = child.communicate()[0]
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    return child.returncode, told


def selection(suite, regexes):
    """Of the suite's tests, those that any of the regexes finds; all without regexes."""
    return suite.select if not regexes else tuple(
        s.replace("^", f"^(?=.*(?:{r}))", 1) for r in regexes for s in suite.select)


def run(lab, suite, home, jobs, regexes):
    """Run the tests of a suite that match (all without regexes). {name: test}."""
    env = environment(lab, home)
    select = selection(suite, regexes)
    log, repository = home / f"run-{suite.name}.log", home / f"stestr-{suite.name}"
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    with log.open("w") as out:
        _stestr(suite, home, env, out, "init")
        status, listed = _stestr(suite, home, env, out, "list", *select, answer=True)
        if status:
            raise LabError(f"stestr cannot list {suite.name} (log: {log})")
        if not any(b"." in line for line in listed.splitlines()):
            return {}
        # Its status says whether a test failed, which is not for us to judge.
        _stestr(suite, home, env, out, "run", "--concurrency", str(suite.jobs or jobs), *select)
        status, last = _stestr(suite, home, env, out, "last", "--subunit", answer=True)
    found = read(last)
    if not found:
        raise LabError(f"stestr ran nothing of {suite.name} (log: {log})")
    return found


def read(stream):
    """The tests in a subunit stream."""
    import subunit
    import testtools
    found = {}

    def one(test):
        if not test["id"]:
            return
        began, ended = test["timestamps"]
        found[test["id"]] = {
            "outcome": results.outcome(test["status"]),
            "seconds": round((ended - began).total_seconds(), 2) if began and ended else None,
            "why": reason(test)}

    result = testtools.StreamToDict(one)
    result.startTestRun()
    subunit.ByteStreamToStreamResult(io.BytesIO(stream), non_subunit_name="stdout").run(result)
    result.stopTestRun()
    return found


def reason(test):
    """One line: why it was skipped, or the last line of the traceback; empty when it passed."""
    details = test.get("details") or {}
    for name, content in details.items():
        if name == "reason" or name.startswith("traceback"):
            lines = [line.strip() for line in content.as_text().splitlines() if line.strip()]
            if lines:
                told = next((line for line in reversed(lines) if line.startswith(("Details:", "testtools.",
                                                                                   "tempest.", "openstack."))), None)
                return (told or lines[-1])[:300]
    return "" if results.outcome(test["status"]) == results.PASSED else f"no word of its end ({test['status']})"
