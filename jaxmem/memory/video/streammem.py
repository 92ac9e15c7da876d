"""StreamMem (arXiv 2508.15717): what a chat template attends to, and one prototype per frame.

One causal probe follows every chunk: the template's tokens before an answer (`TEMPLATE` for the
Qwen family). `merge_frames`, given to the stream as `encode`, merges frames before the decoder.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Embeds, Memory, Received, Requires, State
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored as evict
from jaxmem.typing import Array, Float, Int, PyTree

TEMPLATE = "<|im_end|><|im_start|>assistant\n"


def streammem(
    budget: int,
    frame: int,
    *,
    prototypes: Literal["weighted", "mean", "none"] = "weighted",
    per_head: bool = False,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: places.Rule = "keep",
) -> Memory:
    """Return StreamMem: memory and chunk compete for each layer's budget by template attention.

    No code was released. Not published, and chosen here: attention is the mean over the probe's
    rows and the heads; a prototype stands at the mean position of its tokens by alpha (whole
    positions: rounded half up). When a chunk does not fit, each of its frames adds a prototype
    sum_j alpha_j (k_j, v_j), alpha the attention normalised within the frame, keys before
    rotation. It takes the arrival number of the frame's least attended token, which is not kept
    itself, so all heads add equally many; later it competes like any token.

    Args:
      budget: M / L, slots of every layer, prototypes included; the paper splits M evenly.
      frame: vision tokens of a frame; a chunk (8 frames in the paper) begins with a frame.
      prototypes: weights alpha as published, equal ones, or no prototypes.
      per_head: every KV head keeps its own tokens, by the mean over its query heads.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if a size is not positive or an option is unknown.
    """
    if frame < 1:
        raise ValueError(f"frame must be the vision tokens of a frame, at least 1, got {frame}.")
    if prototypes not in ("weighted", "mean", "none"):
        raise ValueError(f"prototypes must be 'weighted', 'mean' or 'none', got {prototypes!r}.")
    reads, score = Requires(probe="causal"), lambda pool: jnp.asarray(pool.received)
    more = {"per_head": per_head, "per_kind": per_kind, "audio_share": audio_share}
    ranked = evict.evict(budget, score, name="streammem", reads=reads, positions=positions, **more)

    def write(state: State, seen: Chunk) -> tuple[State, PyTree]:
        if seen.probe is None or seen.probe.chunk.shape[0] != 1:
            raise ValueError(
                "streammem scores by one probe (the chat template's tokens); pass it to the "
                "stream, see jaxmem.loop."
            )
        held, fresh, given = state.slots.tokens, seen.tokens, Received(*(x[0] for x in seen.probe))
        if prototypes != "none":
            # All heads hold equally many of each kind.
            rivals = [tk.valid(t) & ~((t.modality == tk.AUDIO) & per_kind) for t in (held, fresh)]
            over = sum(jnp.sum(r[:, 0], dtype=jnp.int32) for r in rivals) > state.aux.quotas[0]
            fresh, new = fold(fresh, given.chunk.T, frame, over, prototypes == "weighted")
            given = given._replace(chunk=new.T)
        return ranked.write(state, seen._replace(tokens=fresh, mass=given))

    return ranked._replace(write=write)


def fold(
    fresh: KV, given: Float[Array, "T Gm"], frame: int, over: Array, weighted: bool
) -> tuple[KV, Float[Array, "T Gm"]]:
    """Return a chunk, if `over` with prototypes (attention inf) for least attended tokens."""
    number, many = _frames(fresh.modality[:, 0], frame)
    member = (number[None] == jnp.arange(many)[:, None])[None]  # [1, F, T]
    mass = given.T[:, None]
    # Where all attention underflowed, all tokens weigh the same.
    weight = jnp.where(member, mass + 1e-30 if weighted else 1.0, 0.0)
    alpha = weight / jnp.maximum(jnp.sum(weight, axis=2, keepdims=True), 1e-30)  # [Gm, F, T]
    least = jnp.argmin(jnp.where(member, mass, jnp.inf), axis=2)
    at = jnp.where(jnp.any(member, axis=2) & over, least, number.shape[0])  # [Gm, F]

    def mean(x: Array) -> Float[Array, "F G D"]:
        by = jnp.broadcast_to(alpha, (x.shape[1], *alpha.shape[1:]))
        return jnp.einsum("gft,tgd->fgd", by, x.astype(jnp.float32), precision="highest")

    def put(x: Array, new: Array) -> Array:
        one = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"), (1, 0, 1), 1)
        return one(x, jnp.broadcast_to(at, (x.shape[1], many)), new.astype(x.dtype))

    first = fresh.pos[:1]  # means of small numbers: float32 would round those of a long stream
    pos = mean(fresh.pos - first)
    pos = jnp.floor(pos + 0.5) if jnp.issubdtype(first.dtype, jnp.integer) else pos
    k, v = put(fresh.k, mean(fresh.k)), put(fresh.v, mean(fresh.v))
    one = jnp.ones((many, given.shape[1]), jnp.int8)
    kind = put(fresh.modality, tk.SUMMARY * one)
    pos = put(fresh.pos, first + pos.astype(first.dtype))
    return KV(k, v, pos, fresh.index, kind), put(given, jnp.inf * one)


def merge_frames(rows: Embeds, frame: int, delta: float = 0.95) -> Embeds:
    """Return a chunk in which frames that resemble the one before them are averaged.

    Neighbours belong together if the cosine of their embeddings as they came (all `frame` rows as
    one vector) exceeds delta; a run of such frames becomes its mean, at the rows of its first
    frame. Text, audio and a last frame that is not complete stay as they are.
    """
    number, many = _frames(rows.modality, frame)
    image = number < many
    row = jnp.where(image, jnp.cumsum(image) - 1, many * frame)

    def frames(x: Array) -> Float[Array, "F d"]:
        dense = jnp.zeros((many * frame, x.shape[1]), jnp.float32)
        return dense.at[row].set(x.astype(jnp.float32), mode="drop").reshape(many, -1)

    unit = frames(rows.x)
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    near = jnp.sum(unit[1:] * unit[:-1], axis=1) > delta
    near = jnp.pad(near, (1, 0)) & (jnp.arange(many) < jnp.sum(image) // frame)
    run = jnp.cumsum(~near) - 1

    def merged(x: Array) -> Array:
        total = jax.ops.segment_sum(frames(x), run, many)
        mean = total / jnp.maximum(jnp.bincount(run, length=many), 1)[:, None]
        mean = mean[run].reshape(many * frame, -1)[jnp.minimum(row, many * frame - 1)]
        return jnp.where(image[:, None], mean.astype(x.dtype), x)

    stay = (rows.modality != tk.EMPTY) & ~(image & near[jnp.minimum(number, many - 1)])
    index = jnp.argsort(~stay, stable=True)
    pick = lambda x: tk.take(x, index, stay[index])
    deep = None if rows.deepstack is None else jax.vmap(lambda x: pick(merged(x)))(rows.deepstack)
    return Embeds(pick(merged(rows.x)), pick(rows.pos), pick(rows.modality), rows.advance, deep)


def _frames(kind: Int[Array, "T"], frame: int) -> tuple[Int[Array, "T"], int]:
    """Return the frame of each vision row of a chunk, and how many there can be: F for others."""
    image, many = kind == tk.VISION, -(-kind.shape[0] // frame)
    return jnp.where(image, (jnp.cumsum(image, dtype=jnp.int32) - 1) // frame, many), many
