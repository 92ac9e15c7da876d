"""Figures that the documents quote, each a command that prints ratios of one run.

python -m jaxmem.experiments.benchmark constancy            # 10 hours, about a minute
python -m jaxmem.experiments.benchmark constancy --video world   # the same with real decoding
python -m jaxmem.experiments.benchmark bytes                # bytes of every memory, 7B
python -m jaxmem.experiments.benchmark session              # a second session of equal memories
python -m jaxmem.experiments.benchmark streams              # many live streams at once
python -m jaxmem.experiments.benchmark step                 # the chunk step, and what it copies
python -m jaxmem.experiments.benchmark step --against transformers,kvpress   # extra parity
python -m jaxmem.experiments.benchmark kernels              # operations against naive ones, minutes
python -m jaxmem.experiments.benchmark price --model qwen2.5-vl:7b   # what a stream costs a GPU
python -m jaxmem.experiments.benchmark remat                # gradient checkpointing, minutes
python -m jaxmem.experiments.benchmark faults               # 1,000 damaged files, minutes
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console, RenderableType
from rich.progress import Progress

from jaxmem.data.world.files import held_out
from jaxmem.experiments.benchmark.constancy import Constancy, constancy_table, measure
from jaxmem.experiments.benchmark.faults import Faults, FaultsConfig, faults_table, run_faults
from jaxmem.experiments.benchmark.faults_record import write_record
from jaxmem.experiments.benchmark.footprints import BytesConfig, footprint_table, footprints
from jaxmem.experiments.benchmark.kernels import KernelsConfig, measure_kernels
from jaxmem.experiments.benchmark.price import PriceConfig, price
from jaxmem.experiments.benchmark.price_table import price_tables
from jaxmem.experiments.benchmark.price_train import price_train, train_tables
from jaxmem.experiments.benchmark.remat import RematConfig, measure_remat
from jaxmem.experiments.benchmark.second_session import (
    SessionConfig,
    measure_sessions,
    sessions_table,
)
from jaxmem.experiments.benchmark.soak import Soak, soak, soak_table
from jaxmem.experiments.benchmark.step import StepConfig, measure_steps, steps_table
from jaxmem.experiments.benchmark.step_against import against_table, measure_against
from jaxmem.experiments.benchmark.step_fit import fits_table, measure_fits
from jaxmem.experiments.benchmark.step_model import model_of, use_threads
from jaxmem.experiments.benchmark.step_questions import measure_questions, questions_table
from jaxmem.experiments.benchmark.streams import StreamsConfig, measure_streams, streams_table
from jaxmem.experiments.memories import MemoryOptions, read_options, split_options
from jaxmem.experiments.parsing import refusing, shown
from jaxmem.memory.by_name import contestants, parse_budget, parse_names
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec


@dataclass(frozen=True)
class ConstancyConfig:
    """Stream hours of synthetic tokens and compare the end with minute 10."""

    # Decode this file again and again instead (`world`: a synthetic minute), for what leaks.
    video: str | None = None
    hours: float = 10.0  # length of the stream
    early_minute: float = 10.0  # the moment to compare with
    weights: Path | None = None  # of a model like the embedded one; None: the embedded one
    memory: str = "omnimem"  # its name; set it with --NAME.OPTION and --bank.OPTION
    budget: str = "64"  # slots per layer, or bytes over all layers (64KiB)
    # Tokens per layer of `full`, and of banks of rekv and flexmem whose options do not say.
    capacity: int = 4096
    chunk_seconds: int = 1  # written at once
    pairs: int = 300  # how often both moments are timed, in turn
    json: bool = False  # print JSON instead of a table
    bits: Literal[4, 8] | None = None  # store keys and values in so many bits
    memories: MemoryOptions = field(default_factory=dict)


def machine() -> dict[str, str]:
    """Return what a figure was measured with."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def constancy(config: ConstancyConfig) -> Constancy | Soak:
    """Run the proof of constancy with a progress bar on standard error.

    Raises:
      ValueError: if the memory is unknown, does not fit its budget or its options do not fit.
    """
    model = embedded(config.weights)
    spec = model_spec(model, config.chunk_seconds)
    names = parse_names(config.memory)
    if len(names) > 1:
        raise ValueError(f"constancy is of one memory, got --memory {config.memory}.")
    budget, more = parse_budget(config.budget), {"presets": model.presets, "bits": config.bits}
    (chosen,) = contestants(names, config.memories, budget, spec, config.capacity, **more)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"streaming {config.hours:g} hours", total=1.0)
        same: dict[str, Any] = {"hours": config.hours, "early_minute": config.early_minute}
        same["progress"] = lambda done: bar.update(task, completed=done)
        if config.video is None:
            return measure(model, chosen, spec, pairs=config.pairs, **same)
        with TemporaryDirectory() as folder:
            path = Path(config.video)
            if config.video == "world":
                path = held_out(0, 60, Path(folder), count=0)[0]
            return soak(model, chosen, path, chunk_pieces=config.chunk_seconds, **same)


