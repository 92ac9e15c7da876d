"""What a memory holds, as times and modalities: the plain data behind maps and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmem.kv import EMPTY, MODALITY_NAMES
from jaxmem.memory.base import Spec, State, kv_of
from jaxmem.models.base import Model


class Kept(NamedTuple):
    """The tokens that one layer holds."""

    time: np.ndarray  # [n] float, seconds of stream time
    modality: np.ndarray  # [n] int8


def kept(
    layers: Sequence[State], *, seconds: float, seconds_per_tick: float | None = None
) -> list[Kept]:
    """Return what every layer holds.

    Args:
      layers: each layer's slots. Where KV heads keep different tokens, all are listed.
      seconds: length of the stream so far.
      seconds_per_tick: of position axis 0, where it is a clock. None: a token's time is taken from
        its arrival number, which assumes that tokens arrived at an even rate.
    """
    tokens = [kv_of(state.slots) for state in layers]
    if seconds_per_tick is not None:
        times = [np.asarray(t.pos)[..., 0] * seconds_per_tick for t in tokens]
    else:
        orders = [np.asarray(t.index, np.float64) for t in tokens]
        latest = max((float(o.max(initial=0)) for o in orders), default=0.0)
        times = [o * (seconds / max(latest + 1, 1)) for o in orders]
    out = []
    for time, token in zip(times, tokens, strict=True):
        kind = np.asarray(token.modality)
        held = kind != EMPTY
        out.append(Kept(np.asarray(time, np.float64)[held], kind[held]))
    return out


def kept_by(layers: Sequence[State], model: Model, spec: Spec, *, seconds: float) -> list[Kept]:
    """Return what every layer of a model's stream holds that attends; nothing of features.

    Where no layer attends that is one layer with nothing in it.

    Args:
      layers: each layer's slots.
      model: whose stream it is.
      spec: of the stream.
      seconds: length of the stream so far.
    """
    if not layers:
        return [Kept(np.zeros(0), np.zeros(0, np.int8))] * max(spec.layers, 1)
    ticks = model.ticks_per_second
    return kept(layers, seconds=seconds, seconds_per_tick=None if ticks is None else 1 / ticks)


def count_modalities(layers: Sequence[Kept]) -> dict[str, int]:
    """Return the tokens of each modality over all layers, those that are absent left out."""
    kinds = np.concatenate([layer.modality for layer in layers] or [np.zeros(0, np.int8)])
    counts = np.bincount(kinds, minlength=len(MODALITY_NAMES))
    return {name: int(n) for name, n in zip(MODALITY_NAMES, counts, strict=True) if n}
