"""Questions of the command line: `TIME: question`, and what is asked where nothing was given."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

END = math.inf
"""The time of a question that is asked when the stream is over."""

AT_THE_END = (
    "Which shape is there now?",
    "Which was the last shape?",
    "Which was the last sound?",
    "Which was the first sound?",
)
"""Asked about a clip that comes without questions."""


class Planned(NamedTuple):
    """A question that will be asked at `time` (seconds of stream time, `END` for the end)."""

    time: float
    text: str
    truth: str | None = None
    type: str | None = None
    evidence_time: float | None = None


def parse_ask(text: str) -> Planned:
    """Return a question of the form `TIME: question`.

    TIME is seconds (`90`, `12.5`), `mm:ss`, `hh:mm:ss`, or `end`.

    Raises:
      ValueError: if there is no time or no question.
    """
    form = r"\s*(end|\d+(?::\d+){0,2}(?:\.\d+)?)\s*:\s*(\S.*)"
    found = re.fullmatch(form, text, re.IGNORECASE | re.DOTALL)
    if found is None:
        raise ValueError(
            f'--ask {text!r} has no time or no question: write "1:30: What colour was the star?" '
            '(seconds, mm:ss or hh:mm:ss), or "end: ..." for the end of the stream.'
        )
    return Planned(parse_time(found[1]), found[2].strip())


def parse_time(text: str) -> float:
    """Return `end`, seconds, `mm:ss` or `hh:mm:ss` in seconds.

    Raises:
      ValueError: if it is none of these, or minutes or seconds reach 60 behind a larger unit.
    """
    if text.lower() == "end":
        return END
    parts = text.split(":")
    if not re.fullmatch(r"\d+(:\d+){0,2}(\.\d+)?", text) or any(float(p) >= 60 for p in parts[1:]):
        raise ValueError(f"{text!r} is no time: write seconds, mm:ss, hh:mm:ss or end.")
    return sum(float(part) * 60**i for i, part in enumerate(reversed(parts)))
