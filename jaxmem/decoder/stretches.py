"""The order of a decoder's layers: stretches of one repeated pattern, each of them one loop.

A pattern is attention with a memory in most decoders, and for example three layers with a state
and one that attends in hybrid ones. Layers of a kind are numbered by themselves: what a memory
counts are the layers that attend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.mixers.base import Mixer
from jaxmem.typing import Array, Int, PyTree

LONGEST = 8
"""Layers of a pattern at most: its layers are unrolled in the body of the loop."""

Kind = Mixer | None
"""What mixes the tokens of a layer: a layer with a state, or None: attention with a memory."""


class Place(NamedTuple):
    """A layer inside the loop."""

    kind: Kind
    layer: Int[Array, ""]  # number among the layers of its kind
    number: Int[Array, ""]  # number in the decoder
    window: int  # slots that it reads of the flat pool, where it attends


@dataclass(frozen=True)
class Stretch:
    """Layers that one loop passes: a pattern, repeated.

    Attributes:
      kinds: of the pattern.
      times: how often it comes.
      first: number of its first layer in the decoder.
      firsts: number of the first layer of each place among the layers of its kind.
      window: slots that the layers that attend read of the flat pool.
    """

    kinds: tuple[Kind, ...]
    times: int
    first: int
    firsts: tuple[int, ...]
    window: int = 0

    def places(self, i: Int[Array, ""]) -> list[Place]:
        """Return the layers of repetition `i`, which may be traced."""
        each = Counter(self.kinds)
        return [
            Place(kind, first + i * each[kind], self.first + i * len(self.kinds) + p, self.window)
            for p, (kind, first) in enumerate(zip(self.kinds, self.firsts, strict=True))
        ]


def stretches(kinds: Sequence[Kind], windows: Sequence[int]) -> tuple[Stretch, ...]:
    """Return the stretches of a decoder, in order.

    Args:
      kinds: of every layer.
      windows: slots that every layer that attends reads; layers of one stretch read equally many.
    """
    window = iter(windows)
    layers = [(kind, next(window) if kind is None else None) for kind in kinds]
    out, seen, at = [], Counter(), 0
    while at < len(layers):
        period, times = _pattern(layers[at:])
        mine = layers[at : at + period]
        # A longer pattern may hold several windows; its layers all read the longest.
        longest = max((w for _, w in mine if w is not None), default=0)
        pattern = tuple(kind for kind, _ in mine)
        firsts = tuple(seen[k] + pattern[:p].count(k) for p, k in enumerate(pattern))
        out.append(Stretch(pattern, times, at, firsts, longest))
        seen.update(pattern * times)
        at += period * times
    return tuple(out)


def cut_at(order: Sequence[Stretch], number: int) -> tuple[Stretch, ...]:
    """Return the same layers in stretches of which none passes from below layer `number` on."""
    return tuple(part for stretch in order for part in _cut(stretch, number - stretch.first))


def _cut(stretch: Stretch, layers: int) -> list[Stretch]:
    """Return a stretch as the repetitions before, in, and after its first so many layers."""
    period = len(stretch.kinds)
    if not 0 < layers < period * stretch.times:
        return [stretch]
    times, rest = divmod(layers, period)
    ends = [(0, period, 0, times)]
    if rest:
        ends += [(0, rest, times, times + 1), (rest, period, times, times + 1)]
    ends.append((0, period, times + bool(rest), stretch.times))
    return [_part(stretch, *end) for end in ends if end[2] < end[3]]


def _part(stretch: Stretch, low: int, high: int, begin: int, end: int) -> Stretch:
    """Return layers `low` to `high` of the pattern in repetitions `begin` to `end`."""
    each = Counter(stretch.kinds)
    places = list(zip(stretch.kinds, stretch.firsts, strict=True))[low:high]
    return replace(
        stretch,
        kinds=stretch.kinds[low:high],
        times=end - begin,
        first=stretch.first + begin * len(stretch.kinds) + low,
        firsts=tuple(first + begin * each[kind] for kind, first in places),
    )


def _pattern(layers: Sequence[Any]) -> tuple[int, int]:
    """Return period and repetitions of the pattern that covers the most layers at the front."""
    found = (1, 1)
    for period in range(1, min(LONGEST, len(layers)) + 1):
        times = 1
        while layers[times * period : (times + 1) * period] == layers[:period]:
            times += 1
        if times > 1 and period * times > found[0] * found[1]:
            found = period, times
    return found


Body = Callable[[PyTree, Place, Any], tuple[PyTree, Any]]


def scan(
    stretch: Stretch, body: Body, held: PyTree, given: Sequence[Any] | None = None
) -> tuple[PyTree, tuple[Any, ...]]:
    """Pass `held` through the layers of a stretch.

    Args:
      stretch: its layers.
      body: from what is held, the layer and what is given to it, to what is held after it and what
        it puts out.
      held: what goes from layer to layer.
      given: for every place of the pattern arrays [times, ...], or None.

    Returns:
      What is held in the end, and for every place of the pattern what was put out, [times, ...].
    """
    given = (None,) * len(stretch.kinds) if given is None else tuple(given)

    # The counter is carried: numbers read from an array [times] made a chunk 12 % slower on a CPU.
    def repetition(loop: tuple[Array, PyTree], given: tuple[Any, ...]) -> tuple[PyTree, Any]:
        (i, held), out = loop, []
        for place, mine in zip(stretch.places(i), given, strict=True):
            held, found = body(held, place, mine)
            out.append(found)
        return (i + 1, held), tuple(out)

    start = jnp.zeros((), jnp.int32), held
    (_, held), out = jax.lax.scan(repetition, start, given, length=stretch.times)
    return held, out


def through(
    order: Sequence[Stretch],
    body: Body,
    held: PyTree,
    given: Sequence[Sequence[Any] | None] | None = None,
) -> tuple[PyTree, list[tuple[Any, ...]]]:
    """Pass `held` through the stretches of a decoder; as `scan`, with one `given` for each.

    Returns:
      What is held in the end, and what was put out, by stretch and place of its pattern.
    """
    found = []
    for stretch, mine in zip(order, given or [None] * len(order), strict=True):
        held, out = scan(stretch, body, held, mine)
        found.append(out)
    return held, found


def by_layer(order: Sequence[Stretch], outputs: Sequence[tuple[Any, ...]]) -> PyTree:
    """Return what the layers that attend put out, stacked in order [L, ...]; None: none do."""
    parts = []
    for stretch, out in zip(order, outputs, strict=True):
        mine = [x for kind, x in zip(stretch.kinds, out, strict=True) if kind is None]
        if mine:
            join = lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:])
            parts.append(mine[0] if len(mine) == 1 else jax.tree.map(join, *mine))
    if len(parts) < 2:
        return parts[0] if parts else None
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
