"""Fine-tune the embedded model with a memory in the loop: adapters or all weights of its decoder.

python -m jaxmem.experiments.finetune --memory omnimem --budget 512KiB --out runs/ft
python -m jaxmem.experiments.finetune --weights all --mode read --minutes 5 --seed 1 --out runs/all
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console

from jaxmem.decoder.program import Program
from jaxmem.experiments.finetune.config import FinetuneConfig, check
from jaxmem.experiments.finetune.loops import Drawn, draw, loops_of
from jaxmem.experiments.finetune.table import measured, table_of, types_of
from jaxmem.experiments.memories import read_options, split_options
from jaxmem.experiments.parsing import refusing, shown
from jaxmem.experiments.training_bar import training_bar
from jaxmem.models.base import Model
from jaxmem.models.scorer import with_scorer
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded, weights_of
from jaxmem.report.files import write_json
from jaxmem.training import lora
from jaxmem.training.answers import Example, encoded, objective
from jaxmem.training.batches import ahead
from jaxmem.training.differentiable import Mode, Selection
from jaxmem.training.optimizers import schedule
from jaxmem.training.runs import Folder, follow
from jaxmem.typing import Array, Params, PyTree


class Tuned(NamedTuple):
    """What a checkpoint holds."""

    trained: Params  # adapters, or the decoder
    optimizer: PyTree
    step: Array  # steps done


class Step(NamedTuple):
    """What a step says."""

    loss: Array
    accuracy: Array
    gradient: Array  # its norm, before it is clipped


class How(NamedTuple):
    """What a compiled step depends on; equal steps are compiled once."""

    mode: Mode
    selection: Selection
    segments: int | None
    rank: int  # 0: the whole decoder trains
    peak: float
    steps: int


def how_of(config: FinetuneConfig) -> How:
    """Return how a run's steps are made."""
    rank = 0 if config.weights == "all" else config.rank
    return How(config.mode, config.selection, config.segments, rank, config.peak, config.steps)


def params_of(how: How, base: Params, trained: Params) -> Params:
    """Return a model's weights from what is trained."""
    if how.rank:
        return lora.merge(base, trained, alpha=2 * how.rank)
    return {**base, "decoder": trained}


def begin(config: FinetuneConfig, model: Model) -> Tuned:
    """Return the state before the first step."""
    how, trained = how_of(config), model.params["decoder"]
    if how.rank:
        trained = lora.init(model.params, jax.random.key(config.seed), rank=how.rank)
    # A step donates its state, and the model stays.
    trained = jax.tree.map(jnp.copy, trained)
    return Tuned(trained, _optimizer(how).init(trained), jnp.zeros((), jnp.int32))


def _optimizer(how: How) -> optax.GradientTransformation:
    rate = schedule(how.peak, how.steps, warmup=how.steps, flat=0.0)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))


@functools.partial(jax.jit, static_argnames=("program", "how"), donate_argnames="state")
def _step(
    state: Tuned, base: Params, example: Example, *, program: Program, how: How
) -> tuple[Tuned, Step]:
    """Return the state after a step of the optimizer, and what the step says."""
    more = {"mode": how.mode, "selection": how.selection, "segments": how.segments}
    answer = objective(program, **more)
    batch = example._replace(inputs=encoded(program, base, example.inputs))
    loss = lambda trained: answer(params_of(how, base, trained), batch)
    (_, found), slope = jax.value_and_grad(loss, has_aux=True)(state.trained)
    change, moments = _optimizer(how).update(slope, state.optimizer, state.trained)
    trained = optax.apply_updates(state.trained, change)
    metrics = Step(found.loss, found.accuracy, optax.tree.norm(slope))
    return Tuned(trained, moments, state.step + 1), metrics


def finetune(config: FinetuneConfig, console: Console) -> list[dict[str, Any]]:
    """Train, write what was trained, and measure it; return the rows of the table.

    Raises:
      ValueError: for options that make no sense, a memory that cannot be trained through, a folder
        that holds another run, or a loss that is not finite.
    """
    check(config)
    model = embedded(config.base)
    model = model if config.scorer is None else with_scorer(model, config.scorer)
    loops, how = loops_of(config, model), how_of(config)
    if not loops.one_for_all and len(set(config.shares)) > 1:
        console.print(f"{config.memory}: a program is compiled for each of --shares", markup=False)
    base, name = lora.digest(model.params), model.name

    def update(state: Tuned, drawn: Drawn) -> tuple[Tuned, Step]:
        more = {"program": loops.programs[drawn.which], "how": how}
        return _step(state, model.params, drawn.example, **more)

    def saved(state: Tuned) -> None:
        if config.weights == "adapter":
            more = {"base": base, "alpha": 2.0 * config.rank, "name": name}
            lora.save(config.out / "adapter.safetensors", state.trained, **more)
        sizes = tiny.load(weights_of(config.base))[1]
        params = params_of(how, model.params, state.trained)
        tiny.save(config.out / f"{tiny.name_of(sizes)}.safetensors", params, sizes)

    with training_bar("fine-tuning", config.steps, console, memory=0.9) as report:
        state = follow(
            begin(config, model),
            update,
            functools.partial(ahead, functools.partial(draw, config, model, loops)),
            config.steps,
            Folder(config.out, config.save_every, config.resume, config.other_recipe),
            recipe=config.recipe(base),
            minutes=config.minutes,
            report=report,
            saved=saved,
        )
    console.print(f"written to {config.out}: {int(state.step)} steps", markup=False)
    if not config.test_seconds:
        return []
    after = model._replace(params=params_of(how, model.params, state.trained))
    rows = []
    with console.status("measuring on held-out streams"):
        for row in measured(config, model, after):
            rows.append(row)
            write_json(config.out / "table.json", {"steps": int(state.step), "rows": rows})
    console.print(table_of(rows))
    console.print(types_of(rows[0]))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune; return the exit status (0, or 2 for bad arguments)."""
    return refusing(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    rest, words = split_options(argv)
    config = tyro.cli(FinetuneConfig, args=rest, **shown("finetune", __doc__))
    finetune(replace(config, options=read_options(words, {})), Console())


if __name__ == "__main__":
    raise SystemExit(main())
