"""Shares of right answers with bootstrap intervals over streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Share(NamedTuple):
    """A share of right answers with its 95 % bootstrap interval over streams."""

    share: float
    low: float
    high: float
    asked: int


def interval(
    count: int,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a statistic over streams.

    Whole streams are drawn with replacement: questions about one stream are not independent.

    Args:
      count: of streams.
      statistic: numbers of streams [draws, count] -> values [draws]; NaN are left out.
      draws: of all streams.
      seed: of the draws.
    """
    rows = np.random.default_rng(seed).integers(0, count, (draws, count))
    low, high = np.nanquantile(statistic(rows), [0.025, 0.975])
    return float(low), float(high)


def share(
    right: np.ndarray, chosen: np.ndarray | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Share | None:
    """Return the share of right answers among the chosen ones; None if there are none.

    `right` and `chosen` (None: all) are bool [M, B, n], with the streams on axis 1.
    """
    chosen = np.ones(right.shape, bool) if chosen is None else chosen
    asked = chosen.sum(axis=(0, 2))
    hits = (right & chosen).sum(axis=(0, 2))
    if not asked.sum():
        return None

    def shares(rows: np.ndarray) -> np.ndarray:
        return ratio(hits[rows].sum(1), asked[rows].sum(1))

    low, high = interval(len(asked), shares, draws=draws, seed=seed)
    return Share(float(hits.sum() / asked.sum()), low, high, int(asked.sum()))


def mean(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Share:
    """Return the mean of a number of every stream [B] with its interval."""
    low, high = interval(len(values), lambda rows: values[rows].mean(1), draws=draws, seed=seed)
    return Share(float(values.mean()), low, high, len(values))


def ratio(hits: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return hits / asked, elementwise; NaN where nothing was asked."""
    return np.divide(hits, asked, out=np.full(np.shape(hits), np.nan), where=asked > 0)


def plain_share(value: Share | None) -> dict[str, float] | None:
    """Return a share as plain data."""
    return None if value is None else {k: round(v, 4) for k, v in value._asdict().items()}


def percent(value: Share | None) -> str:
    """Return a share and its interval in per cent, as tables show them."""
    if value is None:
        return "-"
    return f"{100 * value.share:.1f} ({100 * value.low:.0f} to {100 * value.high:.0f})"
