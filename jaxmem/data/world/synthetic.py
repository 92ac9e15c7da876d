"""The synthetic world in one place: streams, pictures, sound, questions, labels, disturbances.

stream = world(split_seed("train", 0), seconds=64)
frames(stream), sound(stream), questions(stream, 48)
"""

import numpy as np

from jaxmem.data.world.questions import TYPES, Question, questions
from jaxmem.data.world.render import frames, noise_pictures
from jaxmem.data.world.scene import (
    COLOURS,
    DECOYS,
    GRID,
    LEVELS,
    QUADRANTS,
    SHAPES,
    SOUNDS,
    Difficulty,
    Stream,
    level,
    patches,
)
from jaxmem.data.world.sounds import RATE, sound
from jaxmem.data.world.world import SPLITS, Split, split_seed, world

__all__ = [
    "COLOURS", "DECOYS", "LEVELS", "QUADRANTS", "SHAPES", "SOUNDS", "SPLITS", "TYPES", "Difficulty",
    "Question", "Split", "Stream", "disturb_frames", "disturb_sound", "frames", "level",
    "number_labels", "patch_labels", "questions", "sound", "sound_labels", "split_seed", "world",
]  # fmt: skip

_PIECES = 4  # audio tokens per second


def patch_labels(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """What every patch shows in every second.

    Returns:
        colour: int [seconds, 16], 0 = nothing, else 1 + index into COLOURS.
        glyph: int [seconds, 16], 0 = nothing, else 1 + index into SHAPES + DECOYS.
    """
    colour, glyph = np.zeros((2, stream.seconds, GRID * GRID), np.int32)
    for events in (stream.decoys, stream.events):
        for i in range(len(events.start)):
            for t in range(events.start[i], events.end[i]):
                for row, col in patches(events, i, t):
                    colour[t, row * GRID + col] = 1 + events.colour[i]
                    glyph[t, row * GRID + col] = 1 + events.glyph[i]
    return colour, glyph


def sound_labels(stream: Stream) -> np.ndarray:
    """What rings in every quarter of a second, int [seconds, 4].

    0 = nothing, 1 + index into SOUNDS, -1 = too little to tell.
    """
    out = np.zeros(stream.seconds * _PIECES, np.int32)
    e = stream.events
    edges = np.arange(len(out) + 1) / _PIECES
    for i in np.flatnonzero(e.sound >= 0):
        begin, end = e.start[i] + 0.25 * e.variant[i, 2], e.end[i] - 0.25 * e.variant[i, 3]
        share = (np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin)) * _PIECES
        out[share > 0] = -1
        out[share > 0.5] = 1 + e.sound[i]
    return out.reshape(stream.seconds, _PIECES)


def number_labels(stream: Stream) -> np.ndarray:
    """How often the shape or the sound of a token was shown or rang so far, this time included.

    int [seconds, 20], 16 patches then 4 quarters of a second: 0 = no event, 1, 2, 3 = often.
    """
    sounds = sound_labels(stream)
    out = np.zeros((stream.seconds, GRID * GRID + _PIECES), np.int32)
    e = stream.events
    for i in range(len(e.start)):
        shown, rang = (
            min(int((classes[: i + 1] == classes[i]).sum()), 3) for classes in (e.glyph, e.sound)
        )
        for t in range(e.start[i], e.end[i]):
            for row, col in patches(e, i, t):
                out[t, row * GRID + col] = shown
        if e.sound[i] >= 0:
            seconds = slice(e.start[i], e.end[i])
            out[seconds, GRID * GRID :] = np.where(sounds[seconds] > 0, rang, 0)
    return out


def disturb_frames(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Imitate what cameras and codecs do to one stream: colour shift, blur, noise.

    Pictures are uint8 [F, 48, 48, 3]; `rng` decides how much of each, once per stream.
    """
    gain = rng.uniform(0.92, 1.08) * rng.uniform(0.96, 1.04, 3)
    offset = rng.uniform(-8, 8) + rng.uniform(-4, 4, 3)
    out = pictures * gain.astype(np.float32) + offset.astype(np.float32)
    if rng.random() < 0.5:
        blur = np.float32(rng.uniform(0, 0.25))
        for axis in (1, 2):
            near = (np.roll(out, 1, axis) + np.roll(out, -1, axis)) * np.float32(0.5)
            out += blur * (near - out)
    grain = np.float32(rng.uniform(0, 6) if rng.random() < 0.7 else 0)
    if grain:
        out += grain * rng.choice(noise_pictures(), len(pictures))
    return (out.clip(0, 255) + 0.5).astype(np.uint8)


def disturb_sound(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Imitate another recording of one stream: level, delay of up to 20 ms, noise, dull treble.

    Samples are float32 [n]; `rng` decides how much of each, once per stream.
    """
    shift = int(rng.integers(-RATE // 50, RATE // 50 + 1))
    out = np.roll(samples, shift)
    if rng.random() < 0.3:
        keep = np.float32(rng.uniform(0.6, 1))
        out = keep * out + (1 - keep) * np.roll(out, 1)
    return out * np.float32(10 ** (rng.uniform(-6, 3) / 20))
