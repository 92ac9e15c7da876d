"""The training loop of the tiny model: stages of growing length, checkpoints, continuation."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxmem.data.world.synthetic import level, split_seed
from jaxmem.models.tiny import tiny
from jaxmem.training import batches, losses
from jaxmem.training.optimizers import Name, optimizer
from jaxmem.training.runs import Folder, follow
from jaxmem.typing import Params


@dataclasses.dataclass(frozen=True)
class Stage:
    """Some steps with streams of one length."""

    seconds: int
    streams: int
    questions: int  # per stream
    steps: int
    # Short streams at the world's rate hold one event, and the model learns to answer every
    # question from the last event. More events of fewer classes make it look for the one that was
    # asked about, and tell the last time from earlier ones.
    crowd: float = 1.0  # factor on the event rate
    classes: int = 8  # see `Difficulty`


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights."""

    model: tiny.TinyConfig = dataclasses.field(default_factory=tiny.TinyConfig)
    difficulty: str = "standard"
    stages: tuple[Stage, ...] = (
        Stage(8, 16, 20, 500, crowd=2.5, classes=4),
        Stage(16, 10, 24, 600, crowd=2.0, classes=4),
        Stage(32, 6, 32, 500, crowd=2.0, classes=6),
        Stage(64, 4, 40, 500, crowd=1.6),
        Stage(128, 2, 64, 400, crowd=1.8),
    )
    rate: float = 2.5e-3  # Adam's peak learning rate
    muon_factor: float = 5.0  # Muon's is this much larger
    optimizer: Name = "muon"  # of the matrices of the layers; the rest is Adam's
    rank: int = 16  # of the moments of "galore" and "apollo"
    auxiliary: float = 0.3  # weight of the encoders' loss
    seed: int = 0
    save_every: int = 200

    @property
    def steps(self) -> int:
        """All steps of all stages."""
        return sum(s.steps for s in self.stages)


class Trained(NamedTuple):
    """What a checkpoint holds."""

    params: Params  # {"model", "auxiliary"}
    optimizer: Any
    step: jax.Array  # steps done


def scaled(config: TrainConfig, factor: float) -> TrainConfig:
    """The same recipe with `factor` times as many steps in every stage (at least one)."""
    if factor <= 0:
        raise ValueError(f"the number of steps can only be scaled by more than 0, got {factor}")
    stages = [dataclasses.replace(s, steps=max(1, round(s.steps * factor))) for s in config.stages]
    return dataclasses.replace(config, stages=tuple(stages))


def stage_of(config: TrainConfig, step: int) -> Stage:
    """The stage that a step (from 0) belongs to."""
    for stage in config.stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    raise ValueError(f"the recipe has {config.steps} steps, got step {config.steps + step}")


def batch_of(config: TrainConfig, step: int) -> batches.Batch:
    """The batch of a step: a pure function of (config, step)."""
    stage, difficulty = stage_of(config, step), level(config.difficulty)
    rate = difficulty.event_rate * stage.crowd
    difficulty = dataclasses.replace(difficulty, event_rate=rate, classes=stage.classes)
    seeds = [split_seed("train", config.seed, step, row) for row in range(stage.streams)]
    sizes = stage.seconds, stage.questions, difficulty, config.model
    return batches.stack([batches.one(seed, *sizes, disturb=True)[0] for seed in seeds])


def start(config: TrainConfig) -> Trained:
    """Random weights and a fresh optimizer."""
    model_key, auxiliary_key = jax.random.split(jax.random.key(config.seed))
    params = {
        "model": tiny.init(config.model, model_key),
        "auxiliary": losses.init_auxiliary(config.model, auxiliary_key),
    }
    return Trained(params, _optimizer(config).init(params), jax.numpy.zeros((), np.int32))


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    more = {"name": config.optimizer, "rank": config.rank}
    return optimizer(config.steps, config.rate, config.muon_factor, **more)


@functools.cache
def make_update(config: TrainConfig) -> Callable[[Trained, batches.Batch], tuple[Any, ...]]:
    """A jitted function from state and batch to state and `losses.Metrics`."""
    optimize = _optimizer(config).update

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Trained, batch: batches.Batch) -> tuple[Trained, losses.Metrics]:
        (_, metrics), gradient = jax.value_and_grad(losses.loss, has_aux=True)(
            state.params, config.model, batch, config.auxiliary
        )
        change, memory = optimize(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, change)
        return Trained(params, memory, state.step + 1), metrics

    return update


def train(
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> Trained:
    """Train from nothing or from the last checkpoint in `folder`.

    Writes `metrics.jsonl` (a line per 10 steps), `checkpoints/` (the last two) and, with every
    checkpoint, the weights as `tiny.safetensors` (or what else `tiny.name_of` says).

    The result of a run that was resumed is that of one that was never stopped. `report` is called
    after every step with the step's number (from 1) and its metrics.

    Raises:
        ValueError: `folder` holds a run and `resume` is False, or there is nothing to resume, or
            the run is of another model or recipe, or a loss is not finite.
    """
    weights = Path(folder) / f"{tiny.name_of(config.model)}.safetensors"
    found = [path.name for path in Path(folder).glob("*.safetensors")]
    if resume and found and not weights.is_file():
        found = ", ".join(sorted(found))
        raise ValueError(f"{folder} is a run of {found}, not of {weights.name}: name its model.")
    return follow(
        start(config),
        make_update(config),
        functools.partial(batches.ahead, functools.partial(batch_of, config)),
        config.steps,
        Folder(Path(folder), config.save_every, resume),
        recipe=dataclasses.asdict(config),
        report=report,
        more=lambda step: {"seconds": stage_of(config, step - 1).seconds},
        saved=lambda state: tiny.save(weights, state.params["model"], config.model),
    )
