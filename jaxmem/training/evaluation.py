"""Accuracy on held-out streams with a memory that keeps everything, by type of question."""

import functools
from collections import defaultdict

import jax
import numpy as np

from jaxmem.data.world.synthetic import Split, level, split_seed
from jaxmem.models.tiny import tiny
from jaxmem.report.results import Accuracy
from jaxmem.training import batches, losses
from jaxmem.typing import Params

PER_STREAM = 48


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
) -> dict[str, Accuracy]:
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
    return {name: Accuracy.of(sum(v), len(v)) for name, v in sorted(right.items())}
