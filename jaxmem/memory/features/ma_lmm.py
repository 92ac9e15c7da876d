"""MA-LMM's memory bank (arXiv 2404.05726): similar neighbours merge, separately at every place."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp

from jaxmem.kv import VISION
from jaxmem.memory.base import Spec
from jaxmem.memory.features.clusters import Merged, add
from jaxmem.memory.features.frames import Block, Entries
from jaxmem.typing import Array, Float

ENTRIES = Merged(1, 1, None)  # type: ignore[arg-type]  # the axis of a frame's places


@dataclass(frozen=True)
class MALMM(Entries):
    """MA-LMM's bank of `frames` entries of a frame each.

    A frame is appended; if the bank was full, then at each of the P places of a frame the adjacent
    pair of largest cosine becomes its mean, weighted by how many frames each represents. Places
    merge independently, so that an entry's rows may be of different times. The released model keeps
    such a bank for the frames and one more in each layer of its Q-Former; this is the bank for the
    frames. Other modalities are not kept; see `WithAudio` for both.

    Attributes:
      frames: entries of the bank; 20 as released.
      tokens: P, rows of a frame; None: those of `Spec.frame`.
      modality: of the rows that are kept: `Modality.VISION`, or `AUDIO` in pieces of P rows.

    Raises:
      ValueError: if a size is not positive, or, when the stream begins, chunks are shorter than a
        frame.
    """

    frames: int = 20
    _: KW_ONLY
    modality: int = VISION

    @property
    def taken(self) -> int:
        return self.modality

    def start(self, spec: Spec) -> Merged:
        tokens = self.tokens_of(spec)
        x = jnp.zeros((self.frames, tokens, spec.width), spec.dtype)
        return Merged(x, jnp.zeros((self.frames, tokens), jnp.float32), jnp.zeros((), jnp.int32))

    def step(self, held: Merged, frame: Float[Array, "P E"]) -> Merged:
        def place(held: Merged, row: Array) -> Merged:
            one = add(held._replace(x=held.x[:, None]), row[None], weighted=True)[0]
            return one._replace(x=one.x[:, 0])

        return jax.vmap(place, (ENTRIES, 0), ENTRIES)(held, frame)

    def blocks(self, held: Merged) -> list[Block]:
        return [self.entries(held)]
