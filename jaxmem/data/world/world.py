"""A small audio-visual world: what happens, when and where, before anything is drawn or played.

A stream is a list of sparse events (a coloured shape, a sound, or both at once) over a scenery that
changes slowly, among decoys (coloured patterns, grey flashes, hiss, hum, clicks, babble). Event
classes repeat, so questions mean the most recent one. All rates are per second: a stream twice as
long holds twice as many events. Everything is decided here; `render.frames`, `sounds.sound` and
`questions.questions` are pure functions of the result.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxmem.data.world.recurring import other, recur
from jaxmem.data.world.scene import (
    COLOURS,
    DECOYS,
    DISTRACTORS,
    GRID,
    SHAPES,
    SOUNDS,
    Camera,
    Difficulty,
    Distractors,
    Events,
    Flashes,
    Scenery,
    Stream,
    covered,
    level,
    patches,
)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_seed(split: Split, *index: int) -> tuple[int, ...]:
    """Seed of a stream of a split, by one number or several (run, step, row).

    The split comes first, so two splits can never share a seed.

    Raises:
        ValueError: unknown split, no index or a negative one.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not index or min(index) < 0:
        raise ValueError(f"a stream is named by numbers of 0 or more, got {index}")
    return (SPLITS.index(split), *index)


def world(
    seed: int | Sequence[int], seconds: int, difficulty: Difficulty | str = "standard"
) -> Stream:
    """Decide what happens in a stream.

    Args:
        seed: a sequence of integers (see `split_seed`), or one integer; the streams of single
            integers are those of no split.
        seconds: length of the stream.
        difficulty: a `Difficulty` or the name of a level.

    Raises:
        ValueError: `seconds` below 1 or an unknown level.
    """
    if seconds < 1:
        raise ValueError(f"a stream must last 1 second or more, got {seconds}")
    if isinstance(difficulty, str):
        difficulty = level(difficulty)
    entropy = (len(SPLITS), seed) if isinstance(seed, int) else tuple(int(s) for s in seed)
    seeds = np.random.SeedSequence(entropy)
    rng = np.random.default_rng(seeds)
    events = _events(rng, seconds, difficulty)
    return Stream(
        seed=entropy,
        seconds=seconds,
        difficulty=difficulty,
        events=events,
        decoys=_decoys(rng, seconds, difficulty, events),
        distractors=_distractors(rng, seconds, difficulty),
        scenery=_scenery(rng, seconds, difficulty),
        flashes=_flashes(rng, seconds, difficulty),
        noise_db=float(rng.uniform(*difficulty.noise_db)),
        camera=_camera(np.random.default_rng(seeds.spawn(1)[0]), seconds, difficulty),
    )


def _pack(rows: list[dict[Any, Any]], rng: np.random.Generator, width: int) -> Events:
    """Rows of plain values to `Events`, with the random details that nothing else depends on."""
    n = len(rows)

    def ints(name: str) -> np.ndarray:
        return np.array([r[name] for r in rows], np.int64).reshape(n)

    row, col = np.zeros((2, n, width), np.int64)
    for i, r in enumerate(rows):
        path = r["path"] + [r["path"][-1]] * (width - len(r["path"]))
        row[i], col[i] = np.array(path, np.int64).T
    return Events(
        start=ints("start"),
        end=ints("end"),
        glyph=ints("glyph"),
        colour=ints("colour"),
        large=ints("large").astype(bool),
        row=row,
        col=col,
        shift=rng.uniform(-1, 1, (n, 2)),
        tint=rng.uniform(-0.12, 0.12, (n, 3)),
        sound=ints("sound"),
        variant=rng.uniform(0, 1, (n, 4)),
        seed=rng.integers(0, 2**31, n),
    )