def faults(config: FaultsConfig) -> Faults:
    """Stream damaged files with a progress bar on standard error, and record what came of it.

    Raises:
      ValueError: if a number makes no sense, or there are no clips.
    """
    begin = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("streaming damaged files", total=config.files)
        found = run_faults(config, lambda: bar.advance(task))
    if config.record is not None:
        wall = time.perf_counter() - begin
        write_record(config.record, asdict(config) | machine(), machine() | asdict(found), wall)
    return found


def step(config: StepConfig) -> tuple[dict[str, Any], RenderableType]:
    """Time the chunk step, alone, in turn with others or over many sizes; or several questions.

    Raises:
      ValueError: if options make no sense, or a package is missing.
    """
    if (config.against is not None) + config.fit + (config.questions is not None) > 1:
        raise ValueError("--against, --fit and --questions are measurements: give one of them.")
    use_threads(config.threads)
    model = model_of(config.model)
    if config.against is not None:
        found = measure_against(config, model)
        key, table = "against", against_table(config, found, model.weights)
    elif config.fit:
        found = measure_fits(config, model)
        key, table = "fits", fits_table(config, found, model.weights)
    elif config.questions is not None:
        found = measure_questions(config, model)
        key, table = "questions", questions_table(config, found, model.weights)
    else:
        found = measure_steps(config, model)
        key, table = "steps", steps_table(config, found, model.weights)
    return {"weights": model.weights, key: as_data(found)}, table


def as_data(x: Any) -> Any:
    """Return nested named tuples as dicts, for JSON."""
    if hasattr(x, "_asdict"):
        return {key: as_data(value) for key, value in x._asdict().items()}
    return [as_data(one) for one in x] if isinstance(x, list | tuple) else x


Command = (
    Annotated[ConstancyConfig, tyro.conf.subcommand("constancy")]
    | Annotated[BytesConfig, tyro.conf.subcommand("bytes")]
    | Annotated[SessionConfig, tyro.conf.subcommand("session")]
    | Annotated[StreamsConfig, tyro.conf.subcommand("streams")]
    | Annotated[StepConfig, tyro.conf.subcommand("step")]
    | Annotated[KernelsConfig, tyro.conf.subcommand("kernels")]
    | Annotated[PriceConfig, tyro.conf.subcommand("price")]
    | Annotated[RematConfig, tyro.conf.subcommand("remat")]
    | Annotated[FaultsConfig, tyro.conf.subcommand("faults")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; return the exit status (0, or 2 for bad arguments)."""
    return refusing(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    rest, words = split_options(argv)
    config = tyro.cli(Command, args=rest, **shown("benchmark", __doc__))  # type: ignore[arg-type]
    if words and not hasattr(config, "memories"):
        raise ValueError(f"--{min(words)}.* has no effect on this benchmark.")
    if words:
        config = replace(config, memories=read_options(words, {}))
    if isinstance(config, KernelsConfig):
        measure_kernels(config, machine())
        return
    if isinstance(config, ConstancyConfig):
        result = constancy(config)
        table = soak_table(result) if isinstance(result, Soak) else constancy_table(result)
        data = asdict(result)
    elif isinstance(config, FaultsConfig):
        damaged = faults(config)
        data, table = asdict(damaged), faults_table(damaged)
    elif isinstance(config, PriceConfig) and config.train:
        needed = price_train(config)
        data, table = asdict(needed), train_tables(needed)
    elif isinstance(config, PriceConfig):
        cost = price(config)
        data, table = asdict(cost), price_tables(cost)
    elif isinstance(config, StepConfig):
        data, table = step(config)
    elif isinstance(config, RematConfig):
        data, table = measure_remat(config)
    elif isinstance(config, SessionConfig):
        result = measure_sessions(config)
        data = {name: [start._asdict() for start in both] for name, both in result.items()}
        table = sessions_table(result)
    elif isinstance(config, StreamsConfig):
        together = measure_streams(config)
        data, table = asdict(together), streams_table(together)
    else:
        data = footprints(config)
        table = footprint_table(config, data)
    if config.json:
        print(json.dumps({"benchmark": type(config).__name__, **machine(), **data}))
    else:
        Console().print(table)
        Console().print(", ".join(f"{k} {v}" for k, v in machine().items()), style="dim")


if __name__ == "__main__":
    sys.exit(main())
