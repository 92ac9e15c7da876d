"""Scores of memories on a benchmark: official and safe, with intervals over videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxmem.data.benchmarks.item import Average, Benchmark, Item, Problem
from jaxmem.data.benchmarks.rules import Score
from jaxmem.report.numbers import milliseconds, size
from jaxmem.report.recall import AGES, age_name
from jaxmem.report.shares import Share, interval, percent, plain_share, ratio

OFFICIAL, SAFE = "official", "safe"


class Replied(NamedTuple):
    """A question with the reply to it and what it cost."""

    item: Item
    score: Score
    reply: str
    time: float | None  # of the stream when it was asked; None: a model never thought it was time
    late: bool  # whether the stream ended before its time
    end: float  # of the stream, seconds of the video
    seen: float | None  # of the video before it, in whole pieces; None: an older file does not say
    frames: int  # seen before it
    tokens: int
    first_token_ms: float


class Outcome(NamedTuple):
    """What one memory did."""

    memory: str
    replied: Sequence[Replied]
    lost: Sequence[Problem]  # questions that it could not be asked
    nbytes: int  # on the device, the most of all videos
    host_nbytes: int
    # Models, settings, prompts, commits, JAX and devices of the replies.
    made: Mapping[str, Any] = MappingProxyType({})


def score_of(replied: Sequence[Replied], rule: str, average: Average = "questions") -> Share | None:
    """Return the mean score with its interval over videos; None if nothing counts.

    Args:
      replied: with the questions of any number of videos.
      rule: OFFICIAL or SAFE.
      average: what the mean is over: questions; kinds, each the mean of its questions; or groups,
        each the mean of its kinds.
    """
    counted = [one for one in replied if getattr(one.score, rule) is not None]
    if not counted:
        return None
    videos = {name: i for i, name in enumerate(dict.fromkeys(x.item.video.id for x in counted))}
    cell = lambda item: (item.group, item.kind) if average != "questions" else ("", "")
    kinds = {name: i for i, name in enumerate(dict.fromkeys(cell(x.item) for x in counted))}
    groups = list(dict.fromkeys(group if average == "groups" else "" for group, _ in kinds))
    hits, asked = np.zeros((2, len(videos), len(kinds)))
    for one in counted:
        at = videos[one.item.video.id], kinds[cell(one.item)]
        hits[at] += getattr(one.score, rule)
        asked[at] += 1

    def mean(rows: np.ndarray) -> np.ndarray:
        """Return the mean for videos [draws, n]; a kind that was not drawn is left out."""
        drawn = np.stack([np.bincount(row, minlength=len(videos)) for row in rows])
        shares = ratio(drawn @ hits, drawn @ asked)
        parts = []
        for group in groups:
            own = [i for (name, _), i in kinds.items() if average != "groups" or name == group]
            parts.append(_mean(shares[:, own]))
        return _mean(np.stack(parts, 1))

    whole = float(mean(np.arange(len(videos))[None])[0])
    return Share(whole, *interval(len(videos), mean), len(counted))


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over axis 1 without NaN; NaN where there is nothing else."""
    there = ~np.isnan(values)
    return ratio(np.where(there, values, 0).sum(1), there.sum(1))


def splits(replied: Sequence[Replied]) -> dict[str, dict[str, list[Replied]]]:
    """Return the replies by group, kind, each label of the benchmark, and age of the evidence."""
    found: dict[str, dict[str, list[Replied]]] = {}
    for one in replied:
        names = [("group", one.item.group), ("kind", one.item.kind), *one.item.labels]
        if (age := age_of(one)) is not None:
            names.append(("age of evidence", age))
        for name, value in dict.fromkeys(names):
            if value:
                found.setdefault(name, {}).setdefault(value, []).append(one)
    return {name: parts for name, parts in found.items() if len(parts) > 1}


def age_of(one: Replied) -> str | None:
    """Return the class of the time since the evidence ended; None where that is unknown."""
    if one.item.evidence is None:
        return None
    asked = one.end if one.time is None else one.time
    age = max(asked - one.item.evidence[1], 0.0)
    return next(age_name(low, high) for low, high in pairwise(AGES) if low <= age < high)


def unread(replied: Sequence[Replied]) -> float | None:
    """Return the share of replies in which the safe rule finds nothing; None without replies."""
    return sum(not one.score.read for one in replied) / len(replied) if replied else None


