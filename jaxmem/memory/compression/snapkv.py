"""SnapKV (arXiv 2404.14469): what the last queries attend to, smoothed over neighbours."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmem.memory.base import Memory, Requires
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.positions import Rule
from jaxmem.typing import Array, Float


def snapkv(
    budget: int,
    *,
    window: int = 32,
    kernel: int = 5,
    per_head: bool = True,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: Rule = "keep",
) -> Memory:
    """Return SnapKV, applied after every chunk; the last rows of the chunk take the prompt's part.

    Published for a prompt whose end asks the question: there, the observation window is the
    question. In a stream it is the end of the chunk, so that the choice does not depend on any
    question.

    Args:
      budget: S, slots of every layer, the window's included.
      window: rows at the end of the chunk whose attention counts; the newest `window` tokens are
        always kept. 32 as the released code patches models (its classes say 64).
      kernel: width of the average over neighbours, odd.
      per_head: every KV head keeps its own tokens, by the mean attention of its query heads. The
        released code keeps them for every query head, which saves nothing in grouped attention.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if the window is longer than the budget or the kernel is not odd.
    """
    if not 0 < window <= budget:
        raise ValueError(f"snapkv needs 0 < window <= budget, got {window} and {budget}.")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}.")
    return evict.evict(
        budget,
        lambda pool: score(pool, window, kernel),
        name="snapkv",
        reads=Requires(mass="softmax", last=window),
        per_head=per_head,
        per_kind=per_kind,
        audio_share=audio_share,
        positions=positions,
    )


def score(pool: evict.Pool, window: int, kernel: int) -> Float[Array, "Gm N"]:
    """Return mean_q A[q, k] over the window's rows, averaged over neighbours (section 4.1).

    The window's own columns leave the sum after the softmax, which is not normalised again.
    """
    if pool.received is None:
        raise ValueError("SnapKV needs Chunk.mass; the decoder step must honour requires.mass.")
    near = pool.newest(window)
    rows = jnp.clip(pool.rows, 1, window).astype(jnp.float32)
    mean = jnp.where(near | ~pool.valid, 0.0, pool.received / rows)
    return scores.protect(scores.smooth(mean, kernel), near)
