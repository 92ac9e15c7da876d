"""SimpleStream (arXiv 2604.02317): the last frames, encoded without history at the question."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from jaxmem.memory.base import FeatureMemory, Spec, State
from jaxmem.memory.baselines import LastFrames
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.parts.last_rows import LastRows


@dataclass(frozen=True)
class SimpleStream(FeatureMemory):
    """SimpleStream: the last `frames` whole frames and nothing else, prefilled at the question.

    What `LastFrames` holds of the stream has seen what came before it; here nothing has. Text and
    audio stay with their frames (`units.Frame`). The decoder does not run while the stream is
    watched.

    Attributes:
      budget: rows held at most; no more are taken than `frames` chunks have.
      frames: frames held at most, 4 as published; None: as many as fit.
      tokens_per_frame: vision tokens of a frame, see `LastFrames`.

    Raises:
      ValueError: if a size is not positive.
    """

    budget: int
    _: KW_ONLY
    frames: int | None = 4
    tokens_per_frame: int | None = None

    def __post_init__(self):
        LastFrames(self.budget, frames=self.frames, tokens_per_frame=self.tokens_per_frame)

    def rows(self, spec: Spec) -> LastRows:
        """Return what holds the rows."""
        most = self.budget if self.frames is None else min(self.budget, self.frames * spec.chunk)
        return LastRows(most, self.frames, self.tokens_per_frame)

    def init(self, spec: Spec) -> State:
        return self.rows(spec).init(spec)

    def write(self, spec: Spec, state: State, embeds: Embeds) -> State:
        return self.rows(spec).write(spec, state, embeds)

    def read(self, spec: Spec, state: State) -> Embeds:
        return self.rows(spec).read(spec, state)
