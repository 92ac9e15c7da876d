"""The text that SmolVLM2's processor writes around a video and its frames (transformers 5.24)."""

from datetime import timedelta
from fractions import Fraction

USER = "<|im_start|>User: "
ANSWER = "<end_of_utterance>\nAssistant:"
AFTER = "\n\n"  # between the last frame and the question
AROUND, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
LONGEST = "\nFrame from 99999:59:"
"""Room for ten weeks."""
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def stamp(seconds: Fraction | float) -> str:
    """Return the words before a frame, MM:SS; minutes go on beyond 59."""
    return f"\nFrame from {int(seconds // 60):02d}:{int(seconds % 60):02d}:"


def intro(frames: int | None = None, seconds: float | None = None) -> str:
    """Return the words before a video.

    Args:
      frames: of the whole video, where it is known.
      seconds: likewise; without both the numbers are left out.

    Raises:
      ValueError: if only one is given, or one is no such number.
    """
    if frames is None and seconds is None:
        return "You are provided the following series of frames from a video.\n"
    if frames is None or seconds is None or not 0 < frames < 10**6 or seconds < 0:
        raise ValueError(
            "give frames= (at least one, below a million) and seconds= of the whole video "
            f"together, or neither; got {frames!r} and {seconds!r}."
        )
    return (
        f"You are provided the following series of {number(frames)} frames from a "
        f"{timedelta(seconds=int(seconds))} [H:MM:SS] video.\n"
    )


def number(n: int) -> str:
    """Return a number from 0 to 999,999 in English words."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")
    each, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    rest = n % each
    between = " and " if rest < 100 else ", "
    return f"{number(n // each)} {name}" + (between + number(rest) if rest else "")
