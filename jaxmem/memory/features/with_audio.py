"""`WithAudio`: a memory of frames and, in a budget of its own, a memory of audio.

The papers of the memories of features have no audio input. Here pieces of audio are merged as
MA-LMM merges frames (arXiv 2404.05726): when the bank is full, the adjacent pair of largest cosine
becomes its weighted mean, so that silence and steady noise shrink and single events stay.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp

from jaxmem.kv import AUDIO, EMPTY
from jaxmem.memory.base import FeatureMemory, Spec, State
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.features.ma_lmm import MALMM
from jaxmem.memory.omnimem.budgets import resized
from jaxmem.memory.parts.options import at_least


@dataclass(frozen=True)
class WithAudio(FeatureMemory):
    """A memory of frames that also keeps audio; a question reads frames, then audio.

    Attributes:
      memory: of features.
      pieces: entries of audio that are kept.
      tokens: rows of audio that make one piece; None: a second of it (`Spec.audio_tokens`).

    Raises:
      ValueError: for a memory of keys and values, or a size that is not positive.
    """

    memory: FeatureMemory
    pieces: int
    _: KW_ONLY
    tokens: int | None = None

    def __post_init__(self):
        if not isinstance(self.memory, FeatureMemory):
            raise ValueError(
                f"WithAudio goes around a memory of features, got {self.memory!r}: memories of "
                "keys and values keep audio themselves (audio_share)."
            )
        at_least(self.name, 1, pieces=self.pieces, tokens=self.tokens)

    @property
    def name(self) -> str:
        return self.memory.name

    def audio(self, spec: Spec) -> MALMM:
        """Return the memory of audio.

        Raises:
          ValueError: if the stream has no audio and `tokens` is not given.
        """
        tokens = self.tokens or spec.audio_tokens
        if not tokens:
            raise ValueError(
                "WithAudio needs the rows of a piece of audio, but Spec.audio_tokens is 0: the "
                "stream has no audio; give tokens=, or leave WithAudio out."
            )
        return MALMM(self.pieces, tokens=tokens, modality=AUDIO)

    def resized(self, slots: int, spec: Spec) -> FeatureMemory:
        """Return the same memory in so many rows, half of them for audio."""
        return share_slots(self.memory, slots, spec, self.tokens)

    def init(self, spec: Spec) -> State:
        states = [part.init(spec) for part in (self.memory, self.audio(spec))]
        return State(tuple(s.slots for s in states), tuple(s.aux for s in states))

    def write(self, spec: Spec, state: State, embeds: Embeds) -> State:
        parts = zip((self.memory, self.audio(spec)), _each(state), strict=True)
        after = [part.write(spec, s, embeds) for part, s in parts]
        return State(tuple(s.slots for s in after), tuple(s.aux for s in after))

    def read(self, spec: Spec, state: State) -> Embeds:
        frames, audio = _each(state)
        return joined(self.memory.read(spec, frames), self.audio(spec).read(spec, audio))


def share_slots(
    memory: FeatureMemory, slots: int, spec: Spec, tokens: int | None = None
) -> FeatureMemory:
    """Return a memory in so many rows, half of them for audio where the stream has audio.

    `tokens` are rows of a piece of audio; None: a second of it.
    """
    if not spec.audio_tokens:
        return resized(memory, slots, spec)
    half, size = slots // 2, tokens or spec.audio_tokens
    frames = resized(memory, slots - half, spec)
    return WithAudio(frames, max(1, half // size), tokens=tokens)


def _each(state: State) -> list[State]:
    return [State(*pair) for pair in zip(state.slots, state.aux, strict=True)]


def joined(first: Embeds, second: Embeds) -> Embeds:
    """Return two prompts as one: `second` begins where `first` ends, padding comes last."""
    moved = second._replace(pos=second.pos + first.advance[None].astype(second.pos.dtype))
    both = Embeds(
        *(jnp.concatenate(pair) for pair in zip(first[:3], moved[:3], strict=True)),
        advance=first.advance + second.advance,
    )
    real = both.modality != EMPTY
    order = jnp.argsort(~real, stable=True)
    x, pos, modality = jax.tree.map(lambda leaf: leaf[order], both[:3])
    return Embeds(x, jnp.where(real[order, None], pos, 0), modality, both.advance)
