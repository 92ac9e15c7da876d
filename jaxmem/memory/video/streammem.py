"""StreamMem (arXiv 2508.15717): what a chat template attends to, and one prototype per frame.

`merge_frames`, called on a chunk's rows before the decoder, merges frames that resemble each other.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV, SUMMARY, VISION
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Chunk, Embeds, Probes, Prompt, Received, Requires
from jaxmem.memory.parts.options import at_least, one_of
from jaxmem.memory.parts.scored import Candidates, Scored, lend, members, received
from jaxmem.typing import Array, Bool, Float, Int

TEMPLATE = "<|im_end|><|im_start|>assistant\n"
"""What the chat template of the Qwen family writes between a question and its answer."""

Prototypes = Literal["weighted", "mean", "none"]


@dataclass(frozen=True)
class StreamMem(Scored):
    """StreamMem: memory and chunk compete for each layer's budget by the template's attention.

    One causal probe follows every chunk: the chat template's own tokens before an answer. No code
    was released. Not published, and chosen here: attention is the mean over the probe's rows and
    the heads; a prototype stands at the mean position of its tokens by alpha (whole positions:
    rounded half up). When a chunk does not fit, each of its frames adds a prototype
    sum_j alpha_j (k_j, v_j), alpha the attention normalised within the frame, keys before
    rotation. It takes the arrival number of the frame's least attended token, which is not kept
    itself, so all heads add equally many; later it competes like any token.

    Attributes:
      budget: M / L, slots of every layer, prototypes included; the paper splits M evenly.
      frame: vision tokens of a frame; a chunk (8 frames in the paper) begins with a frame. None:
        those of the model.
      prototypes: weights alpha as published ("weighted"), equal ones ("mean"), or no prototypes
        ("none").
      per_head: every KV head keeps its own tokens, by the mean over its query heads; False: all
        heads keep the same.

    Raises:
      ValueError: if a size is not positive or an option is unknown.
    """

    _: KW_ONLY
    frame: int | None = None
    prototypes: Prototypes = "weighted"
    per_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        at_least(self.name, 1, frame=self.frame)
        one_of(self.name, get_args(Prototypes), prototypes=self.prototypes)

    @property
    def requires(self) -> Requires:
        return Requires(probes=Probes(1, "causal"))

    def prompts(self, dialogue: tuple[str, str] | None = None) -> tuple[Prompt, ...]:
        return (Prompt(TEMPLATE, "answer_start"),)

    def frame_of(self, spec: Spec) -> int:
        """Return the vision tokens of a frame."""
        return spec.frame_tokens(self) if self.frame is None else self.frame

    def init(self, spec: Spec, layer: int = 0) -> State:
        if self.prototypes != "none":
            self.frame_of(spec)  # an unknown frame is refused at once
        return super().init(spec, layer)

    def score(self, candidates: Candidates) -> Float[Array, "Gm N"]:
        """Return the probe's attention."""
        return received(self, candidates)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        if chunk.probed is None or chunk.probed.rows.shape[0] != 1:
            raise ValueError(
                f"{self.name} scores by one probe, the chat template's tokens: stream through a "
                "Session, or give the loop Bound(params, probes=probe_rows(...))."
            )
        given, fresh = Received(*(x[0] for x in chunk.probed.received)), chunk.kv
        if self.prototypes != "none":
            over = self._over(state, fresh)
            fresh, new = fold(
                fresh, given.chunk.T, self.frame_of(spec), over, self.prototypes == "weighted"
            )
            given = given._replace(chunk=new.T)
        return super().write(spec, state, chunk._replace(kv=fresh, received=given))

    def _over(self, state: State, fresh: KV) -> Bool[Array, ""]:
        """Return whether the slots are too few for all that compete with pictures."""
        # All heads hold equally many of each part.
        modality = jnp.concatenate([state.slots.kv.modality[:, :1], fresh.modality[:, :1]])
        competing = members(modality, state.aux.quotas.shape[0])[:, 0]
        quotas = lend(state.aux.quotas, competing)
        return jnp.sum(competing[0], dtype=jnp.int32) > quotas[0]


def fold(
    fresh: KV, given: Float[Array, "T Gm"], frame: int, over: Array, weighted: bool
) -> tuple[KV, Float[Array, "T Gm"]]:
    """Return a chunk, if `over` with prototypes (attention inf) for least attended tokens."""
    number, many = _frames(fresh.modality[:, 0], frame)
    member = (number[None] == jnp.arange(many)[:, None])[None]  # [1, F, T]
    attention = given.T[:, None]
    # Where all attention underflowed, all tokens weigh the same.
    weight = jnp.where(member, attention + 1e-30 if weighted else 1.0, 0.0)
    alpha = weight / jnp.maximum(jnp.sum(weight, axis=2, keepdims=True), 1e-30)  # [Gm, F, T]
    least = jnp.argmin(jnp.where(member, attention, jnp.inf), axis=2)
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
    modality = put(fresh.modality, SUMMARY * one)
    pos = put(fresh.pos, first + pos.astype(first.dtype))
    return KV(k, v, pos, fresh.index, modality), put(given, jnp.inf * one)


def merge_frames(embeds: Embeds, frame: int, delta: float = 0.95) -> Embeds:
    """Return a chunk in which frames that resemble the one before them are averaged.

    Neighbours belong together if the cosine of their embeddings as they came (all `frame` rows as
    one vector) exceeds delta; a run of such frames becomes its mean, at the rows of its first
    frame. Text, audio and a last frame that is not complete stay as they are. `delta` is 0.95 as
    published.
    """
    number, many = _frames(embeds.modality, frame)
    image = number < many
    row = jnp.where(image, jnp.cumsum(image) - 1, many * frame)

    def frames(x: Array) -> Float[Array, "F d"]:
        dense = jnp.zeros((many * frame, x.shape[1]), jnp.float32)
        return dense.at[row].set(x.astype(jnp.float32), mode="drop").reshape(many, -1)

    unit = frames(embeds.x)
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    near = jnp.sum(unit[1:] * unit[:-1], axis=1) > delta
    near = jnp.pad(near, (1, 0)) & (jnp.arange(many) < jnp.sum(image) // frame)
    run = jnp.cumsum(~near) - 1

    def merged(x: Array) -> Array:
        total = jax.ops.segment_sum(frames(x), run, many)
        mean = total / jnp.maximum(jnp.bincount(run, length=many), 1)[:, None]
        mean = mean[run].reshape(many * frame, -1)[jnp.minimum(row, many * frame - 1)]
        return jnp.where(image[:, None], mean.astype(x.dtype), x)

    stay = (embeds.modality != kvs.EMPTY) & ~(image & near[jnp.minimum(number, many - 1)])
    index = jnp.argsort(~stay, stable=True)
    pick = lambda x: kvs.take(x, index, stay[index])
    deepstack = embeds.deepstack
    if deepstack is not None:
        deepstack = jax.vmap(lambda x: pick(merged(x)))(deepstack)
    return embeds._replace(
        x=pick(merged(embeds.x)),
        pos=pick(embeds.pos),
        modality=pick(embeds.modality),
        deepstack=deepstack,
    )


def _frames(modality: Int[Array, "T"], frame: int) -> tuple[Int[Array, "T"], int]:
    """Return the frame of each vision row of a chunk, and how many there can be: F for others."""
    image, many = modality == VISION, -(-modality.shape[0] // frame)
    return jnp.where(image, (jnp.cumsum(image, dtype=jnp.int32) - 1) // frame, many), many
