"""`with_sound`: a memory of frames and, in a budget of its own, a memory of sound.

The papers of the memories in feature space know no sound. Here its pieces are merged as MA-LMM
merges frames (arXiv 2404.05726): when the bank is full, the adjacent pair of largest cosine becomes
its weighted mean, so that silence and steady noise shrink and single events stay.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmem.kv import AUDIO, EMPTY
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State
from jaxmem.memory.features.frames import no_view
from jaxmem.memory.features.ma_lmm import ma_lmm
from jaxmem.typing import PyTree


def with_sound(memory: Memory, pieces: int, tokens: int) -> Memory:
    """Return a memory of frames that also keeps sound; a question reads frames, then sound.

    Args:
      memory: of scope "feature".
      pieces: entries of sound that are kept.
      tokens: rows of audio that make one piece.

    Raises:
      ValueError: for a memory of another scope, or a size that is not positive.
    """
    if memory.scope != "feature":
        raise ValueError(
            f"with_sound() is for memories of scope 'feature', got {memory.name!r} of scope "
            f"{memory.scope!r}: those keep sound themselves (per_kind=True)."
        )
    parts = (memory, ma_lmm(pieces, tokens, kind=AUDIO))

    def init(spec: Spec) -> State:
        states = [part.init(spec) for part in parts]
        return State(tuple(s.slots for s in states), tuple(s.aux for s in states))

    def each(state: State) -> list[State]:
        return [State(*pair) for pair in zip(state.slots, state.aux, strict=True)]

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        after = [part.write(s, seen)[0] for part, s in zip(parts, each(state), strict=True)]
        return State(tuple(s.slots for s in after), tuple(s.aux for s in after)), None

    def recall(state: State, bank: PyTree, query: Question | None) -> Embeds:
        frames, sound = (
            part.recall(s, bank, query) for part, s in zip(parts, each(state), strict=True)
        )
        return behind(frames, sound)  # type: ignore[arg-type]

    return Memory(
        init,
        no_view,  # type: ignore[arg-type]
        write,
        recall,  # type: ignore[arg-type]
        scope="feature",
        name=memory.name,
    )


def behind(first: Embeds, second: Embeds) -> Embeds:
    """Return two prompts as one: `second` begins where `first` ends, padding comes last."""
    moved = second._replace(pos=second.pos + first.advance[None].astype(second.pos.dtype))
    both = Embeds(
        *(jnp.concatenate(pair) for pair in zip(first[:3], moved[:3], strict=True)),
        advance=first.advance + second.advance,
    )
    real = both.modality != EMPTY
    order = jnp.argsort(~real, stable=True)
    x, rel, kind = jax.tree.map(lambda leaf: leaf[order], both[:3])
    return Embeds(x, jnp.where(real[order, None], rel, 0), kind, both.advance)
