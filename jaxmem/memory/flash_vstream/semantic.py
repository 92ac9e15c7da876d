"""Semantic attention: a memory of features that takes up new ones by attending to them.

Source: Flash-VStream, arXiv 2406.08085 (its abstract memory).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.features.clusters import HIGHEST
from jaxmem.typing import Array, Float, Int


class Maps(NamedTuple):
    """Learned maps of the semantic attention, y = x W^T + b."""

    wq: Float[Array, "h E"]
    bq: Float[Array, "h"]
    wk: Float[Array, "h E"]
    bk: Float[Array, "h"]


def attend_groups(
    x: Float[Array, "N P E"],
    n: Int[Array, ""],
    maps: Maps | None,
    *,
    slots: int,
    ratio: float = 0.2,
) -> Float[Array, "slots P E"]:
    """Return the first `slots` frames after they took up the rest, `slots` frames at a time.

    The first `n` frames count. Without `maps` queries and keys are the features themselves; `ratio`
    is a, how much of the memory a group replaces.
    """
    size, tokens, width = x.shape
    extra = -size % slots
    x = jnp.pad(x, ((0, extra), (0, 0), (0, 0))).astype(jnp.float32)
    valid = jnp.repeat(jnp.arange(size + extra, dtype=jnp.int32) < n, tokens)
    rows = x.reshape(-1, slots * tokens, width)
    valid = valid.reshape(-1, slots * tokens)
    rows = jnp.where(valid[..., None], rows, 0)

    def group(memory: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
        fresh, real = item
        q, k = memory, fresh
        if maps is not None:
            q, k = (
                jnp.matmul(z, w.T, precision=HIGHEST) + b[None]
                for z, w, b in ((q, maps.wq, maps.bq), (k, maps.wk, maps.bk))
            )
        logits = jnp.matmul(q, k.T, precision=HIGHEST) / jnp.sqrt(jnp.float32(q.shape[-1]))
        weight = jax.nn.softmax(jnp.where(real[None], logits, -jnp.inf), -1)
        weight = jnp.where(jnp.any(real), weight, 0)  # an empty group changes nothing
        kept = 1 - ratio * jnp.sum(weight, -1, keepdims=True)
        return memory * kept + ratio * jnp.matmul(weight, fresh, precision=HIGHEST), None

    memory = jax.lax.scan(group, rows[0], (rows[1:], valid[1:]))[0]
    return memory.reshape(slots, tokens, width)
