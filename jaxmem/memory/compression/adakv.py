"""Ada-KV (arXiv 2407.11550): the slots of a layer go to the heads whose scores are worth them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.kernels.select import top_mask
from jaxmem.kv import KV
from jaxmem.memory.base import Spec, State
from jaxmem.memory.compression import head_ragged as ragged
from jaxmem.memory.compression.criticalkv import OverScore, output_norm, two_stage
from jaxmem.memory.exchange import Chunk, Requires, View
from jaxmem.memory.parts import scored, scores
from jaxmem.memory.parts.options import at_least, between
from jaxmem.typing import Array, Bool, Float, Int, Num


class Slots(NamedTuple):
    """At rest [M, 1, ...], one KV head's token each; side by side [W, G, ...] (`head_ragged`)."""

    kv: KV
    norm: Float[Array, "M 1"] | None = None  # |W_o v|_1, for the choice in two stages


class Aux(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]  # M
    next_pos: Num[Array, "A"]
    quotas: Int[Array, "C"]  # of an even share: (all), or (all but audio, audio)
    counts: Int[Array, "G"]  # tokens that every head holds


@dataclass(frozen=True)
class AdaKV(OverScore):
    """Ada-KV over the score of another method: `AdaKV(SnapKV(96))`.

    The heads of a layer share a flat pool: after each chunk the best G * budget tokens of all heads
    together are kept, in so many slots. While a chunk is read every head is spread out to the most
    it may hold.

    Attributes:
      inner: the method whose score is used; its budget is that of a KV head, on average over the
        heads of a layer. Empty candidates come first and last.
      alpha: part of an even share that no head goes below.
      mix: how. False: its best tokens are certain of slots (kvpress). True: it gets alpha * even +
        (1 - alpha) * won slots, rounded down (the authors' code rounds).
      most: a head holds at most so many even shares; None: what the others leave, as published.
      first: CriticalAdaKV: the score fills this part of a head's slots (0.5 as published), the
        score weighed by values the rest; None: the score alone.

    Raises:
      ValueError: if an option is out of range, or `inner` reads a sliding window.
    """

    _: KW_ONLY
    alpha: float = 0.2
    mix: bool = False
    most: float | None = None
    first: float | None = None

    def __post_init__(self):
        super().__post_init__()
        between(self.name, 0, 1, alpha=self.alpha, first=self.first)
        at_least(self.name, 1, most=self.most)
        if self.inner.requires.window is not None:
            raise ValueError(
                "heads hold different numbers, so rows cannot look at a sliding window; use a "
                "score without one."
            )

    @property
    def requires(self) -> Requires:
        return self.inner.requires._replace(output=self.first is not None)

    @property
    def safe(self) -> tuple[int, ...]:
        """Return the slots of each part that no head goes below."""
        return tuple(_floor(self.alpha, part) for part in self.quotas)

    def limits(self, groups: int) -> tuple[int, ...]:
        """Return the slots of each part that one head may hold: what the others must leave."""
        pairs = zip(self.quotas, self.safe, strict=True)
        left = [groups * part - (groups - 1) * s for part, s in pairs]
        shares = groups if self.most is None else self.most
        limits = [min(n, _floor(shares, p)) for n, p in zip(left, self.quotas, strict=True)]
        return tuple(limits)

    def width(self, groups: int) -> int:
        """Return the slots that one head may hold in all, whichever part lends to the other."""
        total = sum(self.quotas)
        lent = groups * total - (groups - 1) * _floor(self.alpha, total)
        most = groups if self.most is None else self.most
        return max(sum(self.limits(groups)), min(lent, _floor(most, total)))

    def init(self, spec: Spec, layer: int = 0) -> State:
        total, aux = spec.kv_heads * self.budget, self.inner.aux(spec)
        norm = None if self.first is None else jnp.zeros((total, 1), jnp.float32)
        slots = Slots(replace(spec, kv_heads=1).empty(total), norm)
        counts = jnp.zeros((spec.kv_heads,), jnp.int32)
        return State(slots, Aux(jnp.asarray(total, jnp.int32), aux.next_pos, aux.quotas, counts))

    def kv(self, state: State) -> KV:
        counts = state.aux.counts
        return ragged.unpack(state.slots.kv, counts, self.width(counts.shape[0]))

    def view(self, spec: Spec, state: State, embeds: Any, bank: Any = None) -> View:
        slots, base = self._side_by_side(state)
        return View(slots.kv, base)

    def _side_by_side(self, state: State) -> tuple[Slots, Num[Array, "A"]]:
        """Return what the heads hold, side by side, and where the next chunk begins.

        With `reindex` the newest token of every head comes right before the next chunk.
        """
        counts, base = state.aux.counts, state.aux.next_pos
        slots = ragged.unpack(state.slots, counts, self.width(counts.shape[0]))
        if not self.inner.reindex:
            return slots, base
        base = base + jnp.max(counts).astype(base.dtype)
        index = jnp.arange(slots.kv.modality.shape[0], dtype=jnp.int32)[:, None] - counts[None]
        pos = base[None, None] + index[..., None].astype(base.dtype)
        return slots._replace(kv=slots.kv._replace(pos=pos)), base

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        aux: Aux = state.aux
        fresh = Slots(chunk.kv, None if self.first is None else output_norm(chunk))
        slots = ragged.after(self._side_by_side(state)[0], fresh, aux.counts)
        pool = ragged.candidates_of(spec, slots.kv, chunk, aux.counts, chunk.next_pos)
        pool = pool._replace(quotas=aux.quotas)
        score = jnp.broadcast_to(self.inner.ranked(pool), slots.kv.modality.T.shape)
        mask = self._chosen(score, slots, aux.quotas)
        size = scored.length(state)
        slots, counts = ragged.pack(slots, mask, aux.capacity, size)
        return State(slots, self.inner.moved(aux._replace(counts=counts), chunk)), None

    def _chosen(
        self, score: Float[Array, "G N"], slots: Slots, quotas: Int[Array, "C"]
    ) -> Bool[Array, "G N"]:
        """Return which tokens every head keeps."""
        modality, parts, groups = slots.kv.modality, quotas.shape[0], score.shape[0]
        competing = jnp.any(scored.members(modality, parts), axis=1)
        even = scored.lend(quotas, competing)
        safe = (self.alpha * even).astype(jnp.int32)
        ranked = scored.by_part(score, modality, parts)
        ranked = scores.only(ranked, _best_of_each(ranked, self._limits(even, safe, groups)))
        certain = ranked if self.mix else scores.protect(ranked, _best_of_each(ranked, safe))
        mask = ragged.best(certain, even)
        if self.mix:
            mask = _mixed(ranked, mask, even, self.alpha)
        if self.first is not None and slots.norm is not None:
            counts = jnp.sum(mask, axis=2, dtype=jnp.int32)
            stage = jnp.maximum((self.first * counts).astype(jnp.int32), safe[None])
            weighed = two_stage(score, slots.norm.T, modality, stage)
            mask = jax.vmap(top_mask)(scored.by_part(weighed, modality, parts), counts)
        return jnp.any(mask, axis=1)

    def _limits(self, even: Int[Array, "C"], safe: Int[Array, "C"], groups: int) -> Int[Array, "C"]:
        left = groups * even - (groups - 1) * safe
        most = float(groups if self.most is None else self.most)
        return jnp.minimum(left, (most * even).astype(jnp.int32))


def _floor(share: float, slots: int) -> int:
    """Return a share in whole slots, rounded in float32 as `write` does with quotas as data."""
    return int(np.float32(share) * np.float32(slots))


def _best_of_each(ranked: Float[Array, "G C N"], quotas: Int[Array, "C"]) -> Bool[Array, "G C N"]:
    return jax.vmap(top_mask, in_axes=(0, None))(ranked, quotas)


def _mixed(ranked: Array, won: Array, quotas: Array, alpha: float) -> Bool[Array, "G C N"]:
    """Return every head's best floor(alpha * even + (1 - alpha) * won)."""
    own = jnp.sum(won, axis=2, dtype=jnp.float32)
    counts = jnp.floor(alpha * quotas[None].astype(jnp.float32) + (1.0 - alpha) * own)
    return jax.vmap(top_mask)(ranked, counts.astype(jnp.int32))
