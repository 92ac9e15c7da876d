"""H2O (arXiv 2306.14048): heavy hitters, the tokens that have received the most attention."""

from __future__ import annotations

from jaxmem.memory.base import Memory, Requires
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.positions import Rule
from jaxmem.typing import Array, Float


def h2o(
    budget: int,
    *,
    recent: float = 0.5,
    per_head: bool = True,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: Rule = "keep",
) -> Memory:
    """Return H2O: the attention of every row so far adds up; half of the slots follow the stream.

    Sums favour old tokens, which more rows have seen; that is the method (algorithm 1). Evicted
    tokens take their sums with them. The paper evicts one token for each that comes, here a chunk
    comes at once.

    Args:
      budget: S, slots of every layer, heavy hitters and recent tokens.
      recent: part of the slots for the newest tokens; 0.5 as released (equal ratios of both).
      per_head: every KV head keeps its own tokens, by the mean attention of its query heads.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if `recent` is no part of the budget.
    """
    if not 0.0 <= recent <= 1.0:
        raise ValueError(f"recent is a part of the budget, 0 to 1, got {recent}.")
    newest = int(budget * recent)
    return evict.evict(
        budget,
        lambda pool: score(pool, newest),
        name="h2o",
        reads=Requires(mass="softmax"),
        per_head=per_head,
        carry=True,
        per_kind=per_kind,
        audio_share=audio_share,
        positions=positions,
    )


def score(pool: evict.Pool, newest: int) -> Float[Array, "Gm N"]:
    """Return sum over all rows so far of A[q, k], with the newest tokens first."""
    if pool.received is None:
        raise ValueError("H2O needs Chunk.mass; the decoder step must honour requires.mass.")
    return scores.protect(pool.received, pool.newest(newest))
