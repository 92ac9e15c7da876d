"""The parts of a synthetic stream: what can appear, how hard it is made, and what was decided."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "moon")
DECOYS = ("dots", "stripes")  # coloured like shapes, but never counted among them
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SOUNDS = ("bell", "buzz", "chirp", "drum", "horn", "siren", "whistle", "rattle")
QUADRANTS = ("topleft", "topright", "bottomleft", "bottomright")
DISTRACTORS = ("hiss", "hum", "clicks", "babble")
GRID = 4  # patches along a side of the picture


@dataclass(frozen=True)
class Difficulty:
    """Knobs of the world. Rates are per second, probabilities per event."""

    event_rate: float = 1 / 6
    visual_only: float = 0.35
    audio_only: float = 0.25
    overlap: float = 0.2  # the next event starts while the last one still runs
    large: float = 0.2  # a shape over 2x2 patches
    moving: float = 0.35  # of the small shapes that last two seconds or more
    durations: tuple[float, ...] = (0.4, 0.4, 0.2)  # 1, 2, 3 seconds
    decoy_rate: float = 1 / 6  # coloured dots and stripes
    flash_rate: float = 0.25  # grey patches of one second
    clutter: float = 0.12  # share of patches with a static grey texture
    cut_rate: float = 1 / 45  # the scenery changes at once
    distractor_rate: float = 1 / 10
    babble: float = 0.2  # share of the time with speech-like background
    noise_db: tuple[float, float] = (-66.0, -52.0)
    classes: int = 8  # shapes and sounds that one stream draws from; fewer mean more repetition
    recur: float = 0.0  # share of the shapes that repeat an earlier scene but for one thing
    pan: float = 0.0  # pixels per second of a 48x48 picture that the scenery moves
    flicker: float = 0.0  # the brightness of every second lies in 1 - flicker .. 1 + flicker
    grain: float = 0.0  # noise of every picture, as a share of white


LEVELS: dict[str, Difficulty] = {
    "easy": Difficulty(
        overlap=0.0, large=0.0, moving=0.0, decoy_rate=0.02, flash_rate=0.1, cut_rate=0.0,
        babble=0.0,
    ),
    "standard": Difficulty(),
    "hard": Difficulty(
        event_rate=1 / 4, overlap=0.3, large=0.3, moving=0.5, decoy_rate=0.4, flash_rate=0.6,
        clutter=0.2, cut_rate=1 / 20, distractor_rate=0.25, babble=0.4,
    ),
    "moving": Difficulty(large=0.1, moving=1.0, durations=(0.1, 0.3, 0.3, 0.3), pan=2.0),
    "flicker": Difficulty(cut_rate=1 / 20, clutter=0.25, flicker=0.2, grain=0.06),
    "recurring": Difficulty(cut_rate=0.0, recur=0.8),
}  # fmt: skip
"""The first three were there when the embedded model was trained. The others make two pictures of
one thing differ, or two things look alike: what judges by resemblance finds them hard."""


class Events(NamedTuple):
    """Things with a beginning and an end, in whole seconds; one row each, in order of `start`."""

    start: np.ndarray  # [n] int, first second
    end: np.ndarray  # [n] int, exclusive
    glyph: np.ndarray  # [n] int, index into SHAPES + DECOYS, -1: nothing to see
    colour: np.ndarray  # [n] int, index into COLOURS, -1: nothing to see
    large: np.ndarray  # [n] bool
    row: np.ndarray  # [n, D] int, patch row of every second (top row of a large glyph)
    col: np.ndarray  # [n, D] int
    shift: np.ndarray  # [n, 2] float in -1..1, offset (y, x) inside the patch
    tint: np.ndarray  # [n, 3] float, deviation from the pure colour
    sound: np.ndarray  # [n] int, index into SOUNDS, -1: nothing to hear
    variant: np.ndarray  # [n, 4] float in 0..1: pitch, loudness, delay, early end
    seed: np.ndarray  # [n] int, for the noise and phases inside a sound


class Distractors(NamedTuple):
    """Sounds nobody asks about; times in seconds."""

    kind: np.ndarray  # [n] int, index into DISTRACTORS
    start: np.ndarray  # [n] float
    end: np.ndarray  # [n] float
    variant: np.ndarray  # [n, 2] float in 0..1: pitch, loudness
    seed: np.ndarray  # [n] int


class Scenery(NamedTuple):
    """Background between two cuts; one row per stretch."""

    start: np.ndarray  # [n] float, seconds
    base: np.ndarray  # [n, 3] float in 0..1
    drift: np.ndarray  # [n, 3, 3] float: amplitude, rad/s, phase of each channel
    gradient: np.ndarray  # [n, 2] float, brightness slope down and right
    clutter: np.ndarray  # [n, GRID, GRID] bool
    texture: np.ndarray  # [n, GRID * 4, GRID * 4] float in 0..1, grey


class Flashes(NamedTuple):
    """Grey patches that show for one second."""

    second: np.ndarray  # [n] int
    row: np.ndarray  # [n] int
    col: np.ndarray  # [n] int
    texture: np.ndarray  # [n, 4, 4] float in 0..1


class Camera(NamedTuple):
    """What happens to whole pictures."""

    pan: np.ndarray  # [2] float, pixels per second of a 48x48 picture, down and right
    light: np.ndarray  # [seconds] float, factor of the brightness
    grain: float  # strength of the noise
    first: int  # noise picture of the first moment


class Stream(NamedTuple):
    """One stream of the world."""

    seed: tuple[int, ...]
    seconds: int
    difficulty: Difficulty
    events: Events
    decoys: Events
    distractors: Distractors
    scenery: Scenery
    flashes: Flashes
    noise_db: float
    camera: Camera


def level(name: str) -> Difficulty:
    """The `Difficulty` of that name. Raises ValueError with the known names."""
    if name not in LEVELS:
        raise ValueError(f"unknown difficulty {name!r}: use one of {', '.join(LEVELS)}")
    return LEVELS[name]


def patches(events: Events, index: int, second: int) -> list[tuple[int, int]]:
    """The patches (row, col) that glyph `index` covers during `second`; empty if not shown."""
    if events.glyph[index] < 0 or not events.start[index] <= second < events.end[index]:
        return []
    d = second - events.start[index]
    return covered(int(events.row[index, d]), int(events.col[index, d]), events.large[index])


def covered(row: int, col: int, large: bool) -> list[tuple[int, int]]:
    """The patches (row, col) that a glyph covers whose upper left one is given."""
    size = range(2 if large else 1)
    return [(row + i, col + j) for i in size for j in size]
