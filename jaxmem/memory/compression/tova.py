"""TOVA (arXiv 2401.06104): what the last query attends to."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from jaxmem.memory.exchange import Attention, Requires
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.scored import Candidates, Scored, received
from jaxmem.typing import Array, Float


@dataclass(frozen=True)
class TOVA(Scored):
    """TOVA: the attention of the chunk's last row, mean over all heads, decides.

    All heads keep the same tokens, the newest one among them (section 4.1). The paper evicts one
    token at every step; here a chunk comes at once and only its last row is asked.
    """

    _: KW_ONLY
    per_head: bool = False

    @property
    def requires(self) -> Requires:
        return Requires(attention=Attention("softmax", last=1))

    def score(self, candidates: Candidates) -> Float[Array, "Gm N"]:
        """Return mean_h A[last, k], the newest token first."""
        return scores.protect(received(self, candidates), candidates.newest(1))
