"""Scores of benchmarks: means over questions, kinds and groups, intervals, splits, costs."""

import numpy as np
import pytest

from jaxmem.data.benchmarks import BENCHMARKS, Item, Problem, Video
from jaxmem.data.benchmarks.rules import Score
from jaxmem.report import benchmarks as report
from jaxmem.report.shares import interval, share


def replied(video, kind, right, *, group="", safe=True, labels=(), evidence=None, time=10.0):
    item = Item(f"{video}{kind}", Video(video, None), "?", 0, ("a", "b"), kind=kind, group=group,
                labels=labels, evidence=evidence)  # fmt: skip
    return report.Replied(item, Score(right, safe, True), "A", time, False, 60.0, 9.0, 4, 80, 2.0)


def test_what_a_score_is_the_mean_of():
    found = [
        replied("v", "EPM", True, group="Backward"), replied("v", "EPM", True, group="Backward"),
        replied("w", "EPM", False, group="Backward"), replied("w", "HLD", False, group="Backward"),
        replied("w", "OCR", True, group="Real-time"), replied("w", "OCR", None, group="Real-time"),
    ]  # fmt: skip
    mean = lambda average: report.score_of(found, report.OFFICIAL, average)
    assert mean("questions").share == pytest.approx(3 / 5) and mean("questions").asked == 5
    assert mean("kinds").share == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert mean("groups").share == pytest.approx(((2 / 3 + 0) / 2 + 1) / 2)
    assert report.score_of(found, report.SAFE).share == 1.0
    assert report.score_of([], report.SAFE) is None
    assert report.score_of(found[-1:], report.OFFICIAL) is None
    for one in map(mean, ("questions", "kinds", "groups")):
        assert 0 <= one.low <= one.share <= one.high <= 1


def test_intervals_are_over_videos():
    """The mean over questions is the share that `evaluate recall` reports, interval and all."""
    right = np.random.default_rng(0).random((2, 12, 3)) < 0.6
    found = [replied(str(b), "x", bool(right[m, b, n])) for b in range(12) for m in range(2)
             for n in range(3)]  # fmt: skip
    assert report.score_of(found, report.OFFICIAL) == share(right)
    one = report.score_of([replied("v", "x", i % 2 == 0) for i in range(10)], report.OFFICIAL)
    assert (one.low, one.high) == (0.5, 0.5)  # one video tells nothing of others
    assert interval(4, lambda rows: np.full(len(rows), 2.0)) == (2.0, 2.0)


def test_splits_are_by_kind_label_and_age():
    found = [
        replied("v", "a", True, labels=(("audio", "Speech"), ("audio", "Music")), evidence=(1, 9)),
        replied("v", "b", False, labels=(("audio", "Music"),), evidence=(1, 2), time=40.0),
        replied("v", "b", False, evidence=(1, 2), time=None),  # of a model that kept silent
        replied("v", "b", True),
    ]
    parts = report.splits(found)
    assert {n: {v: len(x) for v, x in p.items()} for n, p in parts.items()} == {
        "kind": {"a": 1, "b": 3},
        "audio": {"Speech": 1, "Music": 2},
        "age of evidence": {"0 to 8 s": 1, "32 to 128 s": 2},
    }


def test_a_report_holds_scores_costs_and_losses():
    found = [replied("v", "a", True), replied("w", "b", False, safe=False)]
    lost = [Problem("x", "gone", 3)]
    one = report.Outcome("recent", found, lost, 2048, 0)
    plain = report.as_dict(one, BENCHMARKS["mlvu"])
    assert plain["official"]["share"] == plain["safe"]["share"] == 0.5
    assert (plain["replies"], plain["videos"], plain["frames"], plain["tokens"]) == (2, 2, 4, 80)
    assert plain["by"]["kind"]["b"]["official"]["share"] == 0
    assert plain["lost"] == [{"where": "x", "reason": "gone", "questions": 3}]
    silent = report.Outcome("full", [], lost, 2048, 1 << 20)
    tables = report.tables([one, silent], BENCHMARKS["mlvu"], "title")
    cells = [list(column.cells) for column in tables[0].columns]
    assert cells[0] == ["recent", "full"] and cells[-1] == ["3", "3"] and cells[1][1] == "-"
    assert list(tables[1].columns[2].cells) == ["-", "1.0 MiB"]
    assert list(tables[2].columns[3].cells) == ["-; -", "-; -"] and len(tables) == 3
    text = report.Outcome("x", [replied("v", "a", None, safe=None), replied("v", "b", None)], [],
                          1, 0)  # fmt: skip
    assert len(report.tables([text], BENCHMARKS["rvs-ego"], "")) == 2  # for a judge: no splits
