"""What every test said of either side, and what that means.

The problem: hundreds of tests, of which some fail with everybody because of the environment. What counts
is the difference, so the outcome of each test is kept by side, and a test that stock passes and Scoria
does not is the one that is shown first, and makes the comparison fail.
"""

import json

SCORIA, STOCK = "scoria", "stock"
PASSED, FAILED, SKIPPED, MISSING = "passed", "failed", "skipped", "-"
# subunit's words for them; whatever else it says (a worker that died, `inprogress`) is a failure.
STATUSES = {"success": PASSED, "xfail": PASSED, "skip": SKIPPED}
# A test that takes so many times as long, and so many seconds more, is told.
SLOWER, SECONDS = 2.0, 5.0


def outcome(status):
    """Our word for subunit's status."""
    return STATUSES.get(status, FAILED)


def short(name):
    """A test's name without its attributes: `a.B.test[id-…,smoke]` is `a.B.test`."""
    return name.split("[", 1)[0]


def unmet(ours, theirs):
    """Whether Scoria owes this test something: stock passes it and Scoria does not."""
    return theirs == PASSED and ours in (FAILED, MISSING)


class Results:
    """The tests of one side: {name: {"outcome", "seconds", "why"}}, and what was tested."""

    def __init__(self, header=None, tests=None):
        self.header, self.tests = header or {}, tests or {}

    @classmethod
    def read(cls, path):
        """Nothing when there is no such file yet."""
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return cls()
        return cls(found["header"], found["tests"])

    def write(self, path):
        path.write_text(json.dumps({"header": self.header, "tests": self.tests}, indent=1, sort_keys=True) + "\n")

    def merge(self, later):
        """Tests that were run again count as they ended then. The set-up of a class (and its end) is no test: it
        is only told when it fails, so a later run of the class takes an old failure with it."""
        classes = {short(name).rpartition(".")[0] for name in later.tests}
        kept = {n: t for n, t in self.tests.items()
                if not (n.startswith(("setUpClass", "tearDownClass")) and n.partition("(")[2].rstrip(")") in classes)}
        self.tests = {**kept, **later.tests}
        self.header = later.header

    def outcome_of(self, name):
        test = self.tests.get(name)
        return test["outcome"] if test else MISSING

    def seconds_of(self, name):
        return self.tests.get(name, {}).get("seconds") or 0.0

    def count(self, what):
        return sum(t["outcome"] == what for t in self.tests.values())


class Comparison:
    """Both sides, test by test."""

    def __init__(self, ours, theirs):
        self.ours, self.theirs = ours, theirs
        self.names = sorted({*ours.tests, *theirs.tests})

    def _where(self, judge):
        return [n for n in self.names if judge(self.ours.outcome_of(n), self.theirs.outcome_of(n))]

    @property
    def unmet(self):
        return self._where(unmet)

    @property
    def better(self):
        return self._where(lambda ours, theirs: ours == PASSED and theirs == FAILED)

    @property
    def both_fail(self):
        return self._where(lambda ours, theirs: ours == theirs == FAILED)

    @property
    def alone(self):
        """Run on one side only, and no debt: the comparison says nothing about them."""
        return self._where(lambda ours, theirs: MISSING in (ours, theirs) and not unmet(ours, theirs))

    @property
    def slower(self):
        both = self._where(lambda ours, theirs: ours == theirs == PASSED)
        return [n for n in both if self.ours.seconds_of(n) > self.theirs.seconds_of(n) * SLOWER
                and self.ours.seconds_of(n) > self.theirs.seconds_of(n) + SECONDS]

    def line(self, name):
        return (f"{self.ours.outcome_of(name):<8}{self.theirs.outcome_of(name):<8}"
                f"{self.ours.seconds_of(name):7.1f}{self.theirs.seconds_of(name):7.1f}  {short(name)}")

    def table(self):
        """A line for each test."""
        yield f"{SCORIA:<8}{STOCK:<8}{'s':>7}{'s':>7}  test"
        yield from map(self.line, self.names)

    def summary(self):
        """The lines that one keeps: counts, and every test that is not the same."""
        for who, side in ((SCORIA, self.ours), (STOCK, self.theirs)):
            counts = ", ".join(f"{side.count(what)} {what}" for what in (PASSED, FAILED, SKIPPED))
            seconds = sum(map(side.seconds_of, side.tests))
            said = "; ".join(f"{v}" for v in side.header.values())
            yield f"{who:<8}{counts}; {seconds:.0f} s of tests ({said or 'never run'})"
        for title, names in (("stock passes, scoria does not", self.unmet),
                             ("scoria passes, stock fails", self.better),
                             ("both fail", self.both_fail),
                             ("only one was run", self.alone),
                             (f"scoria takes {SLOWER:g} times as long and {SECONDS:g} s more", self.slower)):
            yield f"{title}: {len(names)}"
            for name in names:
                yield "  " + self.line(name)
                why = self.ours.tests.get(name, {}).get("why") or self.theirs.tests.get(name, {}).get("why")
                if why:
                    yield f"      {why}"
