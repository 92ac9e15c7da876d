"""CriticalKV (arXiv 2502.03805): attention, weighed by what a value adds to the layer's output.

The norm of a value and the choice in two stages are computed as kvpress does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.select import top_mask
from jaxmem.kv import KV
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.compression.snapkv import SnapKV
from jaxmem.memory.exchange import Chunk, Requires
from jaxmem.memory.parts import scored, scores
from jaxmem.memory.parts.options import between
from jaxmem.memory.parts.scored import AUDIO_SHARE, Scored
from jaxmem.typing import Array, Float, Int

EPS = 1e-4
"""Added to the first score, so that a token without attention still has a value."""


class Slots(NamedTuple):
    """Tokens, and the norm of each value after the output projection."""

    kv: KV
    norm: Float[Array, "S G"]


@dataclass(frozen=True)
class OverScore(Memory):
    """A memory that works with the score of another one, and takes budget and options from it."""

    inner: Scored

    def __post_init__(self):
        if not isinstance(self.inner, Scored) or self.inner.accumulates:
            raise ValueError(
                f"{self.name} works on the score of a method such as SnapKV, TOVA or KeyDiff that "
                f"adds nothing up over chunks, got {self.inner!r}."
            )
        if self.inner.soft is not None:
            raise ValueError(f"{self.name} chooses without a gate; leave soft out of its method.")

    @classmethod
    def of(
        cls,
        budget: int,
        *,
        window: int = 32,
        kernel: int = 5,
        audio_share: float | None = AUDIO_SHARE,
        newest: int = 0,
        floor: float = 0.0,
        reindex: bool = False,
        **options: Any,
    ) -> Self:
        """Return the memory over SnapKV's score, with the options of both.

        `options` are those of this class. Slots are those of a KV head (on average, where heads
        share).
        """
        more = {"audio_share": audio_share, "newest": newest, "floor": floor, "reindex": reindex}
        return cls(SnapKV(budget, window=window, kernel=kernel, **more), **options)

    @property
    def budget(self) -> int:
        """Return the slots of the memory whose score is used."""
        return self.inner.budget

    @property
    def quotas(self) -> tuple[int, ...]:
        """Return how the budget is divided."""
        return scored.split(self.inner.budget, self.inner.audio_share)

    def resized(self, slots: int, spec: Spec | None = None):
        """Return the same memory with another budget."""
        return replace(self, inner=replace(self.inner, budget=slots))


@dataclass(frozen=True)
class CriticalKV(OverScore):
    """CriticalKV over the score of another method: `CriticalKV(SnapKV(96))`.

    The best by s fill `first` of the budget; the best by s' = (s + 1e-4) mean_h |W_o^h v|_1 of the
    tokens that are left fill the rest. The norm is taken once, when a token arrives. Tokens that
    the score forces in (+inf: a window, sinks) are kept by both stages. Every KV head keeps its
    own tokens.

    Attributes:
      inner: the method whose score is s; budget and shares are its own.
      first: part of the budget that s fills alone, 0.5 as published.

    Raises:
      ValueError: if `inner` has no score of its own, or `first` is not in [0, 1].
    """

    first: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        between(self.name, 0, 1, first=self.first)

    @property
    def requires(self) -> Requires:
        return self.inner.requires._replace(output=True)

    def init(self, spec: Spec, layer: int = 0) -> State:
        norm = jnp.zeros((self.budget, spec.kv_heads), jnp.float32)
        return State(Slots(spec.empty(self.budget, spec.kv_heads), norm), self.inner.aux(spec))

    def view(self, spec: Spec, state: State, embeds: Any, bank: Any = None):
        return self.inner.view(spec, state, embeds, bank)

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        held = state.slots
        candidates = self.inner.candidates(spec, state, chunk)
        n, modality = kvs.count(held.kv), candidates.kv.modality
        norm = kvs.append(held.norm, output_norm(chunk), n)
        score = jnp.broadcast_to(self.inner.ranked(candidates), norm.T.shape)
        quotas = state.aux.quotas
        _, lent = scored.competition(score, modality, quotas)
        certain = jnp.broadcast_to((self.first * lent).astype(jnp.int32), (len(score), len(lent)))
        ranked = two_stage(score, norm.T, modality, certain)
        keep = scored.choose(ranked, modality, quotas, scored.length(state))
        stored = Slots(kvs.append(held.kv, chunk.kv, n), norm)
        return State(scored.take(stored, *keep), self.inner.moved(state.aux, chunk)), None


def output_norm(chunk: Chunk) -> Float[Array, "T G"]:
    """Return mean_h |W_o^h v|_1 of a chunk's tokens over the query heads h of a KV head, float32.

    Raises:
      ValueError: if the layer's output projection was not reported.
    """
    if chunk.output is None:
        raise ValueError(
            "values are weighed by the layer's output projection but Chunk.output is None: the "
            "decoder must report what `requires.output` asks for."
        )
    v = chunk.kv.v.astype(jnp.float32)
    heads, dim, width = chunk.output.shape
    output = chunk.output.astype(jnp.float32).reshape(v.shape[1], -1, dim, width)
    # One query head at a time: [T, G, E] is the largest array.
    norms = jax.lax.map(
        lambda w: jnp.sum(
            jnp.abs(jnp.einsum("tgd,gde->tge", v, w, precision=jax.lax.Precision.HIGHEST)), -1
        ),
        output.swapaxes(0, 1),
    )
    return jax.lax.stop_gradient(jnp.sum(norms, axis=0) * (v.shape[1] / heads))


def two_stage(
    score: Float[Array, "G N"],
    norm: Float[Array, "G N"],
    modality: Int[Array, "N G"],
    first: Int[Array, "G C"],
) -> Float[Array, "G N"]:
    """Return scores under which the `first[g, c]` best are certain, and (s + eps) |W_o v|_1 ranks.

    s is `score`, and |W_o v|_1 is `norm` (of `output_norm`).
    """
    ranked = scored.by_part(score, modality, first.shape[1])
    certain = jnp.any(jax.vmap(top_mask)(ranked, first), axis=1)
    return scores.protect((score + EPS) * norm, certain)
