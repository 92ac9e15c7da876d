"""Figures that the documents quote, each a command that prints ratios of one run.

python -m jaxmem.experiments.benchmark constancy            # 10 hours, about a minute
python -m jaxmem.experiments.benchmark bytes                # bytes of every memory, 7B
python -m jaxmem.experiments.benchmark kernels              # operations against naive ones, minutes
python -m jaxmem.experiments.benchmark price --model qwen2.5-vl:7b   # what a stream costs a GPU
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxmem.experiments.benchmark.constancy import Constancy, measure
from jaxmem.experiments.benchmark.footprints import BytesConfig, footprint_table, footprints
from jaxmem.experiments.benchmark.kernels import KernelsConfig, measure_kernels
from jaxmem.experiments.benchmark.price import PriceConfig, price
from jaxmem.experiments.benchmark.price_table import price_tables
from jaxmem.experiments.memories import read_options, split_options
from jaxmem.memory.by_name import contestants, parse_budget, parse_names
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec


@dataclass(frozen=True)
class ConstancyConfig:
    """Stream hours of synthetic tokens and compare the end with minute 10.

    Attributes:
      hours: length of the stream.
      early_minute: the moment to compare with.
      memory: name of the memory.
      budget: slots per layer, or bytes over all layers (64KiB).
      capacity: tokens per layer of `full`, and of the banks of rekv and flexmem where their own
        options do not say.
      chunk_seconds: seconds per chunk.
      pairs: how often both moments are timed, in turn.
      json: print JSON instead of a table.
      bits: store keys and values in so many bits.
      memories: options by name, as --NAME.OPTION and --bank.OPTION set them.
    """

    hours: float = 10.0
    early_minute: float = 10.0
    memory: str = "omnimem"
    budget: str = "64"
    capacity: int = 4096
    chunk_seconds: int = 1
    pairs: int = 300
    json: bool = False
    bits: Literal[4, 8] | None = None
    memories: Annotated[Mapping[str, Mapping[str, Any]], tyro.conf.Suppress] = field(
        default_factory=dict
    )


def machine() -> dict[str, str]:
    """Return what a figure was measured with."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def constancy(config: ConstancyConfig) -> Constancy:
    """Run the proof of constancy with a progress bar on standard error.

    Raises:
      ValueError: if the memory is unknown, does not fit its budget or its options do not fit.
    """
    model = embedded()
    spec = model_spec(model, config.chunk_seconds)
    names = parse_names(config.memory)
    if len(names) > 1:
        raise ValueError(f"constancy is of one memory, got --memory {config.memory}.")
    budget, more = parse_budget(config.budget), {"presets": model.presets, "bits": config.bits}
    (chosen,) = contestants(names, config.memories, budget, spec, config.capacity, **more)
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"streaming {config.hours:g} hours", total=1.0)
        result = measure(
            model,
            chosen,
            spec,
            hours=config.hours,
            early_minute=config.early_minute,
            pairs=config.pairs,
            progress=lambda done: bar.update(task, completed=done),
        )
    return result


def constancy_table(result: Constancy) -> Table:
    """Return the result as a table of early, late and their ratio."""
    table = Table(
        title=f"{result.memory}: {result.tokens:,} tokens, {result.hours:g} hours of stream"
    )
    for column in ("", f"minute {result.early_minute:g}", f"hour {result.hours:g}", "ratio"):
        table.add_column(column, justify="right")
    rows = (
        ("time per chunk, ms", result.chunk_ms, result.chunk_ratio),
        ("time to first token, ms", result.first_token_ms, result.first_token_ratio),
    )
    for name, (early, late), ratio in rows:
        table.add_row(name, f"{early:.3f}", f"{late:.3f}", f"{ratio:.3f}")
    for name, (early, late) in (
        ("bytes of the stream's state and bank", result.state_bytes),
        ("resident memory of the process, bytes", result.resident_bytes),
    ):
        table.add_row(name, f"{early:,}", f"{late:,}", f"{late / early:.4f}")
    table.add_row("programs compiled since", "", str(result.recompilations), "")
    return table


Command = (
    Annotated[ConstancyConfig, tyro.conf.subcommand("constancy")]
    | Annotated[BytesConfig, tyro.conf.subcommand("bytes")]
    | Annotated[KernelsConfig, tyro.conf.subcommand("kernels")]
    | Annotated[PriceConfig, tyro.conf.subcommand("price")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; return the exit status."""
    try:
        rest, words = split_options(sys.argv[1:] if argv is None else argv)
        config = tyro.cli(Command, args=rest, description=__doc__)  # type: ignore[arg-type]
        if words and not hasattr(config, "memories"):
            raise ValueError(f"--{min(words)}.* has no effect on this benchmark.")
        if words:
            config = replace(config, memories=read_options(words, {}))
        if isinstance(config, KernelsConfig):
            return measure_kernels(config, machine())
        if isinstance(config, ConstancyConfig):
            result = constancy(config)
            data, table = result.as_dict(), constancy_table(result)
        elif isinstance(config, PriceConfig):
            cost = price(config)
            data, table = cost.as_dict(), price_tables(cost)
        else:
            data = footprints(config)
            table = footprint_table(config, data)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record = {"benchmark": type(config).__name__, **machine(), **data}
    if config.json:
        print(json.dumps(record))
    else:
        Console().print(table)
        Console().print(", ".join(f"{k} {v}" for k, v in machine().items()), style="dim")
    return 0


if __name__ == "__main__":
    sys.exit(main())
