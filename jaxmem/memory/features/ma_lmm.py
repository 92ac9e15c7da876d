"""MA-LMM's memory bank (arXiv 2404.05726): alike neighbours merge, separately at every place."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmem.kv import VISION
from jaxmem.memory.base import Memory, Spec
from jaxmem.memory.features.clusters import Merged, add
from jaxmem.memory.features.frames import Block, frame_by_frame
from jaxmem.typing import Array

ENTRIES = Merged(1, 1, None)  # type: ignore[arg-type]  # the axis of a frame's places


def ma_lmm(frames: int, tokens: int, *, kind: int = VISION) -> Memory:
    """Return MA-LMM's bank of `frames` entries of `tokens` rows, scope "feature".

    A frame is appended; if the bank was full, then at each of the P places of a frame the adjacent
    pair of largest cosine becomes its mean, weighted by how many frames each stands for. Places
    merge independently, so that an entry's rows may stand for different times. The released model
    keeps such a bank for the frames and one more in each layer of its Q-Former; this is the bank
    for the frames. Other kinds than `kind` are not kept; see `with_audio` for both.

    Args:
      frames: entries of the bank.
      tokens: P, rows of a frame.
      kind: of the rows that are kept: `VISION`, or `AUDIO` in pieces of P rows.

    Raises:
      ValueError: if an argument is not positive, or chunks are shorter than a frame.
    """
    if frames < 1:
        raise ValueError(f"ma_lmm needs room for at least 1 frame, got {frames}.")

    def start(spec: Spec) -> Merged:
        x = jnp.zeros((frames, tokens, spec.width), spec.dtype)
        return Merged(x, jnp.zeros((frames, tokens), jnp.float32), jnp.zeros((), jnp.int32))

    def step(held: Merged, frame: Array) -> Merged:
        def place(held: Merged, row: Array) -> Merged:
            one = add(held._replace(x=held.x[:, None]), row[None], weighted=True)[0]
            return one._replace(x=one.x[:, 0])

        return jax.vmap(place, (ENTRIES, 0), ENTRIES)(held, frame)

    def blocks(held: Merged) -> list[Block]:
        return [(held.x, jnp.arange(frames, dtype=jnp.int32) < held.count)]

    return frame_by_frame("ma_lmm", tokens, start, step, blocks, kind)
