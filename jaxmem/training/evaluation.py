"""Accuracy on held-out streams with a memory that keeps everything, by type of question."""

import functools
from collections import defaultdict
from typing import NamedTuple

import jax
import numpy as np

from jaxmem.data.world.synthetic import Split, level, split_seed
from jaxmem.models.tiny import tiny
from jaxmem.training import batches, losses
from jaxmem.typing import Params

PER_STREAM = 48


class Score(NamedTuple):
    """A share of right answers with its 95 % interval."""

    accuracy: float
    low: float
    high: float
    count: int


def wilson(right: int, count: int) -> Score:
    """Wilson's interval of a share at 95 %."""
    z = 1.959964
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return Score(share, float(middle - half), float(middle + half), count)


@functools.partial(jax.jit, static_argnums=1)
def _answers(params: Params, config: tiny.TinyConfig, batch: batches.Batch) -> jax.Array:
    return losses.forward(params, config, batch)[0].argmax(-1)


def evaluate(
    params: Params,
    config: tiny.TinyConfig,
    seconds: int,
    questions: int = 2000,
    difficulty: str = "standard",
    split: Split = "test",
) -> dict[str, Score]:
    """Accuracy over all questions ("all") and per type.

    Streams are undisturbed; each is asked 48 questions at random times.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for index in range(-(-questions // PER_STREAM)):
        seed = split_seed(split, index)
        batch, asked = batches.one(
            seed, seconds, PER_STREAM, level(difficulty), config, disturb=False
        )
        answers = np.asarray(_answers(params, config, batches.stack([batch])))[0]
        for question, answer in zip(asked, answers, strict=True):
            correct = config.words[answer] == question.answer
            right["all"].append(correct)
            right[question.type].append(correct)
    return {name: wilson(sum(v), len(v)) for name, v in sorted(right.items())}
