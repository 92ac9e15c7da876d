"""SnapKV (arXiv 2404.14469): what the last queries attend to, smoothed over neighbours."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import jax.numpy as jnp

from jaxmem.memory.exchange import Attention, Requires
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import at_least, odd
from jaxmem.memory.parts.scored import Candidates, Scored, received
from jaxmem.typing import Array, Float


@dataclass(frozen=True)
class SnapKV(Scored):
    """SnapKV, applied after every chunk; the last rows of the chunk take the prompt's part.

    Published for a prompt whose end asks the question: there, the observation window is the
    question. In a stream it is the end of the chunk, so that the choice does not depend on any
    question. The released code keeps tokens for every query head, which saves nothing in grouped
    attention; here heads are KV heads, by the mean attention of their query heads.

    Attributes:
      window: rows at the end of the chunk whose attention counts; the newest `window` tokens are
        always kept, at most half of the budget. 32 as the released code patches models (its classes
        say 64).
      kernel: width of the average over neighbours, odd.
    """

    _: KW_ONLY
    window: int = 32
    kernel: int = 5

    def __post_init__(self):
        super().__post_init__()
        at_least(self.name, 1, window=self.window)
        odd(self.name, kernel=self.kernel)

    @property
    def observed(self) -> int:
        """Return the rows that are asked, and kept: the window, at most half of the budget."""
        return min(self.window, max(1, self.budget // 2))

    @property
    def requires(self) -> Requires:
        return Requires(attention=Attention("softmax", last=self.observed))

    def score(self, candidates: Candidates) -> Float[Array, "Gm N"]:
        """Return mean_q A[q, k] over the window's rows, averaged over neighbours (section 4.1).

        The window's own columns leave the sum after the softmax, which is not normalised again.
        """
        near = candidates.newest(self.observed)
        rows = jnp.clip(candidates.rows, 1, self.observed).astype(jnp.float32)
        mean = received(self, candidates) / rows
        mean = jnp.where(near | ~candidates.valid, 0.0, mean)
        return scores.protect(scores.smooth(mean, self.kernel), near)
