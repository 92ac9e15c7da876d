"""Held-out streams of the synthetic world as encoder inputs, and questions at fixed moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxmem.bound import bucket
from jaxmem.data.world import synthetic
from jaxmem.data.world.features import log_mel
from jaxmem.experiments.memories import MemoryOptions
from jaxmem.models.adapters import adapted
from jaxmem.models.base import Model
from jaxmem.models.scorer import with_scorer
from jaxmem.models.tiny.embedded import Inputs, embedded


class Asked(NamedTuple):
    """Questions of B streams at M moments, n each; plain numpy."""

    ids: np.ndarray  # int32 [M, B, n, Q], words, -1 after them
    answer: np.ndarray  # int [M, B, n], id of the right word
    type: np.ndarray  # str [M, B, n]
    age: np.ndarray  # float [M, B, n], seconds since the evidence ended; -1: it was never there


class Streams(NamedTuple):
    """B streams of one length, cut in M equal parts, each before a moment of questions."""

    inputs: Inputs  # [M, B, K, C, ...]: K chunks of C seconds a part
    asked: Asked
    seconds: int


def streams(
    model: Model,
    *,
    count: int,
    seconds: int,
    moments: int,
    questions: int,
    chunk_seconds: int,
    difficulty: str,
    split: synthetic.Split = "test",
) -> Streams:
    """Return B = `count` streams of the split, each with `questions` questions.

    They are asked at M moments, evenly spaced, the last one at the end, as many at each.

    Raises:
      ValueError: if a number is below 1, the moments do not cut the stream into whole chunks, or
        the questions do not spread evenly over them.
    """
    least = {"streams": count, "seconds": seconds, "moments": moments, "questions": questions}
    for name, value in {**least, "chunk-seconds": chunk_seconds}.items():
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if seconds % (moments * chunk_seconds):
        raise ValueError(
            f"streams of {seconds} s cannot be cut into {moments} parts of whole chunks of "
            f"{chunk_seconds} s; change --seconds, --moments or --chunk-seconds."
        )
    if questions % moments or questions < moments:
        raise ValueError(
            f"{questions} questions do not spread evenly over {moments} moments; give a multiple."
        )
    seeds = [synthetic.split_seed(split, index) for index in range(count)]
    return streams_of_seeds(model, seeds, seconds, moments, questions, chunk_seconds, difficulty)


def streams_of_seeds(
    model: Model,
    seeds: Sequence[tuple[int, ...]],
    seconds: int,
    moments: int,
    questions: int,
    chunk_seconds: int,
    difficulty: str,
) -> Streams:
    """Return a stream for every seed; the other arguments are those of `streams`."""
    made = [_one(model, seed, seconds, moments, questions, difficulty) for seed in seeds]
    parts = (moments, seconds // (moments * chunk_seconds), chunk_seconds)
    cut = lambda x: x.reshape(*parts, *x.shape[1:])
    inputs = [jax.tree.map(cut, one) for one, _ in made]
    beside = lambda *x: np.stack(x, 1)
    return Streams(
        jax.tree.map(beside, *inputs),
        jax.tree.map(beside, *[asked for _, asked in made]),
        seconds,
    )


@dataclass(frozen=True)
class StreamsConfig:
    """How streams are made, on a command line."""

    streams: int = 24  # Of every length.
    questions: int = 48  # About every stream.
    # Times at which a stream is asked, evenly spaced, the last one at its end.
    moments: int = 4
    chunk_seconds: int = 4  # Seconds written at once.
    difficulty: str = "standard"  # Level of the world.
    split: synthetic.Split = "test"  # "validation": where options are chosen.
    weights: Path | None = None  # Of a model like the embedded one; None: the embedded one.
    adapter: Path | None = None  # Of the weights, as `jaxmem finetune` writes it.
    scorer: Path | None = None  # Learned weights of `retention`; None: the model's own.
    options: MemoryOptions = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """Return the model that is asked."""
        model = adapted(embedded(self.weights), self.adapter)
        return model if self.scorer is None else with_scorer(model, self.scorer)


def streams_of(config: StreamsConfig, model: Model, seconds: int) -> Streams:
    """Return the streams of one length that a command's options ask for."""
    return streams(
        model,
        count=config.streams,
        seconds=seconds,
        moments=config.moments,
        questions=config.questions,
        chunk_seconds=config.chunk_seconds,
        difficulty=config.difficulty,
        split=config.split,
    )


def _one(
    model: Model,
    seed: tuple[int, ...],
    seconds: int,
    moments: int,
    count: int,
    difficulty: str,
) -> tuple[Inputs, Asked]:
    stream = synthetic.world(seed, seconds, synthetic.level(difficulty))
    logmel = log_mel(synthetic.sound(stream))
    inputs = Inputs(
        synthetic.frames(stream),
        logmel.reshape(seconds, -1, logmel.shape[-1]),
        np.ones(seconds, bool),
    )
    return inputs, asked_of(model, stream, moments, count)


def asked_of(model: Model, stream: synthetic.Stream, moments: int, count: int) -> Asked:
    """Return the questions about one stream, without its axis B; nothing is rendered."""
    each = []
    for moment in range(moments):
        time = stream.seconds * (moment + 1) // moments
        drawn = synthetic.questions(stream, count // moments, seed=moment, times=(time,))
        each.append(_asked(model, drawn))
    return jax.tree.map(lambda *x: np.stack(x), *each)


def _asked(model: Model, drawn: list[synthetic.Question]) -> Asked:
    words = [model.tokenize(q.text) for q in drawn]
    size = max(bucket(len(ids)) for ids in words)
    return Asked(
        ids=np.stack([np.pad(ids, (0, size - len(ids)), constant_values=-1) for ids in words]),
        answer=np.array([int(model.tokenize(q.answer)[0]) for q in drawn]),
        type=np.array([q.type for q in drawn]),
        age=np.array([q.time - q.evidence_time if q.evidence_time >= 0 else -1.0 for q in drawn]),
    )
