"""Tests of the bench's own arithmetic; no lab needed.

The problem: a benchmark that compares the wrong rounds or judges a rate as if it were a time is
believed all the same.

    cd tools && python3 -m unittest benchkit.tests
"""

import json
import unittest

from . import results
from .results import FLOOR, HIGHER, SCORIA, STOCK, Metric, Results


def metric(scoria, stock, **kind):
    return Metric("k", "label", "ms", samples={
        SCORIA: dict(enumerate(scoria)), STOCK: dict(enumerate(stock))}, **kind)


class Ratios(unittest.TestCase):
    def test_a_ratio_is_of_the_medians_and_its_spread_of_the_rounds(self):
        found = metric([1, 2, 100], [10, 10, 50])
        self.assertEqual(found.ratio(), 0.2)
        self.assertEqual(found.ratios(), [0.1, 0.2, 2.0])

    def test_only_rounds_that_both_have_are_compared(self):
        found = metric([1, 2], [10, 10])
        del found.samples[STOCK][0]
        self.assertEqual(found.ratios(), [0.2])

    def test_without_the_other_there_is_no_ratio_and_no_verdict(self):
        found = metric([1], [], aim=1.1)
        self.assertIsNone(found.ratio())
        self.assertIsNone(found.met)
        self.assertEqual(results.aim_text(found), "≤ 1.1")

    def test_times_have_an_upper_bound_and_rates_a_lower_one(self):
        self.assertTrue(metric([1.1], [1], aim=1.1).met)
        self.assertFalse(metric([1.2], [1], aim=1.1).met)
        self.assertTrue(metric([10], [10], better=HIGHER, aim=1 / 1.1).met)
        self.assertFalse(metric([8], [10], better=HIGHER, aim=1 / 1.1).met)

    def test_being_near_the_floor_may_do_as_well(self):
        near = metric([1.2], [1.3], aim=0.5)
        near.or_floor = 1.25
        self.assertFalse(near.met, "nobody has measured the floor")
        near.samples["floor"] = {0: 1.0}
        self.assertTrue(near.met)
        near.samples["floor"] = {0: 0.9}
        self.assertFalse(near.met)


class Report(unittest.TestCase):
    def filled(self):
        found = Results()
        for rnd in range(3):
            for who, value in ((SCORIA, 30 + rnd), (STOCK, 60), (FLOOR, 15)):
                found.metric("latency", "a", "10 in flight", "ms", aim=0.2).samples.setdefault(
                    who, {})[rnd] = value
        return found

    def test_a_line_has_everything(self):
        text = "\n".join(results.table(self.filled()))
        for part in ("latency", "10 in flight", "31.0 (30.0–32.0)", "0.517 (0.500–0.533)", "15.0",
                     "2.07", "≤ 0.2 MISSED"):
            self.assertIn(part, text)

    def test_what_is_missed_is_named(self):
        self.assertEqual(results.summary(self.filled()),
                         "aims met: 0 of 1\n  missed: latency, 10 in flight (0.517)")

    def test_json_has_every_sample(self):
        found = json.loads(self.filled().as_json({"date": "today"}))
        self.assertEqual(found["sections"][0]["metrics"][0]["samples"][SCORIA], [30, 31, 32])
        self.assertIs(found["sections"][0]["metrics"][0]["met"], False)

    def test_numbers_keep_three_digits(self):
        self.assertEqual([results.number(v) for v in (0.5, 12.34, 123.4, 12345.6, None)],
                         ["0.50", "12.3", "123", "12,346", "-"])


if __name__ == "__main__":
    unittest.main()
