"""Samples, what they are compared with, and how that is shown.

The problem: one number of one run on a shared machine says nothing. So every metric keeps the
sample of every round and of every contestant; what is judged is the ratio of the medians, and the
ratios of single rounds are shown beside it, since they tell how far to trust it.
"""

import dataclasses
import json
import statistics

SCORIA, STOCK, FLOOR = "scoria", "stock", "floor"
SLOWER = 1.1                    # nothing may be slower than that
LOWER, HIGHER = "lower", "higher"


@dataclasses.dataclass
class Metric:
    """One line of the table."""

    key: str
    label: str
    unit: str
    better: str = LOWER
    aim: float | None = None    # bound of scoria/stock; None: shown, not judged
    over: str = STOCK           # or scoria/floor
    or_floor: float | None = None   # bound of scoria/floor that does as well
    samples: dict = dataclasses.field(default_factory=dict)     # contestant: {round: value}

    def values(self, who):
        return list(self.samples.get(who, {}).values())

    def median(self, who):
        values = self.values(who)
        return statistics.median(values) if values else None

    def ratio(self, over=STOCK):
        """Ratio of the medians, Scoria over the other; None without both."""
        ours, theirs = self.median(SCORIA), self.median(over)
        return ours / theirs if ours is not None and theirs else None

    def ratios(self, over=STOCK):
        """Ratio of each round that has both."""
        ours, theirs = self.samples.get(SCORIA, {}), self.samples.get(over, {})
        return [ours[r] / theirs[r] for r in ours if theirs.get(r)]

    @property
    def met(self):
        ratio = self.ratio(self.over)
        if ratio is None or self.aim is None:
            return None
        to_floor = self.ratio(FLOOR)
        if self.or_floor is not None and to_floor is not None and to_floor <= self.or_floor:
            return True
        return ratio <= self.aim if self.better == LOWER else ratio >= self.aim

    def as_json(self):
        ratios = self.ratios()
        return {"key": self.key, "label": self.label, "unit": self.unit, "better": self.better,
                "samples": {w: list(v.values()) for w, v in self.samples.items()},
                "median": {w: self.median(w) for w in self.samples},
                "ratio": self.ratio(), "ratio_min": min(ratios, default=None),
                "ratio_max": max(ratios, default=None), "ratio_floor": self.ratio(FLOOR),
                "aim": self.aim, "aim_over": self.over, "aim_or_floor": self.or_floor, "met": self.met}


class Results:
    """All metrics, in the order in which they were first named."""

    def __init__(self):
        self.sections = {}      # title: {key: Metric}

    def metric(self, section, key, label, unit, better=LOWER, aim=None, over=STOCK, or_floor=None):
        return self.sections.setdefault(section, {}).setdefault(
            key, Metric(key, label, unit, better, aim, over, or_floor))

    def all(self):
        return [m for metrics in self.sections.values() for m in metrics.values()]

    def as_json(self, header):
        return json.dumps({"header": header, "sections": [
            {"title": title, "metrics": [m.as_json() for m in metrics.values()]}
            for title, metrics in self.sections.items()]}, indent=1) + "\n"


# ---- text -------------------------------------------------------------------------------------------
def number(value):
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def ratio_text(value):
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 0.995 else f"{value:.2f}"


def spread(metric, who):
    values = metric.values(who)
    if not values:
        return "-"
    if len(values) == 1:
        return number(values[0])
    return f"{number(metric.median(who))} ({number(min(values))}–{number(max(values))})"


def ratio_spread(metric):
    ratios = metric.ratios()
    text = ratio_text(metric.ratio())
    if len(ratios) < 2:
        return text
    return f"{text} ({ratio_text(min(ratios))}–{ratio_text(max(ratios))})"


def aim_text(metric):
    if metric.aim is None:
        return ""
    sign = "≤" if metric.better == LOWER else "≥"
    verdict = {None: "", True: " met", False: " MISSED"}[metric.met]
    other = f", or {metric.or_floor:.3g} of the floor" if metric.or_floor is not None else ""
    return f"{sign} {metric.aim:.3g}{' of the floor' if metric.over == FLOOR else ''}{other}{verdict}"


HEAD = ("", "unit", "scoria", "stock", "scoria/stock", "floor", "scoria/floor", "aim")


def table(results):
    """Lines of the whole report below its header."""
    rows = []
    for title, metrics in results.sections.items():
        rows.append(title)
        rows += [("  " + m.label, m.unit, spread(m, SCORIA), spread(m, STOCK), ratio_spread(m),
                  number(m.median(FLOOR)), ratio_text(m.ratio(FLOOR)), aim_text(m))
                 for m in metrics.values() if m.samples]
    cells = [HEAD] + [r for r in rows if isinstance(r, tuple)]
    widths = [max(len(c[i]) for c in cells) for i in range(len(HEAD))]
    yield "  ".join(f"{c:<{w}}" for c, w in zip(HEAD, widths)).rstrip()
    for row in rows:
        if isinstance(row, str):
            yield ""
            yield row
            continue
        yield "  ".join([f"{row[0]:<{widths[0]}}", f"{row[1]:<{widths[1]}}",
                         *(f"{c:>{w}}" for c, w in zip(row[2:7], widths[2:7])), row[7]]).rstrip()


def summary(results):
    """How many aims are met, and a line for each that is not."""
    judged = [(t, m) for t, metrics in results.sections.items() for m in metrics.values()
              if m.met is not None]
    missed = [f"{t}, {m.label} ({ratio_text(m.ratio(m.over))})" for t, m in judged if not m.met]
    return (f"aims met: {len(judged) - len(missed)} of {len(judged)}"
            + "".join(f"\n  missed: {m}" for m in missed))
