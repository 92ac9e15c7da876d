"""`last_frames`: the last whole frames and nothing else, a baseline that is hard to beat."""

from __future__ import annotations

from jaxmem.memory.base import Memory
from jaxmem.memory.parts.positions import Rule
from jaxmem.memory.parts.prioritized import keep, newest
from jaxmem.memory.parts.units import frame


def last_frames(
    frames: int | None = None,
    tokens_per_frame: int | None = None,
    *,
    extra_per_frame: int = 0,
    budget: int | None = None,
    positions: Rule = "keep",
) -> Memory:
    """Return the memory that holds the last whole frames.

    A frame comes with the text before it and the sound after it, see `jaxmem.memory.parts.units`;
    text and sound stay exactly as long as their frame does. A frame that does not fit entirely is
    dropped. The frame that is arriving counts as one of the last.

    Args:
      frames: frames held at most; None for as many as fit into `budget`.
      tokens_per_frame: vision tokens of a frame. Needed where frames follow each other without text
        or sound between and positions have one axis, or where no budget is given.
      extra_per_frame: slots set aside for the text and sound of a frame.
      budget: S, slots of every layer; `frames * (tokens_per_frame + extra_per_frame)` if None.
      positions: "keep" the position of arrival, or renumber ("contiguous").

    Raises:
      ValueError: if the number of slots does not follow from what is given, or a size is not
        positive.
    """
    if extra_per_frame < 0:
        raise ValueError(f"extra_per_frame must not be negative, got {extra_per_frame}.")
    if budget is None:
        if frames is None or tokens_per_frame is None:
            raise ValueError(
                f"last_frames cannot tell its slots from frames={frames} and tokens_per_frame="
                f"{tokens_per_frame}; pass both, or a budget in slots."
            )
        budget = frames * (tokens_per_frame + extra_per_frame)
    unit = frame(tokens_per_frame)
    return keep(budget, newest, unit=unit, most=frames, name="last_frames", rule=positions)
