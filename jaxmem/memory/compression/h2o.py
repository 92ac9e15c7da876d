"""H2O (arXiv 2306.14048): heavy hitters, the tokens that have received the most attention."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from jaxmem.memory.exchange import Attention, Requires
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import between
from jaxmem.memory.parts.scored import Candidates, Scored, received
from jaxmem.typing import Array, Float


@dataclass(frozen=True)
class H2O(Scored):
    """H2O: the attention of every row so far adds up; half of the slots follow the stream.

    Sums favour old tokens, which more rows have seen; that is the method (algorithm 1). Evicted
    tokens take their sums with them. The paper evicts one token for each that comes, here a chunk
    comes at once. Heads are KV heads, by the mean attention of their query heads.

    Attributes:
      recent: part of the slots for the newest tokens; 0.5 as released (equal ratios of both).
    """

    accumulates: ClassVar[bool] = True
    sized_by_options: ClassVar[bool] = True

    _: KW_ONLY
    recent: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        between(self.name, 0, 1, recent=self.recent)

    @property
    def requires(self) -> Requires:
        return Requires(attention=Attention("softmax"))

    def score(self, candidates: Candidates) -> Float[Array, "Gm N"]:
        """Return sum over all rows so far of A[q, k], with the newest tokens first."""
        newest = candidates.newest(int(self.budget * self.recent))
        return scores.protect(received(self, candidates), newest)
