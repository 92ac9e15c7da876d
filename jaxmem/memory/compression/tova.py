"""TOVA (arXiv 2401.06104): what the last query attends to."""

from __future__ import annotations

from jaxmem.memory.base import Memory, Requires
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.positions import Rule
from jaxmem.typing import Array, Float


def tova(
    budget: int,
    *,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: Rule = "keep",
) -> Memory:
    """Return TOVA: the attention of the chunk's last row, mean over all heads, decides.

    All heads keep the same tokens, the newest one among them (section 4.1). The paper evicts one
    token at every step; here a chunk comes at once and only its last row is asked.

    Args:
      budget: S, slots of every layer.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if the budget has no slot.
    """
    return evict.evict(
        budget,
        score,
        name="tova",
        reads=Requires(mass="softmax", last=1),
        per_head=False,
        per_kind=per_kind,
        audio_share=audio_share,
        positions=positions,
    )


def score(pool: evict.Pool) -> Float[Array, "1 N"]:
    """Return mean_h A[last, k], the newest token first."""
    if pool.received is None:
        raise ValueError("TOVA needs Chunk.mass; the decoder step must honour requires.mass.")
    return scores.protect(pool.received, pool.newest(1))
