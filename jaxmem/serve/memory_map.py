"""What every layer of a stream holds, as the numbers that a page draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmem.kv import MODALITY_NAMES, VISION
from jaxmem.report.kept import Kept

BINS = 200
"""Stretches of time that a stream is cut into, at most."""
NAMES = tuple("video" if i == VISION else name for i, name in enumerate(MODALITY_NAMES))
"""Of modalities, as clients know them."""


def memory_map(
    layers: Sequence[Kept], slots: Sequence[int], seconds: float, piece: float
) -> dict[str, Any]:
    """Return tokens held per layer, modality and stretch of time, as JSON.

    Args:
      layers: what every layer holds.
      slots: of every layer.
      seconds: length of the stream so far.
      piece: seconds of a piece; no stretch is shorter.
    """
    width = max(seconds / BINS, piece)
    width = piece * np.ceil(width / piece - 1e-9)
    shown = [
        {"layer": i, "slots": count, "held": _held(one, width)}
        for i, (one, count) in enumerate(zip(layers, [*slots, *[0] * len(layers)], strict=False))
    ]
    return {"seconds": seconds, "layers": shown}


def _held(layer: Kept, width: float) -> list[dict[str, Any]]:
    out = []
    for kind in np.unique(layer.modality):
        times = np.maximum(layer.time[layer.modality == kind], 0.0)
        bins, counts = np.unique((times / width + 1e-9).astype(np.int64), return_counts=True)
        for number, count in zip(bins.tolist(), counts.tolist(), strict=True):
            start, end = round(number * width, 6), round((number + 1) * width, 6)
            name = NAMES[int(kind)]
            out.append({"start": start, "end": end, "modality": name, "count": count})
    return sorted(out, key=lambda one: (one["start"], one["modality"]))