def _path(
    rng: np.random.Generator, duration: int, large: bool, moving: bool, taken: set[Any]
) -> list[tuple[int, int]] | None:
    """Patch of every second, clear of `taken` {(second, row, col)}; None if no room was found."""
    for _ in range(20):
        if large:  # large glyphs fill one quadrant, so that `where` has one answer
            row, col = 2 * rng.integers(0, 2), 2 * rng.integers(0, 2)
        else:
            row, col = rng.integers(0, GRID, 2)
        path = [(int(row), int(col))]
        for _ in range(duration - 1):
            row, col = path[-1]
            if moving and not large:
                steps = [(row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)]
                steps = [s for s in steps if min(s) >= 0 and max(s) < GRID]
                row, col = steps[rng.integers(len(steps))]
            path.append((row, col))
        used = {(d, *patch) for d, (r, c) in enumerate(path) for patch in covered(r, c, large)}
        if not used & taken:
            return path
    return None


def _taken(rows: list[dict[Any, Any]], start: int, duration: int) -> set[Any]:
    """Patches in use during the given seconds, as {(second - start, row, col)}."""
    used = set()
    for r in rows:
        if r["glyph"] < 0:
            continue
        for t in range(max(start, r["start"]), min(start + duration, r["end"])):
            row, col = r["path"][t - r["start"]]
            used |= {(t - start, *patch) for patch in covered(row, col, r["large"])}
    return used


def _pool(rng: np.random.Generator, names: Sequence[str], classes: int) -> Sequence[int]:
    """The classes that a stream draws from."""
    size = len(names)
    return range(size) if classes >= size else rng.choice(size, classes, replace=False).tolist()


def _events(rng: np.random.Generator, seconds: int, d: Difficulty) -> Events:
    rows: list[dict[Any, Any]] = []
    lengths = np.arange(1, len(d.durations) + 1)
    mean = float(np.dot(lengths, d.durations))
    # A cycle is an event and a pause; overlaps shorten it, and longer pauses make up for that.
    pause = max(1 / d.event_rate - mean * (1 - d.overlap / 2), 0.1) / max(1 - d.overlap, 0.1)
    t = float(rng.exponential(pause)) * 0.5
    shapes, sounds = (_pool(rng, names, d.classes) for names in (SHAPES, SOUNDS))
    while t < seconds:
        start = int(t)
        duration = int(rng.choice(lengths, p=d.durations))
        near = [r for r in rows[-6:] if r["end"] >= start - 1]
        kind = rng.choice(3, p=[d.visual_only, d.audio_only, 1 - d.visual_only - d.audio_only])
        seen, heard = kind != 1, kind != 0
        if heard and any(r["sound"] >= 0 and r["end"] > start for r in near):
            seen, heard = True, False  # sounds never overlap
        shown = [r for r in near if r["glyph"] >= 0 and r["end"] > start]
        if seen and len(shown) > 1:
            seen = False
        large = bool(seen and rng.random() < d.large)
        moving = bool(rng.random() < d.moving)
        taken = _taken(rows[-6:], start, duration)
        path = _path(rng, duration, large, moving, taken) if seen else [(0, 0)]
        if path is not None and (seen or heard):
            row = {"start": start, "end": min(start + duration, seconds), "path": path}
            row |= {"large": large, "glyph": -1, "colour": -1, "sound": -1}
            if seen:
                row["glyph"] = other(rng, shapes, SHAPES, {r["glyph"] for r in near})
                row["colour"] = int(rng.integers(len(COLOURS)))
            if heard:
                row["sound"] = other(rng, sounds, SOUNDS, {r["sound"] for r in near})
            if seen and d.recur and rng.random() < d.recur:
                recur(rng, row, rows, shapes, {r["glyph"] for r in near}, taken)
            rows.append(row)
        if rng.random() < d.overlap:
            t = start + int(rng.integers(0, duration + 1))
        else:
            t = start + duration + float(rng.exponential(pause))
    return _pack(rows, rng, len(d.durations))


