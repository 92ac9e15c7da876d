"""Which samples are sound at all."""

from __future__ import annotations

import numpy as np

LOUDEST = 8.0
"""Samples beyond this, where 1 is full scale, are damage."""


def plausible(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Return float samples with silence for those that are damaged, and how many these are.

    Samples of other kinds cannot be beyond full scale and are returned as they are.
    """
    if samples.dtype.kind != "f":
        return samples, 0
    with np.errstate(invalid="ignore"):
        good = np.abs(samples) <= LOUDEST  # false for NaN
    bad = good.size - int(np.count_nonzero(good))
    return (np.where(good, samples, np.zeros((), samples.dtype)) if bad else samples), bad
