"""Scenes that come back with one thing changed: what a memory by resemblance takes for a copy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmem.data.world.scene import COLOURS, SHAPES, Events, covered

CHANGES = {"shape": 0.6, "colour": 0.2, "place": 0.2}
LAST = 5  # one of the last so many shapes comes back


def other(
    rng: np.random.Generator, pool: Sequence[int], names: Sequence[str], avoid: set[int]
) -> int:
    """A class that was not used a moment ago: two equal events back to back would look like one.

    It is one of `pool` if that leaves a choice, else any of `names`.
    """
    left = [i for i in pool if i not in avoid] or [i for i in range(len(names)) if i not in avoid]
    return int(rng.choice(left))


def recur(
    rng: np.random.Generator,
    row: dict[Any, Any],
    rows: list[dict[Any, Any]],
    shapes: Sequence[int],
    near: set[int],
    taken: set[Any],
) -> None:
    """Make a shape the twin of an earlier one, in place: another shape, colour or place, no more.

    Questions mean the latest of a shape, and a look-alike of it may be later still: then the answer
    is in a scene that has almost come again. `near` are shapes that were there a moment ago, and
    `taken` patches in use; a shape whose twin they do not allow stays as it is.
    """
    earlier = [r for r in rows if r["glyph"] >= 0][-LAST:]
    if not earlier:
        return
    twin = earlier[rng.integers(len(earlier))]
    change = str(rng.choice(list(CHANGES), p=list(CHANGES.values())))
    glyph, colour, large, path = (twin[key] for key in ("glyph", "colour", "large", "path"))
    if change == "shape":
        glyph = other(rng, shapes, SHAPES, near | {glyph})
    if change == "colour":
        colour = other(rng, range(len(COLOURS)), COLOURS, {colour})
    if change == "place":
        large, path = row["large"], row["path"]
    else:
        path = (path + [path[-1]] * len(row["path"]))[: len(row["path"])]
    used = {(d, *patch) for d, (r, c) in enumerate(path) for patch in covered(r, c, large)}
    if glyph not in near and not used & taken:
        row |= {"glyph": glyph, "colour": colour, "large": large, "path": path}


def lookalikes(events: Events) -> list[int]:
    """Return the shapes after whose latest another one of their colour came to their place."""
    place = np.stack([events.colour, events.row[:, 0], events.col[:, 0]])
    found = []
    for glyph in range(len(SHAPES)):
        rows = np.flatnonzero(events.glyph == glyph)
        if len(rows):
            latest = rows[np.argmax(events.end[rows])]
            same = np.all(place == place[:, latest : latest + 1], axis=0)
            if np.any(same & (events.glyph >= 0) & (events.start >= events.end[latest])):
                found.append(glyph)
    return found
