"""What a token's value adds to a layer's output, and a choice in two stages that weighs by it.

Source: CriticalKV (arXiv 2502.03805), as kvpress computes it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmem.kernels.select import top_mask
from jaxmem.memory.base import Chunk
from jaxmem.memory.parts import scored, scores
from jaxmem.typing import Array, Float, Int

EPS = 1e-4
"""Added to the first score, so that a token without attention still has a value."""


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

    Args:
      score: s.
      norm: |W_o v|_1, of `output_norm`.
      modality: of the tokens.
      first: how many of each part of a head's budget the first stage fills.
    """
    ranked = scored.by_part(score, modality, first.shape[1])
    certain = jnp.any(jax.vmap(top_mask)(ranked, first), axis=1)
    return scores.protect((score + EPS) * norm, certain)
