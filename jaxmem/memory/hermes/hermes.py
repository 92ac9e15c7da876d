"""HERMES (arXiv 2601.14724, ACL 2026): bands of layers, each with its own retention rule.

Shallow layers keep the newest tokens, deep layers what a fixed guidance prompt attends to, middle
layers a mix that moves from one to the other. Scores are smoothed from layer to layer, every layer
keeps its own best tokens, and a deep layer folds those it drops into one summary token per chunk.

Two probes follow every chunk, in this order (texts: `guidance`): the one of the middle layers, and
the one of the deep layers. They run only in the layers that use them, and only when the chunk makes
tokens be dropped.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.kernels.select import select
from jaxmem.kv import EMPTY, KV, SUMMARY
from jaxmem.memory import layout
from jaxmem.memory.base import Memory, Spec, State, tupled
from jaxmem.memory.exchange import Chunk, Embeds, Probes, Prompt, Received, Requires, View
from jaxmem.memory.hermes import bands
from jaxmem.memory.hermes.bands import DEEP, MIDDLE, MIXES, Bands, Mix, MixName
from jaxmem.memory.hermes.guidance import guidance
from jaxmem.memory.hermes.merge import shrink
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored
from jaxmem.memory.parts.options import at_least, between, one_of
from jaxmem.memory.parts.scored import AUDIO_SHARE
from jaxmem.typing import Array, Bool, Float, Int, Num

EPS = 1e-6
MAX_POSITION = 32_768
"""Of the released models, where a model does not say."""


class Aux(NamedTuple):
    """Numbers of every layer [L]."""

    capacity: Int[Array, "L"]  # M, slots that may be filled
    prefix: Num[Array, "L A"]  # P, where positions begin
    next_pos: Num[Array, "L A"]  # where the next chunk begins


@dataclass(frozen=True)
class Hermes(Memory):
    """HERMES; the defaults are those of the released code for Qwen2.5-VL.

    Attributes:
      budget: M, slots per layer; tokens are dropped when prefix, memory and chunk exceed it.
      mix: weight of recency in the middle band, and how it decays: "qwen", "llava" (as released for
        each), "paper", or a `Mix`.
      shares: of shallow and of deep layers.
      smoothing: weight of the next layer's scores in a shallow, middle and deep layer; zeros
        switch it off.
      recursive: smooth from the top down with smoothed scores (released), or with raw ones
        (published).
      attention: of a probe: its raw embeddings enter every layer, without a causal mask
        ("official", what the released code does), or it is a causal pass of its own ("exact").
      summary: fold what deep layers drop into a token.
      audio_share: audio's part of the budget, of its own; None: all tokens compete (published, for
        models without audio).
      positions: close the gaps of dropped tokens when positions near the model's limit ("lazy", for
        streams), at every eviction ("eager", for videos known to end), or keep positions as they
        arrived and never close a gap ("keep").
      max_position: the model's limit; None: `Spec.max_position`, or 32,768.
      margin: how near to it positions are closed up; a chunk should advance by less.
      dialogue: guide by the last question and answer as published. What is kept then depends on
        what was asked; False: a question never changes a stream.

    Raises:
      ValueError: if an option is unknown or out of range.
    """

    per: ClassVar[Literal["layer", "stack"]] = "stack"
    smallest: ClassVar[int] = 4
    """Fewest slots that every division of the budget leaves room for a token and a summary in."""

    budget: int
    _: KW_ONLY
    mix: MixName | Mix = "qwen"
    shares: tuple[float, float] = (0.1, 0.3)
    smoothing: tuple[float, float, float] = (0.1, 0.3, 0.4)
    recursive: bool = True
    attention: Literal["official", "exact"] = "official"
    summary: bool = True
    audio_share: float | None = AUDIO_SHARE
    positions: Literal["lazy", "eager", "keep"] = "lazy"
    max_position: int | None = None
    margin: int = 1024
    dialogue: bool = False

    def __post_init__(self):
        tupled(self, "shares", "smoothing")
        scored.check_budget(self.name, self.budget, self.audio_share)
        if self.quotas[0] < 2:
            least = [b for b in range(99) if scored.split(b, self.audio_share)[0] >= 2][:1]
            repair = f"raise the budget to {least[0]}, or " if least else ""
            raise ValueError(
                "hermes needs at least 2 slots per layer beside those of audio (one is a "
                f"summary's), got {self.quotas[0]} of {self.budget}; {repair}lower audio_share."
            )
        if not isinstance(self.mix, Mix):
            one_of(self.name, tuple(MIXES), mix=self.mix)
        one_of(self.name, ("official", "exact"), attention=self.attention)
        one_of(self.name, ("lazy", "eager", "keep"), positions=self.positions)
        for factor in self.smoothing:
            between(self.name, 0, 1, smoothing=factor)
        at_least(self.name, 1, max_position=self.max_position)
        at_least(self.name, 0, margin=self.margin)
        bands.split(1, *self.shares)

    @property
    def requires(self) -> Requires:
        form = "embedding" if self.attention == "official" else "causal"
        return Requires(probes=Probes(2, form))

    def prompts(self, dialogue: tuple[str, str] | None = None) -> tuple[Prompt, ...]:
        """Return the guidance of the middle layers, and that of the deep ones (appendix B)."""
        middle, deep = guidance(dialogue if self.dialogue else None)
        return Prompt(middle), Prompt(deep)

    @property
    def quotas(self) -> tuple[int, ...]:
        """Return how the budget is divided."""
        return scored.split(self.budget, self.audio_share)

    def band(self, layers: int) -> Bands:
        """Return which layers are shallow, middle and deep."""
        return bands.split(layers, *self.shares)

    def init(self, spec: Spec, layer: int = 0) -> State:
        start = jnp.broadcast_to(places.start(spec)[None], (spec.layers, spec.axes))
        one = spec.empty(self.budget)
        slots = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (spec.layers, *x.shape)), one)
        return State(slots, Aux(jnp.full((spec.layers,), self.budget, jnp.int32), start, start))

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: Any = None) -> View:
        probing = None
        if embeds is not None:
            new = jnp.sum(embeds.modality != EMPTY, dtype=jnp.int32)
            passes = self.band(spec.layers).passes(self.attention)
            probing = jnp.asarray(passes) & _full(state, new)[:, None]
        return View(state.slots, state.aux.next_pos, probing=probing)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        held, aux = state
        n = jax.vmap(kvs.count)(held)
        full = _full(state, jax.vmap(kvs.count)(chunk.kv)[0])
        score = self.scores(chunk, n, spec.layers)
        plan = Plan(
            quotas=self._quotas(state, chunk, full, spec.layers),
            fold=self._folds(spec.layers) & full,
            close=full & self._near_the_end(spec, held, chunk, aux),
            start=aux.prefix,
        )
        step = lambda held, given: (self._layer(held, *given), None)
        slots, _ = layout.rewrite(held, step, (chunk.kv, n, score, plan))
        return State(slots, aux._replace(next_pos=self._next_pos(slots, chunk, aux))), None

    def scores(self, chunk: Chunk, n: Int[Array, "L"], layers: int) -> Float[Array, "L N"]:
        """Return what each pool entry is worth in its layer, smoothed over layers."""
        band, new = self.band(layers), jax.vmap(kvs.count)(chunk.kv)
        attention = attention_received(chunk, n, band)
        valid = jnp.arange(attention.shape[1])[None] < (n + new)[:, None]
        mix = MIXES[self.mix] if isinstance(self.mix, str) else self.mix
        score = importance(attention, valid, mix, band)
        factors = np.asarray(self.smoothing)[band.of]
        score = bands.smooth(score, factors, recursive=self.recursive)
        return jnp.where(valid, score, -jnp.inf)

    def _folds(self, layers: int) -> Bool[Array, "L"]:
        """Return which layers fold what they drop into a summary."""
        return jnp.asarray(self.band(layers).of == DEEP) & self.summary

    def _quotas(
        self, state: State, chunk: Chunk, full: Bool[Array, "L"], layers: int
    ) -> Int[Array, "L C"]:
        """Return the slots of each part; a summary takes one that is not audio's.

        Up to the budget nothing is dropped.
        """
        parts = scored.split_at(state.aux.capacity[0], self.budget, self.audio_share)
        both = jnp.concatenate([state.slots.modality, chunk.kv.modality], axis=1)
        both = jnp.where(both == SUMMARY, EMPTY, both)  # of audio as well as of pictures
        modality = both.reshape(-1, 1)  # layers keep different tokens: a part is empty in all
        parts = scored.lend(parts, scored.members(modality, parts.shape[0])[:, 0])
        first = jnp.argmax(parts > 0)  # without any but audio tokens the slot is audio's
        one = (jnp.arange(parts.shape[0]) == first).astype(jnp.int32)
        kept = parts[None] - self._folds(layers)[:, None] * one[None]
        return jnp.where(full[:, None], kept, state.aux.capacity[:, None])

    def _near_the_end(self, spec: Spec, held: KV, chunk: Chunk, aux: Aux) -> Bool[Array, ""]:
        """Return whether the gaps between positions are closed at an eviction."""
        if self.positions != "lazy":
            return jnp.bool_(self.positions == "eager")
        top = jax.vmap(lambda kv, start: places.largest(kv.pos[:, 0], kvs.valid(kv)[:, 0], start))
        far = jnp.maximum(top(held, aux.prefix), top(chunk.kv, aux.prefix))
        limit = self.max_position or spec.max_position or MAX_POSITION
        return jnp.max(far) > limit - self.margin

    def _layer(
        self, held: KV, fresh: KV, n: Int[Array, ""], score: Float[Array, "N"], plan: Plan
    ) -> KV:
        """Return what one layer keeps."""
        pool = kvs.append(held, fresh, n)
        ranked = scored.by_part(score[None], pool.modality, plan.quotas.shape[0])[0]
        chosen = select(ranked, plan.quotas, slots=held.modality.shape[0])
        more = {"start": plan.start, "last": self.positions != "keep"}
        return shrink(pool, *chosen, fold=plan.fold, close=plan.close, **more)

    def _next_pos(self, slots: KV, chunk: Chunk, aux: Aux) -> Num[Array, "L A"]:
        """Return where the next chunk begins: right after what is held, or where this one ended."""
        if self.positions == "keep":
            return chunk.next_pos
        following = jax.vmap(
            lambda kv, start: places.following(kv.pos[:, 0], kvs.valid(kv)[:, 0], start)
        )
        return following(slots, aux.prefix).astype(aux.next_pos.dtype)


class Plan(NamedTuple):
    """What every layer does with its pool; leading axis L."""

    quotas: Int[Array, "C"]
    fold: Bool[Array, ""]
    close: Bool[Array, ""]
    start: Num[Array, "A"]


def _full(state: State, new: Int[Array, ""]) -> Bool[Array, "L"]:
    """Return whether a chunk of `new` tokens, prefix included, exceeds the budget."""
    n = jax.vmap(kvs.count)(state.slots)
    prefix = state.aux.prefix[:, 0].astype(jnp.int32)
    return (new > 0) & (prefix + n + new > state.aux.capacity)


def attention_received(chunk: Chunk, n: Int[Array, "L"], band: Bands) -> Float[Array, "L N"]:
    """Return the mean attention that each pool entry received from its band's probe.

    The softmax runs over prefix, pool and the probe itself; the pool's part is not normalised.
    """
    if chunk.probed is None or chunk.probed.rows.shape[1] != 2:
        raise ValueError(
            "hermes scores by two probes (for middle and deep layers); pass both to the stream, "
            "see jaxmem.bound.probe_rows."
        )
    layers, which = np.arange(band.layers), (band.of == DEEP).astype(np.int32)
    received = Received(*(part[layers, which, 0] for part in chunk.probed.received))
    rows = jnp.maximum(chunk.probed.rows[layers, which], 1).astype(jnp.float32)
    return jax.vmap(kvs.append)(received.memory, received.chunk, n) / rows[:, None]


def importance(
    attention: Float[Array, "L N"], valid: Bool[Array, "L N"], mix: Mix, band: Bands
) -> Float[Array, "L N"]:
    """Return (1 - w) attention + w recency, both scaled to [0, 1); 0 for invalid entries."""
    middle, p = band.of == MIDDLE, band.progress

    def schedule(shallow: float, ends: tuple[float, float]) -> Array:
        inside = ends[0] + (ends[1] - ends[0]) * p
        table = np.where(middle, inside, np.where(band.of == DEEP, 0.0, shallow))
        return jnp.asarray(table, jnp.float32)[:, None]

    w, k = schedule(1.0, mix.weight), schedule(mix.decay[0], mix.decay)
    count = jnp.sum(valid, axis=1, keepdims=True)
    age = (count - 1 - jnp.arange(valid.shape[1])[None]).astype(jnp.float32)
    if mix.age == "relative":
        age = age / jnp.maximum(count - 1, 1).astype(jnp.float32)
    recency = jnp.exp(-k * jnp.maximum(age, 0.0))
    return (1.0 - w) * _min_max(attention, valid) + w * _min_max(recency, valid)


def _min_max(x: Float[Array, "L N"], valid: Bool[Array, "L N"]) -> Float[Array, "L N"]:
    low = jnp.min(x, axis=1, keepdims=True, where=valid, initial=jnp.inf)
    high = jnp.max(x, axis=1, keepdims=True, where=valid, initial=-jnp.inf)
    return jnp.where(valid, (x - low) / (high - low + EPS), 0.0)
