"""Tests of the comparison; neither a lab nor tempest is needed.

The problem: a comparison that takes a failure for a skip, or forgets a test that was never run, says that
all is well.

    cd tools && python3 -m unittest tempestkit.tests
"""

import pathlib
import re
import tempfile
import unittest

from . import results, run
from .results import FAILED, MISSING, PASSED, SKIPPED, Comparison, Results
from .suites import SUITES


def side(seconds=1.0, **outcomes):
    return Results({"date": "today"}, {
        name: {"outcome": outcome, "seconds": seconds, "why": "" if outcome == PASSED else f"why {name}"}
        for name, outcome in outcomes.items()})


class Outcomes(unittest.TestCase):
    def test_what_did_not_say_that_it_passed_has_failed(self):
        for status, outcome in (("success", PASSED), ("skip", SKIPPED), ("fail", FAILED),
                                ("inprogress", FAILED), ("unknown", FAILED), ("uxsuccess", FAILED)):
            self.assertEqual(results.outcome(status), outcome, status)

    def test_a_reason_is_one_line(self):
        class Text:
            def __init__(self, text):
                self.text = text

            def as_text(self):
                return self.text

        failed = {"status": "fail", "details": {
            "pythonlogging:''": Text("a line\n"),
            "traceback": Text("Traceback\n  File x\ntempest.lib.exceptions.NotFound: gone\nDetails: no volume\n\n")}}
        self.assertEqual(run.reason(failed), "Details: no volume")
        skipped = {"status": "skip", "details": {"reason": Text("no nova")}}
        self.assertEqual(run.reason(skipped), "no nova")
        self.assertEqual(run.reason({"status": "success", "details": {}}), "")
        self.assertIn("inprogress", run.reason({"status": "inprogress", "details": {}}))


class Compared(unittest.TestCase):
    def test_each_test_is_in_the_class_it_belongs_to(self):
        both = Comparison(side(a=FAILED, b=PASSED, c=FAILED, d=PASSED, e=SKIPPED, f=SKIPPED, g=PASSED),
                          side(a=PASSED, b=FAILED, c=FAILED, d=PASSED, e=SKIPPED, f=PASSED, h=PASSED))
        self.assertEqual(both.unmet, ["a", "h"], "what stock passes and Scoria was not asked is a debt as well")
        self.assertEqual(both.better, ["b"])
        self.assertEqual(both.both_fail, ["c"])
        self.assertEqual(both.alone, ["g"])

    def test_a_test_that_takes_much_longer_is_told(self):
        ours, theirs = side(20.0, a=PASSED, b=FAILED), side(4.0, a=PASSED, b=PASSED)
        self.assertEqual(Comparison(ours, theirs).slower, ["a"])
        self.assertEqual(Comparison(side(8.0, a=PASSED), theirs).slower, [], "less than five seconds")
        self.assertEqual(Comparison(theirs, ours).slower, [])

    def test_the_summary_names_what_differs_and_why(self):
        text = "\n".join(Comparison(side(a=FAILED, b=PASSED), side(a=PASSED, b=PASSED)).summary())
        self.assertIn("stock passes, scoria does not: 1\n", text)
        self.assertIn("why a", text)
        self.assertIn("1 passed, 1 failed, 0 skipped", text)
        self.assertIn("today", text)

    def test_names_lose_their_attributes(self):
        self.assertEqual(results.short("a.B.test_c[id-1,smoke]"), "a.B.test_c")


class Kept(unittest.TestCase):
    def test_a_later_run_replaces_its_own_tests_only(self):
        kept = side(**{"a.B.one": FAILED, "a.B.two": PASSED, "setUpClass (a.C)": FAILED, "setUpClass (a.D)": FAILED,
                       "tearDownClass (a.C)": FAILED})
        kept.merge(side(**{"a.B.one": PASSED, "a.C.one[id-1.2]": PASSED}))
        self.assertEqual({n: t["outcome"] for n, t in kept.tests.items()}, {
            "a.B.one": PASSED, "a.B.two": PASSED, "a.C.one[id-1.2]": PASSED, "setUpClass (a.D)": FAILED})

    def test_results_are_read_as_they_were_written(self):
        with tempfile.TemporaryDirectory() as tmp:
            path = pathlib.Path(tmp, "scoria.json")
            self.assertEqual(Results.read(path).outcome_of("a"), MISSING)
            side(a=PASSED).write(path)
            self.assertEqual(Results.read(path).outcome_of("a"), PASSED)


class Selection(unittest.TestCase):
    def test_a_regex_narrows_the_suite_and_does_not_leave_it(self):
        narrowed = run.selection(SUITES["tempest"], ["clone", "backup"])
        matching = [n for n in ("tempest.api.volume.test_volumes_clone.A.test_b", "tempest.api.volume.test_x.A.test_b",
                                "cinder_tempest_plugin.api.volume.test_volume_backup.A.test_b",
                                "tempest.api.image.test_clone.A.test_b")
                    if any(re.search(r, n) for r in narrowed)]
        self.assertEqual(matching, ["tempest.api.volume.test_volumes_clone.A.test_b",
                                    "cinder_tempest_plugin.api.volume.test_volume_backup.A.test_b"])


if __name__ == "__main__":
    unittest.main()
