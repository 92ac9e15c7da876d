"""Redundancy vectors in fewer numbers: a fixed random projection that keeps angles.

OmniMem compares neighbours by the cosine of their layer inputs, E numbers a token: at E = 4096 more
than the token's keys and values. A random sign projection to U numbers keeps every squared distance
between unit vectors within a relative standard error of sqrt(2 / U) (Johnson-Lindenstrauss;
Achlioptas 2003), so `1 - cosine` keeps its size even between near-duplicates.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Spec
from jaxmem.memory.omnimem.omnimem import omnimem
from jaxmem.typing import Array, Float, Int


def agreement(
    hidden: Float[Array, "M E"],
    kind: Int[Array, "M"],
    *,
    budget: int,
    chunk: int,
    sketch: int | None,
    unit_dtype: Any = jnp.float32,
    audio_share: float = 0.5,
) -> tuple[float, float]:
    """Return how well a sketched memory keeps what a full one keeps, on one stream of one layer.

    Two similarity-only memories (lam = 0, so that redundancy alone decides) watch the same stream,
    one with full float32 redundancy vectors, one with `sketch` numbers of `unit_dtype`.

    Args:
      hidden: layer inputs of M tokens, M a multiple of `chunk`.
      kind: of each token.
      budget: slots for audio and vision.
      chunk: T.
      sketch: numbers per slot; None compares the storage dtype alone.
      unit_dtype: dtype the sketched vectors are stored in.
      audio_share: of the budget.

    Returns:
      The Jaccard index of the two kept sets, mean over all evicting chunks and after the last one.
      The sets drift: what one memory dropped early it can never agree on later.

    Raises:
      ValueError: if M is not a multiple of `chunk`.
    """
    total, width = hidden.shape
    if total % chunk:
        raise ValueError(f"{total} tokens do not divide into chunks of {chunk}; cut the stream.")
    spec = Spec(layers=1, kv_heads=1, heads=1, head_dim=2, width=width, chunk=chunk)
    common = {"lam": 0.0, "audio_share": audio_share, "text": 1}
    memories = (
        omnimem(budget, sketch=None, unit_dtype=jnp.float32, **common),
        omnimem(budget, sketch=sketch, unit_dtype=unit_dtype, **common),
    )
    states = [memory.init(spec) for memory in memories]
    writes = [jax.jit(memory.write) for memory in memories]
    overlaps = []
    for begin in range(0, total, chunk):
        seen = _seen(hidden[begin : begin + chunk], kind[begin : begin + chunk], begin)
        states = [write(state, seen)[0] for write, state in zip(writes, states, strict=True)]
        if begin + chunk > budget:
            overlaps.append(jaccard(*(state.slots.tokens for state in states)))
    return float(np.mean(overlaps)), overlaps[-1]


def jaccard(a: KV, b: KV) -> float:
    """Return |A and B| / |A or B| of two kept sets, by arrival number."""
    kept = [set(np.asarray(t.index[tk.valid(t)]).tolist()) for t in (a, b)]
    union = kept[0] | kept[1]
    return len(kept[0] & kept[1]) / len(union) if union else 1.0


def _seen(hidden: Float[Array, "T E"], kind: Int[Array, "T"], begin: int) -> Chunk:
    """Return a chunk whose keys and values are empty: redundancy looks at hidden states only."""
    length = hidden.shape[0]
    order = begin + jnp.arange(length, dtype=jnp.int32)
    blank = jnp.zeros((length, 1, 2), jnp.float32)
    fresh = KV(
        k=blank,
        v=blank,
        pos=order[:, None, None],
        index=order[:, None],
        modality=jnp.asarray(kind, jnp.int8)[:, None],
    )
    end = jnp.asarray([begin + length], jnp.int32)
    layer = jnp.zeros((), jnp.int32)
    return Chunk(tokens=fresh, base=end - length, next_pos=end, layer=layer, hidden=hidden)
