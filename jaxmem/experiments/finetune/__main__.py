"""Fine-tune the embedded model with a memory in the loop: adapters or all weights of its decoder.

python -m jaxmem.experiments.finetune --memory omnimem --budget 512KiB --out runs/ft
python -m jaxmem.experiments.finetune --weights all --mode read --minutes 5 --seed 1 --out runs/all
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxmem.experiments.finetune.config import FinetuneConfig, check
from jaxmem.experiments.finetune.loops import Drawn, Loops, draw, loops_of
from jaxmem.experiments.finetune.table import measured, table_of, types_of
from jaxmem.experiments.memories import read_options, split_options
from jaxmem.experiments.parsing import refusing
from jaxmem.models.base import Model
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded, weights_of
from jaxmem.report.files import write_json
from jaxmem.training import lora
from jaxmem.training.answers import encoded, objective
from jaxmem.training.batches import ahead
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


def params_of(config: FinetuneConfig, base: Params, trained: Params) -> Params:
    """Return a model's weights from what is trained."""
    if config.weights == "all":
        return {**base, "decoder": trained}
    return lora.merge(base, trained, alpha=2 * config.rank)


def begin(config: FinetuneConfig, model: Model) -> Tuned:
    """Return the state before the first step."""
    key = jax.random.key(config.seed)
    trained = model.params["decoder"]
    if config.weights == "adapter":
        trained = lora.init(model.params, key, rank=config.rank)
    return Tuned(trained, _optimizer(config).init(trained), jnp.zeros((), jnp.int32))


def _optimizer(config: FinetuneConfig) -> optax.GradientTransformation:
    rate = schedule(config.peak, config.steps, warmup=config.steps, flat=0.0)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))


def update_of(
    config: FinetuneConfig, model: Model, loops: Loops
) -> Callable[[Tuned, Drawn], tuple[Tuned, Step]]:
    """Return a step of the run: one compiled function for every program."""
    optimize = _optimizer(config).update

    @functools.partial(jax.jit, static_argnames="which", donate_argnames="state")
    def step(state: Tuned, base: Params, example: Any, *, which: int) -> tuple[Tuned, Step]:
        program = loops.programs[which]
        answer = objective(program, mode=config.mode, segments=config.segments)
        batch = example._replace(inputs=encoded(program, base, example.inputs))
        loss = lambda trained: answer(params_of(config, base, trained), batch)
        (_, found), slope = jax.value_and_grad(loss, has_aux=True)(state.trained)
        change, moments = optimize(slope, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, change)
        metrics = Step(found.loss, found.accuracy, optax.global_norm(slope))
        return Tuned(trained, moments, state.step + 1), metrics

    return lambda state, drawn: step(state, model.params, drawn.example, which=drawn.which)


def finetune(config: FinetuneConfig, console: Console) -> list[dict[str, Any]]:
    """Train, write what was trained, and measure it; return the rows of the table.

    Raises:
      ValueError: for options that make no sense, a memory that cannot be trained through, a folder
        that holds another run, or a loss that is not finite.
    """
    check(config)
    model = embedded(config.base)
    loops = loops_of(config, model)
    base, name = lora.digest(model.params), model.name

    def saved(state: Tuned) -> None:
        if config.weights == "adapter":
            more = {"base": base, "alpha": 2.0 * config.rank, "name": name}
            lora.save(config.out / "adapter.safetensors", state.trained, **more)
        sizes = tiny.load(weights_of(config.base))[1]
        params = params_of(config, model.params, state.trained)
        tiny.save(config.out / f"{tiny.name_of(sizes)}.safetensors", params, sizes)

    columns = [TextColumn("fine-tuning"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("loss {task.fields[loss]:.3f} accuracy {task.fields[accuracy]:.3f}")]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("steps", total=config.steps, loss=float("nan"), accuracy=0.0)
        smooth: dict[str, float] = {}

        def report(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                smooth[name] = 0.9 * smooth.get(name, value) + 0.1 * value
            progress.update(task, completed=step, loss=smooth["loss"], accuracy=smooth["accuracy"])

        state = follow(
            begin(config, model),
            update_of(config, model, loops),
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
    after = model._replace(params=params_of(config, model.params, state.trained))
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
    config = tyro.cli(FinetuneConfig, args=rest, description=__doc__)
    finetune(replace(config, options=read_options(words, {})), Console())


if __name__ == "__main__":
    raise SystemExit(main())
