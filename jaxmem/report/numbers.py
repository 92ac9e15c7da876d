"""Numbers as people read them, and the interval that belongs to a share."""

from __future__ import annotations

import math

Z95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(right: int, asked: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a share (Wilson 1927).

    Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at `asked`.

    Raises:
      ValueError: if there are no trials, or more successes than trials.
    """
    if asked < 1 or not 0 <= right <= asked:
        raise ValueError(f"an interval needs 0 <= right <= asked and asked >= 1: {right}, {asked}.")
    share, spread = right / asked, z * z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / asked + spread / (4 * asked)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def clock(seconds: float) -> str:
    """Return a stream time as mm:ss, or h:mm:ss from one hour on; fractions only if there are any.

    Times are cut, not rounded, to hundredths: 59.999 is never shown as a minute that has not come.
    """
    cents = math.floor(abs(seconds) * 100 + 1e-6)
    whole, rest = divmod(cents, 100)
    minutes, secs = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes:02d}:{secs:02d}"
    fraction = f".{rest:02d}".rstrip("0") if rest else ""
    return ("-" if seconds < 0 and cents else "") + text + fraction


def size(count: float) -> str:
    """Return a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def milliseconds(value: float | None) -> str:
    """Return milliseconds with three digits or more, or a dash where nothing was measured."""
    if value is None:
        return "-"
    return (f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}") + " ms"
