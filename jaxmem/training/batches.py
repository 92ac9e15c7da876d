"""Training batches of the synthetic world: a pure function of (seed, step), made ahead of time."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxmem.data.media.prefetch import prefetch
from jaxmem.data.world import synthetic
from jaxmem.data.world.features import BINS, log_mel
from jaxmem.models.tiny import tiny

WORDS_MAX = 4  # of a tokenised question, `<ask>` included
Leaf = Any  # a numpy array while the batch is made, a JAX array inside jit


class Batch(NamedTuple):
    """B streams of F seconds with Q questions each."""

    frames: Leaf  # uint8 [B, F, 48, 48, 3]
    logmel: Leaf  # float32 [B, F, 100, 24]
    begin: Leaf  # int32 [B, F], position (ticks) where each second begins
    ids: Leaf  # int32 [B, Q, 4], words of the questions, padding behind
    ask: Leaf  # int32 [B, Q], index of `<ask>` among them
    time: Leaf  # int32 [B, Q], seconds that the question knows
    answer: Leaf  # int32 [B, Q], word id
    colour: Leaf  # int32 [B, F, 16], see `synthetic.patch_labels`
    glyph: Leaf  # int32 [B, F, 16]
    sound: Leaf  # int32 [B, F, 4], see `synthetic.sound_labels`
    number: Leaf  # int32 [B, F, 20], see `synthetic.number_labels`


def jump(rng: np.random.Generator, seconds: int) -> np.ndarray:
    """Where each second begins (ticks), int32 [F], with random gaps in most streams.

    Gaps imitate what a pruned memory leaves behind and cover times that training never reaches.
    """
    steps = np.full(seconds, tiny.TICKS)
    if rng.random() < 0.75:
        # The total length is log-uniform up to 600 s, spread over a random number of gaps.
        extra = int(np.exp(rng.uniform(np.log(4), np.log(600 * tiny.TICKS))))
        share = rng.choice([0.02, 0.1, 0.4])
        gaps = rng.exponential(1, seconds) * (rng.random(seconds) < share)
        if gaps.sum():
            steps += (extra * gaps / gaps.sum()).astype(int)
    return (np.cumsum(steps) - steps[0]).astype(np.int32)


def one(
    seed: tuple[int, ...],
    seconds: int,
    count: int,
    difficulty: synthetic.Difficulty,
    config: tiny.TinyConfig,
    disturb: bool,
) -> tuple[Batch, list[synthetic.Question]]:
    """One stream of F seconds as a `Batch` without the axis B, and its Q = `count` questions.

    `disturb` adds the noise and the time gaps of training.
    """
    stream = synthetic.world(seed, seconds, difficulty)
    rng = np.random.default_rng(np.random.SeedSequence((*seed, 11)))
    times = np.arange(seconds) + (rng.uniform(0.3, 0.7) if disturb else 0.5)
    frames, samples = synthetic.frames(stream, times), synthetic.sound(stream)
    if disturb:
        frames = synthetic.disturb_frames(frames, rng)
        samples = synthetic.disturb_sound(samples, rng)
    asked = synthetic.questions(stream, count)
    ids = np.zeros((count, WORDS_MAX), np.int32)
    ask = np.zeros(count, np.int32)
    for i, q in enumerate(asked):
        words = tiny.tokenize(q.text, config.words)
        ids[i, : len(words)] = words
        ask[i] = len(words) - 1
    colour, glyph = synthetic.patch_labels(stream)
    batch = Batch(
        frames=frames,
        logmel=log_mel(samples).reshape(seconds, -1, BINS),
        begin=jump(rng, seconds) if disturb else np.arange(seconds, dtype=np.int32) * tiny.TICKS,
        ids=ids,
        ask=ask,
        time=np.array([q.time for q in asked], np.int32),
        answer=np.array([config.words.index(q.answer) for q in asked], np.int32),
        colour=colour,
        glyph=glyph,
        sound=synthetic.sound_labels(stream),
        number=synthetic.number_labels(stream),
    )
    return batch, asked


def stack(batches: list[Batch]) -> Batch:
    """Put streams side by side."""
    return Batch(*(np.stack(field) for field in zip(*batches, strict=True)))


Made = TypeVar("Made")


def ahead(make: Callable[[int], Made], steps: range, depth: int = 4) -> Iterator[Made]:
    """`make(step)` for every step, computed on a background thread up to `depth` steps ahead."""
    with prefetch(map(make, steps), depth) as made:
        yield from made