def moved(one: Replied) -> bool:
    """Return whether a question came before anything had been seen, and was put after it."""
    due = one.item.asked_at
    return not (one.item.polls or due is None or one.time is None) and one.time > due


def _unseen(replied: Sequence[Replied]) -> dict[str, float] | None:
    """Return how much of the video before a question its reply has not seen, the unfinished piece.

    The median and the most over questions with a time, in seconds; None without any.
    """
    found = [
        max(one.time - one.seen, 0.0)
        for one in replied
        if one.time is not None and one.seen is not None and one.item.asked_at is not None
    ]
    return {"median": median(found), "most": max(found)} if found else None


def as_dict(one: Outcome, benchmark: Benchmark) -> dict[str, Any]:
    """Return an outcome as plain data."""
    replied, both = one.replied, (OFFICIAL, SAFE)
    middle: Callable[[str], Any] = lambda name: (
        median(getattr(x, name) for x in replied) if replied else None
    )
    share: Callable[[str], float | None] = lambda name: (
        sum(known) / len(known)
        if (known := [x for one in replied if (x := getattr(one.score, name)) is not None])
        else None
    )
    scores = {rule: plain_share(score_of(replied, rule, benchmark.average)) for rule in both}
    return {
        "memory": one.memory,
        **scores,
        "replies": len(replied),
        "videos": len({x.item.video.id for x in replied}),
        "for_a_judge": sum(x.item.form == "text" for x in replied),
        "unparsed": unread(replied),
        "in_time": share("in_time"),
        "right_words": share("said"),
        "asked_at_the_end_instead": sum(x.late for x in replied),
        "asked_after_the_first_piece_instead": sum(map(moved, replied)),
        "not_yet_seen_s": _unseen(replied),
        "made_by": dict(one.made),
        "nbytes": one.nbytes,
        "host_nbytes": one.host_nbytes,
        "frames": middle("frames"),
        "tokens": middle("tokens"),
        "first_token_ms": middle("first_token_ms"),
        "by": {
            name: {
                value: {rule: plain_share(score_of(part, rule)) for rule in both}
                for value, part in parts.items()
            }
            for name, parts in splits(replied).items()
        },
        "lost": [problem._asdict() for problem in one.lost],
    }


def tables(outcomes: Sequence[Outcome], benchmark: Benchmark, title: str) -> list[Table]:
    """Return the scores of all memories, what they cost, and the scores of every split."""
    plain = [as_dict(one, benchmark) for one in outcomes]
    heads = "memory", OFFICIAL, SAFE, "unparsed", "replies", "lost"
    scores = Table(*heads, title=escape(title))
    names = ("bytes", "bank", "frames seen", "tokens seen", "first token")
    costs = Table("memory", *names, title="what is held, and medians over questions")
    for one, known in zip(outcomes, plain, strict=True):
        shares = (score_of(one.replied, x, benchmark.average) for x in (OFFICIAL, SAFE))
        share = known["unparsed"]
        unparsed = "-" if share is None else f"{100 * share:.1f} %"
        gone = str(sum(problem.questions for problem in one.lost))
        scores.add_row(one.memory, *map(percent, shares), unparsed, str(len(one.replied)), gone)
        bank = size(one.host_nbytes) if one.host_nbytes else "-"
        seen = ("-" if known[x] is None else f"{known[x]:,.0f}" for x in ("frames", "tokens"))
        first = milliseconds(known["first_token_ms"])
        costs.add_row(one.memory, size(one.nbytes), bank, *seen, first)
    return [scores, costs, *_split_tables(outcomes)]


def _split_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """Return a table for every split that has any score."""
    parts = {one.memory: splits(one.replied) for one in outcomes}
    found = []
    for name in dict.fromkeys(name for each in parts.values() for name in each):
        title = escape(f"by {name} (%): official; safe")
        out = Table(escape(name), "questions", *parts, title=title)
        scored = False
        for value in dict.fromkeys(v for each in parts.values() for v in each.get(name, {})):
            here = [each.get(name, {}).get(value, []) for each in parts.values()]
            scored |= any(score_of(part, OFFICIAL) for part in here)
            out.add_row(escape(value), str(max(map(len, here))), *map(_both, here))
        if scored:
            found.append(out)
    return found


def _both(part: Sequence[Replied]) -> str:
    """Return the official score with its interval, and the safe one."""
    safe = score_of(part, SAFE)
    return f"{percent(score_of(part, OFFICIAL))}; " + (
        "-" if safe is None else f"{100 * safe.share:.1f}"
    )
