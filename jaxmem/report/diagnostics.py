"""What a memory kept against what mattered: the oracle's choice, planted evidence, kinds, ages.

The oracle of a question is exact attention over the whole stream: the mass that the question's
rows give to every token of every layer. All functions are plain numpy; `kept[l]` are the arrival
numbers that layer l holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.table import Table

from jaxmem.kv import MODALITY_NAMES
from jaxmem.report.recall import AGES, age_name
from jaxmem.report.style import FAINT, INK, KIND_COLOURS, figure, plain, titles


class Whole(NamedTuple):
    """All N tokens of a stream."""

    index: np.ndarray  # int [N], arrival numbers, ascending
    time: np.ndarray  # float [N], seconds
    modality: np.ndarray  # int8 [N]


class Diagnosis(NamedTuple):
    """What a memory kept, over all streams, moments and questions."""

    memory: str
    slots: float  # tokens held per layer, mean
    overlap: float  # share of the oracle's choice of as many tokens that is held
    covered: float  # share of the oracle's attention that falls on held tokens
    chance: float  # both, for as many tokens drawn at random
    evidence: tuple[float | None, ...]  # share of layers that hold it, by class of age
    anywhere: tuple[float | None, ...]  # share of questions whose evidence some layer holds
    kinds: np.ndarray  # float [L, kinds], mean tokens of each kind
    ages: np.ndarray  # float [A], share of held tokens by age, A equal classes of the stream


def held(whole: Whole, order: np.ndarray) -> np.ndarray:
    """Return which tokens [N] of the stream a layer holds; merged tokens hold their own number."""
    return np.isin(whole.index, order)


def against_oracle(mass: np.ndarray, kept: np.ndarray) -> tuple[float, float, float]:
    """Return overlap and coverage of what is kept, bool [N], and what chance would give.

    From the attention `mass` [N] that a question gives to every token: |kept and top K| / K, with
    K the number kept; the share of the mass on kept tokens; K / N.
    """
    count = int(kept.sum())
    if not count:
        return 0.0, 0.0, 0.0
    top = np.argsort(-mass, kind="stable")[:count]
    total = float(mass.sum())
    covered = float(mass[kept].sum()) / total if total > 0 else 0.0
    return float(kept[top].mean()), covered, count / len(mass)


def holds_evidence(whole: Whole, kept: np.ndarray, time: float, seconds: float = 1.0) -> bool:
    """Return whether a token from the last `seconds` before the evidence ended is kept."""
    inside = (whole.time >= time - seconds) & (whole.time < time)
    return bool((kept & inside).any())


def by_age(values: np.ndarray, age: np.ndarray) -> tuple[float | None, ...]:
    """Return the mean of values [n] in each class of age; None where there are none."""
    inside = [(age >= low) & (age < high) for low, high in pairwise(AGES)]
    return tuple(float(values[i].mean()) if i.any() else None for i in inside)


def count_kinds(whole: Whole, kept: np.ndarray) -> np.ndarray:
    """Return the kept tokens of each kind."""
    return np.bincount(whole.modality[kept], minlength=len(MODALITY_NAMES)).astype(float)


def share_ages(whole: Whole, kept: np.ndarray, seconds: float, classes: int = 16) -> np.ndarray:
    """Return the share of kept tokens in equal classes of age, the youngest first."""
    counts, _ = np.histogram(seconds - whole.time[kept], classes, (0.0, seconds))
    return counts / max(counts.sum(), 1)


def as_dict(one: Diagnosis) -> dict[Any, Any]:
    """Return a diagnosis as plain data."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in one._asdict().items()}


def table(diagnoses: Sequence[Diagnosis], title: str) -> Table:
    """Return overlap, coverage and evidence of every memory, in %."""
    labels = [age_name(*edges) for edges in pairwise(AGES)]
    out = Table("memory", "slots", "overlap", "coverage", "chance", *labels, title=title)
    percent = lambda x: "-" if x is None else f"{100 * x:.0f}"
    for d in diagnoses:
        shares = [
            f"{percent(a)} ({percent(b)})" for a, b in zip(d.evidence, d.anywhere, strict=True)
        ]
        numbers = (percent(x) for x in (d.overlap, d.covered, d.chance))
        out.add_row(d.memory, f"{d.slots:.0f}", *numbers, *shares)
    return out


def plot(diagnoses: Sequence[Diagnosis], seconds: float, title: str) -> Figure:
    """Draw, for every memory, evidence held against its age, ages held, and kinds per layer."""
    rows = max(len(diagnoses), 1)
    height = 1.15 * rows + 1.5  # inches
    fig = figure(11.0, height)
    titles(fig, title, "For every memory: what all its layers held, averaged over questions")
    parts = (
        (0.12, 0.27, "layers that hold the evidence, by its age", _draw_evidence),
        (0.45, 0.27, "age of what is held, s", _draw_ages),
        (0.77, 0.21, "kinds by layer", _draw_kinds),
    )
    for left, width, head, draw in parts:
        fig.text(left, 1 - 0.95 / height, head, fontsize=9, color=INK)
        for i, one in enumerate(diagnoses):
            bottom = (height - 1.95 - 1.15 * i) / height
            axes = fig.add_axes((left, bottom, width, 0.75 / height))
            plain(axes)
            draw(axes, one, seconds)
    held = np.flatnonzero(sum(one.kinds.sum(0) for one in diagnoses))
    patches = [Patch(color=KIND_COLOURS[int(k)], label=MODALITY_NAMES[k]) for k in held]
    fig.legend(handles=patches, loc="lower right", ncols=4, fontsize=8, frameon=False)
    return fig


def _draw_evidence(axes: Axes, one: Diagnosis, seconds: float) -> None:
    edges = [pair for pair in pairwise(AGES) if pair[0] < seconds]
    shares = [np.nan if share is None else share for share in one.evidence[: len(edges)]]
    axes.plot(range(len(edges)), shares, "o-", color=INK, markersize=3, linewidth=1.2)
    axes.set_xticks(range(len(edges)), [age_name(*pair) for pair in edges])
    axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel(one.memory, fontsize=9, color=INK, rotation=0, ha="right", va="center")


def _draw_ages(axes: Axes, one: Diagnosis, seconds: float) -> None:
    width = seconds / len(one.ages)
    axes.bar((np.arange(len(one.ages)) + 0.5) * width, one.ages, 0.9 * width, color=FAINT)
    axes.set_xlim(0, seconds)


def _draw_kinds(axes: Axes, one: Diagnosis, seconds: float) -> None:
    del seconds
    share = one.kinds / np.maximum(one.kinds.sum(1, keepdims=True), 1)
    left = np.zeros(len(share))
    for kind in np.flatnonzero(one.kinds.sum(0)):
        part = share[:, kind]
        axes.barh(range(len(share)), part, left=left, color=KIND_COLOURS[int(kind)])
        left = left + part
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
