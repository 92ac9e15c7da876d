"""HERMES (arXiv 2601.14724, ACL 2026): a memory in layers of depth, each with its own taste.

Shallow layers keep the newest tokens, deep layers what a fixed guidance prompt attends to, middle
layers a mix that moves from one to the other. Scores are smoothed from layer to layer, every layer
keeps its own best tokens, and a deep layer folds those it drops into one summary token per chunk.

Two probes follow every chunk, in this order (texts: `guidance`): the one of the
middle layers, and the one of the deep layers. They run only in the layers that use them, and only
when the chunk makes tokens be dropped.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.kernels.select import select
from jaxmem.kv import EMPTY
from jaxmem.memory.base import (
    Chunk,
    Embeds,
    Memory,
    Question,
    Received,
    Requires,
    Spec,
    State,
    View,
)
from jaxmem.memory.hermes import bands
from jaxmem.memory.hermes.bands import DEEP, MIDDLE, Bands
from jaxmem.memory.hermes.merge import Slots, shrink
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts.scored import AUDIO_SHARE
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree

EPS = 1e-6


class Mix(NamedTuple):
    """How a layer weighs recency against attention; pairs run over the middle band."""

    weight: tuple[float, float]  # of recency at the band's first layer, and past its last
    decay: tuple[float, float]  # k of exp(-k age), likewise; shallow layers take the first
    age: Literal["relative", "tokens"] = "relative"  # 0 (newest) to 1 (oldest), or token counts


QWEN = Mix((0.75, 0.15), (20.0, 8.0))
"""As released for Qwen2.5-VL; its weights are the published ones."""
LLAVA = Mix((1.0, 0.1), (20.0, 0.5))
"""As released for LLaVA-OneVision."""
PAPER = Mix((0.75, 0.15), (20.0, 20.0), "tokens")
"""As published; k is not given there, 20 is from the released code."""


class Notes(NamedTuple):
    """Numbers of every layer [L]."""

    capacity: Int[Array, "L"]  # M, slots that may be filled
    prefix: Num[Array, "L A"]  # P, where positions begin
    next_pos: Num[Array, "L A"]  # where the next chunk begins


def hermes(
    budget: int,
    *,
    mix: Mix = QWEN,
    shares: tuple[float, float] = (0.1, 0.3),
    smoothing: tuple[float, float, float] = (0.1, 0.3, 0.4),
    recursive: bool = True,
    attention: Literal["official", "exact"] = "official",
    summary: bool = True,
    per_kind: bool = True,
    audio_share: float = AUDIO_SHARE,
    positions: Literal["lazy", "eager", "keep"] = "lazy",
    max_position: int = 32_768,
    margin: int = 1024,
    shared_offset: Rope | None = None,
) -> Memory:
    """Return HERMES; the defaults are those of the released code for Qwen2.5-VL.

    Args:
      budget: M, slots per layer; tokens are dropped when prefix, memory and chunk exceed it.
      mix: weight of recency in the middle band: `QWEN`, `LLAVA`, `PAPER`, or your own.
      shares: of shallow and of deep layers.
      smoothing: weight of the next layer's scores in a shallow, middle and deep layer; zeros
        switch it off.
      recursive: smooth from the top down with smoothed scores (released), or with raw ones
        (published).
      attention: of a probe: its raw embeddings enter every layer, without a causal mask
        ("official", what the released code does), or it is a causal pass of its own ("exact").
      summary: fold what deep layers drop into a token.
      per_kind: audio has a part of the budget of its own; False: all tokens compete (published,
        for models without sound).
      audio_share: that part.
      positions: close the gaps of dropped tokens when positions near the model's limit ("lazy", for
        streams), at every eviction ("eager", for videos known to end), or keep positions as they
        arrived and never close a gap ("keep").
      max_position: the model's limit.
      margin: how near to it positions are closed up; a chunk should advance by less.
      shared_offset: the model's rotary embedding, to place new rows of all layers where layer 0
        ends, though every layer records its own end. The released Qwen code does so by accident.

    Raises:
      ValueError: if an option is unknown or out of range.
    """
    parts = evict.caps("hermes", budget, per_kind, audio_share)
    if parts[0] < 2:
        raise ValueError(
            f"hermes needs at least 2 slots per layer beside those of audio (one is a summary's), "
            f"got {parts[0]} of {budget}."
        )
    if attention not in ("official", "exact"):
        raise ValueError(f"attention must be 'official' or 'exact', got {attention!r}.")
    if positions not in ("lazy", "eager", "keep"):
        raise ValueError(f"positions must be 'lazy', 'eager' or 'keep', got {positions!r}.")
    if min(smoothing) < 0 or max(smoothing) > 1:
        raise ValueError(f"smoothing factors are between 0 and 1, got {smoothing}.")
    bands.split(1, *shares)

    def init(spec: Spec) -> State:
        start = jnp.broadcast_to(places.start(spec)[None], (spec.layers, spec.axes))
        one = Slots(spec.empty(budget))
        if shared_offset is not None:
            one = one._replace(record=one.tokens.pos[:, 0])
        slots = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (spec.layers, *x.shape)), one)
        return State(slots, Notes(jnp.full((spec.layers,), budget, jnp.int32), start, start))

    def place(state: State) -> Num[Array, "L A"]:
        end = state.aux.next_pos
        return end if shared_offset is None else jnp.broadcast_to(end[:1], end.shape)

    def view(state: State, bank: PyTree, rows: Embeds) -> View:
        del bank
        band = bands.split(state.aux.capacity.shape[0], *shares)
        new = jnp.sum(rows.modality != EMPTY, dtype=jnp.int32)
        passes = jnp.asarray(_passes(band, attention)) & _full(state, new)[:, None]
        after = state.aux.next_pos + rows.advance[None].astype(state.aux.next_pos.dtype)
        probe = after if shared_offset is not None else None
        return View(state.slots.tokens, place(state), probe, probing=passes)

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        slots, notes = state
        band = bands.split(notes.capacity.shape[0], *shares)
        n = jax.vmap(tk.count)(slots.tokens)
        new = jax.vmap(tk.count)(seen.tokens)
        pool = slots.tokens.modality.shape[1] + seen.tokens.modality.shape[1]
        valid = jnp.arange(pool)[None] < (n + new)[:, None]
        score = importance(attention_received(seen, n, band), valid, mix, band)
        score = bands.smooth(score, np.asarray(smoothing)[band.of], recursive=recursive)
        full = _full(state, new[0])
        deep = jnp.asarray(band.of == DEEP) & summary
        # A summary takes a slot that is not audio's; up to the budget, nothing is dropped.
        kept = jnp.asarray(parts, jnp.int32)[None] - deep[:, None] * jnp.eye(
            1, len(parts), dtype=jnp.int32
        )
        caps = jnp.where(full[:, None], kept, notes.capacity[:, None])

        record = None
        if slots.record is not None:
            own = seen.tokens.pos[:, :, 0] - seen.base[:, None]
            record = notes.next_pos[:, None] + own
        fresh = Slots(seen.tokens, record)
        top = jax.vmap(lambda part, start: places.largest(part.placed, part.held, start))
        top = jnp.maximum(top(slots, notes.prefix), top(fresh, notes.prefix))
        far = jnp.max(top) > max_position - margin
        close = full & (far if positions == "lazy" else positions == "eager")

        def layer(item: tuple) -> Slots:
            slots, fresh, n, score, cap, fold, close, start = item
            pool = tk.append(slots, fresh, n)
            ranked = evict.by_part(score[None], pool.tokens.modality, len(parts))[0]
            chosen = select(ranked, cap, slots=slots.tokens.modality.shape[0])
            place = {"close": close, "start": start, "behind": positions != "keep"}
            return shrink(pool, *chosen, fold=fold, turn=shared_offset, **place)

        score = jnp.where(valid, score, -jnp.inf)
        # One layer at a time: all pools side by side would be several copies of the memory.
        items = (slots, fresh, n, score, caps, deep & full, close, notes.prefix)
        slots = jax.lax.map(layer, items)
        end = seen.next_pos
        if positions != "keep":
            end = jax.vmap(lambda s, p: places.behind(s.placed, s.held, p))
            end = end(slots, notes.prefix).astype(notes.next_pos.dtype)
        return State(slots, notes._replace(next_pos=end)), None

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        del bank, query
        return View(state.slots.tokens, place(state))

    reads = Requires(probe="embedding" if attention == "official" else "causal")
    return Memory(init, view, write, recall, reads, scope="stack", name="hermes")


def _full(state: State, new: Int[Array, ""]) -> Bool[Array, "L"]:
    """Return whether a chunk of `new` tokens, prefix included, exceeds the budget."""
    n = jax.vmap(tk.count)(state.slots.tokens)
    prefix = state.aux.prefix[:, 0].astype(jnp.int32)
    return (new > 0) & (prefix + n + new > state.aux.capacity)


def _passes(band: Bands, attention: str) -> np.ndarray:
    """Return which layers the two probes must pass through, [L, 2]."""
    middle, deep = band.of == MIDDLE, band.of == DEEP
    if attention == "exact":  # a causal pass comes from below
        middle = np.cumsum(middle[::-1])[::-1] > 0
        deep = np.full_like(deep, deep.any())
    return np.stack([middle, deep], axis=1)


def attention_received(seen: Chunk, n: Int[Array, "L"], band: Bands) -> Float[Array, "L N"]:
    """Return the mean attention that each pool entry received from its band's probe.

    The softmax runs over prefix, pool and the probe itself; the pool's part is not normalised.
    """
    if seen.probe is None or seen.probe_rows is None or seen.probe.memory.shape[1] != 2:
        raise ValueError(
            "hermes scores by two probes (for middle and deep layers); pass both to the stream, "
            "see jaxmem.loop."
        )
    layers, which = np.arange(band.layers), (band.of == DEEP).astype(np.int32)
    mass = Received(*(part[layers, which, 0] for part in seen.probe))
    rows = jnp.maximum(seen.probe_rows[layers, which], 1).astype(jnp.float32)
    return jax.vmap(tk.append)(mass.memory, mass.chunk, n) / rows[:, None]


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
