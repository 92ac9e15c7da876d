"""The programs that a run trains through, and what is drawn for each of its steps."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmem.data.world.synthetic import split_seed
from jaxmem.decoder.program import Program
from jaxmem.experiments.evaluate.recall_streams import Streams, streams_of_seeds
from jaxmem.experiments.finetune.config import FinetuneConfig
from jaxmem.memory.base import AnyMemory, Spec
from jaxmem.memory.by_name import parse_budget
from jaxmem.models.base import Model
from jaxmem.programs import compile, memory_for, model_spec
from jaxmem.training.answers import Example, numbers_of
from jaxmem.training.batches import WORDS_MAX
from jaxmem.training.differentiable import check_differentiable, choosing
from jaxmem.typing import PyTree


class Loops(NamedTuple):
    """The programs of a run."""

    programs: tuple[Program, ...]  # one for all budgets, or one for each; then that of `full`
    numbers: tuple[PyTree, ...]  # `Example.aux` of every budget, where one program serves them all

    @property
    def one_for_all(self) -> bool:
        """Return whether budgets are data."""
        return bool(self.numbers)


class Drawn(NamedTuple):
    """What one step trains on."""

    which: int  # program
    example: Example  # [B, ...]


def share_of(config: FinetuneConfig, model: Model, share: float, seconds: int) -> AnyMemory:
    """Return the memory at a share of the budget, for streams of so many seconds.

    Raises:
      ValueError: if the budget holds none.
    """
    spec, budget = model_spec(model, config.chunk_seconds), parse_budget(config.budget)
    part = f"{int((budget.nbytes or 0) * share)}B"
    if budget.slots is not None:
        part = str(max(1, round(budget.slots * share)))
    options = dict(config.options.get(config.memory.replace("-", "_"), {}))
    more: dict[str, Any] = {"spec": spec, "tokens": seconds * model.tokens_per_piece, **options}
    try:
        return memory_for(
            model, config.memory.replace("-", "_"), part, bank=config.options.get("bank"), **more
        )
    except ValueError as error:
        if share == 1:
            raise
        raise ValueError(f"--shares {share:g} of --budget {config.budget}: {error}") from error


def full_of(config: FinetuneConfig, model: Model, seconds: int) -> AnyMemory:
    """Return the memory that holds a whole stream."""
    spec: Spec = model_spec(model, config.chunk_seconds)
    return memory_for(model, "full", "1", spec=spec, tokens=seconds * model.tokens_per_piece)


def loops_of(config: FinetuneConfig, model: Model) -> Loops:
    """Return the programs of a run.

    Raises:
      ValueError: if no layer attends, a share of the budget holds no memory, or the memory has no
        derivative.
    """
    if not model.decoder.attends:
        raise ValueError(
            f"no layer of {model.name} attends, so memory {config.memory} has no slots to train; "
            "take a --base whose layers attend."
        )
    spec = model_spec(model, config.chunk_seconds)
    shares = sorted(set(config.shares), reverse=True)
    programs = []
    for share in shares:
        program = compile(model, share_of(config, model, share, config.seconds), spec=spec)
        check_differentiable(program, config.mode)
        choosing(program, config.selection, config.mode)  # refuses what it cannot make
        programs.append(program)
    made = [program.memory for program in programs]
    numbers: tuple[PyTree, ...] = ()
    try:
        if len(made) > 1:
            numbers = tuple(numbers_of(programs[0], memory) for memory in made)
            programs = programs[:1]
    except ValueError:  # a program for each
        pass
    if config.full_steps:
        programs.append(compile(model, full_of(config, model, config.seconds), spec=spec))
    return Loops(tuple(programs), numbers)


def draw(config: FinetuneConfig, model: Model, loops: Loops, step: int) -> Drawn:
    """Return the streams of a step (from 0): a pure function of config and step."""
    seeds = [split_seed("train", config.seed, step, row) for row in range(config.streams)]
    many = config.moments * config.questions
    sizes = config.seconds, config.moments, many, config.chunk_seconds, config.difficulty
    example = example_of(streams_of_seeds(model, seeds, *sizes))
    last = len(loops.programs) - 1
    if config.full_steps and step % config.full_steps == config.full_steps - 1:
        return Drawn(last, example)
    rng = np.random.default_rng(split_seed("train", config.seed, step, config.streams))
    if not loops.one_for_all:
        return Drawn(int(rng.integers(last + (not config.full_steps))), example)
    drawn = rng.integers(len(loops.numbers), size=config.streams)
    aux = jax.tree.map(lambda *x: np.stack([np.asarray(x[i]) for i in drawn]), *loops.numbers)
    return Drawn(0, example._replace(aux=aux))


def example_of(made: Streams) -> Example:
    """Return streams with their questions, whose answers are a word each, [B, ...]."""
    ids, answer = (x.swapaxes(0, 1) for x in (made.asked.ids, made.asked.answer))
    ids = ids[..., :WORDS_MAX]
    last = np.arange(ids.shape[-1]) == (ids >= 0).sum(-1, keepdims=True) - 1
    target = np.where(last, answer[..., None], -1).astype(np.int32)
    inputs = jax.tree.map(functools.partial(np.swapaxes, axis1=0, axis2=1), made.inputs)
    return Example(inputs, ids.astype(np.int32), target)
