"""Train the embedded model from nothing, or measure it.

python -m jaxmem.experiments.train --out runs/tiny
python -m jaxmem.experiments.train --evaluate --weights runs/tiny/tiny.safetensors
python -m jaxmem.experiments.train --mixer mamba2 --attend none --out runs/tiny-mamba2
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from jaxmem.experiments.parsing import read, refusing, shown
from jaxmem.experiments.stream.config import try_folder
from jaxmem.experiments.training_bar import training_bar
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import weights_of
from jaxmem.report.results import Accuracy
from jaxmem.training.evaluation import evaluate
from jaxmem.training.loop import TrainConfig, scaled, train
from jaxmem.training.optimizers import Name


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the embedded model from nothing, or measure it."""

    # Python file whose `get_config()` makes a `TrainConfig`. Default: the shipped recipe.
    config: Path | None = None
    out: Path = Path("runs/tiny")  # Folder for checkpoints, metrics and weights.
    # Layers with a state in place of attention: mamba2, gated_delta, linear, mom or
    # titans. As many weights as without. Default: all layers attend.
    mixer: str | None = None
    # With --mixer: which layers attend. Default: none.
    attend: Literal["none", "one_in_four"] | None = None
    seed: int | None = None  # Seed of weights and data. Default: the config's.
    # What updates the matrices of the layers, docs/training.md. Default: the config's (muon).
    optimizer: Name | None = None
    rank: int | None = None  # Of the moments of galore and apollo. Default: the config's (16).
    # Factor on the steps of every stage, e.g. 0.01 to try the machinery.
    steps_scale: float = 1.0
    resume: bool = False  # Continue the run in `out`.
    evaluate: bool = False  # Do not train: measure weights on the test split.
    weights: Path | None = None  # To measure. Default: those that come with the package.
    seconds: tuple[int, ...] = (64, 128, 256)  # Lengths of the test streams.
    questions: int = 2000  # Per length.
    difficulty: str = "standard"  # Level of the test streams.


def _config(options: Options) -> TrainConfig:
    """Return the run that options ask for."""
    config = TrainConfig() if options.config is None else read(TrainConfig, options.config)
    given = {name: getattr(options, name) for name in ("seed", "optimizer", "rank")}
    config = dataclasses.replace(config, **{k: v for k, v in given.items() if v is not None})
    if options.rank is not None and config.optimizer not in ("galore", "apollo"):
        raise ValueError(f"--rank has no effect with {config.optimizer}: give --optimizer apollo.")
    if options.mixer is not None:
        made = tiny.sized(options.mixer, options.attend or "none", config.model)
        config = dataclasses.replace(config, model=made)
    elif options.attend is not None:
        raise ValueError(f"--attend {options.attend} has no effect without --mixer; leave it out.")
    return scaled(config, options.steps_scale)


def _refuse_idle(options: Options) -> None:
    """Refuse options of the other half of this command, which would have no effect.

    Raises:
      ValueError: naming one of them.
    """
    training = ("config", "mixer", "attend", "seed", "optimizer", "rank", "steps_scale", "resume")
    usual, idle = Options(), training if options.evaluate else ("weights",)
    for name in idle:
        if getattr(options, name) != getattr(usual, name):
            how = "with" if options.evaluate else "without"
            word = name.replace("_", "-")
            raise ValueError(f"--{word} has no effect {how} --evaluate; leave it out.")
    if options.questions < 1 or not options.seconds or min(options.seconds) < 1:
        raise ValueError(
            "--questions and --seconds are at least 1, got "
            f"{options.questions} and {', '.join(map(str, options.seconds)) or 'none'}."
        )


def _train(options: Options, console: Console) -> None:
    config = _config(options)
    try_folder("out", options.out)
    with training_bar("training", config.steps, console, memory=0.95) as report:
        train(config, options.out, options.resume, report)
    console.print(f"weights: {options.out / tiny.name_of(config.model)}.safetensors")


def _table(scores: dict[int, dict[str, Accuracy]]) -> Table:
    table = Table(
        "questions", *(f"{s} s" for s in scores), title="right answers, % (95 % interval)"
    )
    for name in next(iter(scores.values())):
        row = (column[name] for column in scores.values())
        cells = (
            f"{100 * s.share:.1f} ({100 * s.low:.1f} to {100 * s.high:.1f}) n={s.asked}"
            for s in row
        )
        table.add_row(name, *cells)
    return table


def _evaluate(options: Options, console: Console) -> None:
    params, config = tiny.load(weights_of(options.weights))
    scores = {
        seconds: evaluate(params, config, seconds, options.questions, options.difficulty)
        for seconds in options.seconds
    }
    console.print(_table(scores))


def main(argv: Sequence[str] | None = None) -> int:
    """Train or measure; return the exit status (0, or 2 for bad arguments)."""
    options = tyro.cli(Options, args=argv, **shown("train", __doc__))
    return refusing(lambda: _run(options))


def _run(options: Options) -> None:
    _refuse_idle(options)
    (_evaluate if options.evaluate else _train)(options, Console())


if __name__ == "__main__":
    raise SystemExit(main())