def _decoys(rng: np.random.Generator, seconds: int, d: Difficulty, events: Events) -> Events:
    rows: list[dict[Any, Any]] = []
    for start in np.sort(rng.integers(0, seconds, rng.poisson(d.decoy_rate * seconds))):
        start, duration = int(start), int(rng.integers(1, 3))
        taken = _taken(rows[-8:], start, duration)
        for i in np.flatnonzero((events.end > start) & (events.start < start + duration)):
            for k in range(duration):
                taken |= {(k, r, c) for r, c in patches(events, int(i), start + k)}
        path = _path(rng, duration, False, False, taken)
        near = {r["glyph"] - len(SHAPES) for r in rows[-8:] if r["end"] >= start - 1}
        if path is None or len(near) == len(DECOYS):
            continue
        row = {"start": start, "end": min(start + duration, seconds), "path": path}
        row["glyph"] = len(SHAPES) + other(rng, range(len(DECOYS)), DECOYS, near)
        row["colour"] = int(rng.integers(len(COLOURS)))
        rows.append(row | {"large": False, "sound": -1})
    return _pack(rows, rng, 2)


def _distractors(rng: np.random.Generator, seconds: int, d: Difficulty) -> Distractors:
    n = rng.poisson(d.distractor_rate * seconds)
    kind = rng.integers(0, 3, n)
    start = rng.uniform(0, seconds, n)
    length = rng.uniform(0.5, 3, n)
    m = rng.poisson(d.babble * seconds / 5)  # babble comes in stretches of about five seconds
    kind = np.concatenate([kind, np.full(m, DISTRACTORS.index("babble"))])
    start = np.concatenate([start, rng.uniform(-2, seconds, m).clip(0)])
    length = np.concatenate([length, rng.uniform(3, 7, m)])
    return Distractors(
        kind=kind,
        start=start,
        end=np.minimum(start + length, seconds),
        variant=rng.uniform(0, 1, (n + m, 2)),
        seed=rng.integers(0, 2**31, n + m),
    )


def _scenery(rng: np.random.Generator, seconds: int, d: Difficulty) -> Scenery:
    cuts = np.sort(rng.integers(1, max(seconds, 2), rng.poisson(d.cut_rate * seconds)))
    n = len(cuts) + 1
    grey = rng.uniform(0.2, 0.6, (n, 1))
    drift = np.stack(
        [
            rng.uniform(0.02, 0.08, (n, 3)),
            2 * np.pi / rng.uniform(15, 60, (n, 3)),
            rng.uniform(0, 2 * np.pi, (n, 3)),
        ],
        axis=-1,
    )
    return Scenery(
        start=np.concatenate([[0.0], cuts]),
        base=grey + rng.uniform(-0.12, 0.12, (n, 3)),
        drift=drift,
        gradient=rng.uniform(-0.15, 0.15, (n, 2)),
        clutter=rng.random((n, GRID, GRID)) < d.clutter,
        texture=rng.uniform(0.1, 0.9, (n, GRID * 4, GRID * 4)),
    )


def _flashes(rng: np.random.Generator, seconds: int, d: Difficulty) -> Flashes:
    n = rng.poisson(d.flash_rate * seconds)
    return Flashes(
        second=np.sort(rng.integers(0, seconds, n)),
        row=rng.integers(0, GRID, n),
        col=rng.integers(0, GRID, n),
        texture=rng.uniform(0.1, 0.9, (n, 4, 4)),
    )


def _camera(rng: np.random.Generator, seconds: int, d: Difficulty) -> Camera:
    """Return what happens to whole pictures, by numbers of its own: levels share their events."""
    turn = rng.uniform(0, 2 * np.pi)
    return Camera(
        pan=d.pan * np.array([np.sin(turn), np.cos(turn)]),
        first=int(rng.integers(0, 2**16)),
        grain=d.grain,
        light=1 + d.flicker * rng.uniform(-1, 1, seconds),
    )
