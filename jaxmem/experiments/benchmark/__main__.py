"""Figures that the documents quote, each a command that prints ratios of one run.

python -m jaxmem.experiments.benchmark constancy            # 10 hours, about a minute
python -m jaxmem.experiments.benchmark sketch               # kept sets, sketch against full
python -m jaxmem.experiments.benchmark layout               # bytes of per-layer budgets
python -m jaxmem.experiments.benchmark bytes                # bytes of every memory, 7B
python -m jaxmem.experiments.benchmark kernels              # operations against naive ones, minutes
python -m jaxmem.experiments.benchmark price --model qwen2.5-vl:7b   # what a stream costs a GPU
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxmem.experiments.benchmark.constancy import Constancy, measure
from jaxmem.experiments.benchmark.footprints import BytesConfig, footprint_table, footprints
from jaxmem.experiments.benchmark.kernels import KernelsConfig, measure_kernels
from jaxmem.experiments.benchmark.price import PriceConfig, price
from jaxmem.experiments.benchmark.price_table import price_tables
from jaxmem.experiments.benchmark.sketch import agreements
from jaxmem.experiments.memories import Memories, choose, parse_budget, parse_names
from jaxmem.memory.base import Spec, nbytes
from jaxmem.memory.layout import layout_of
from jaxmem.memory.omnimem import avba
from jaxmem.memory.omnimem.omnimem import omnimem
from jaxmem.models.tiny.embedded import embedded
from jaxmem.session import model_spec


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
      options: of the memories and of the bank behind them.
    """

    hours: float = 10.0
    early_minute: float = 10.0
    memory: str = "omnimem"
    budget: str = "64"
    capacity: int = 4096
    chunk_seconds: int = 1
    pairs: int = 300
    json: bool = False
    options: Annotated[Memories, tyro.conf.arg(name="")] = field(default_factory=Memories)


@dataclass(frozen=True)
class LayoutConfig:
    """Bytes at rest of the shipped 8B budget table: flat pool against padded layers.

    Attributes:
      average: slots per layer.
      json: print JSON instead of a table.
    """

    average: int = 8192
    json: bool = False


@dataclass(frozen=True)
class SketchConfig:
    """Agreement (Jaccard) of the sets that OmniMem keeps with sketched and whole vectors.

    Attributes:
      widths: model widths E.
      sketch: numbers per slot.
      tokens: length of the stream; a quarter of it is kept, in chunks of an eighth.
      json: print JSON instead of a table.
    """

    widths: tuple[int, ...] = (1024, 4096)
    sketch: tuple[int, ...] = (64, 128)
    tokens: int = 2048
    json: bool = False


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
    spec = model_spec(model, config.chunk_seconds * model.tokens_per_piece)
    names = parse_names(config.memory)
    if len(names) > 1:
        raise ValueError(f"constancy is of one memory, got --memory {config.memory}.")
    budget, rope = parse_budget(config.budget), model.decoder.rope
    (chosen,) = choose(names, config.options, budget, spec, rope, config.capacity, model)
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"streaming {config.hours:g} hours", total=1.0)
        result = measure(
            model,
            chosen,
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


def layouts(config: LayoutConfig) -> dict[str, float]:
    """Return slots and bytes of the 8B table at rest, against layers padded to the largest."""
    caps = avba.table(avba.profile("salmonn-8b"), average=config.average)
    spec = Spec(
        layers=len(caps), kv_heads=8, heads=32, head_dim=128, width=4096, axes=3, dtype=jnp.bfloat16
    )
    memory = omnimem(caps, text=0)
    layout = layout_of(memory, spec)
    held = nbytes(memory, spec)
    per_slot = held / layout.size
    windows = sum((run.stop - run.first) * run.window for run in layout.runs)
    return {
        "layers": len(caps),
        "slots": layout.size,
        "slots_over_sum_of_caps": layout.size / int(caps.sum()),
        "padded_over_sum_of_caps": len(caps) * max(layout.rooms) / int(caps.sum()),
        "runs": len(layout.runs),
        "attended_over_sum_of_caps": windows / int(caps.sum()),
        "bytes": held,
        "bytes_per_slot": per_slot,
    }


def sketches(config: SketchConfig) -> dict[str, float]:
    """Return the agreement of kept sets for every width and sketch."""
    pairs = agreements(
        config.widths,
        config.sketch,
        tokens=config.tokens,
        chunk=config.tokens // 8,
        budget=config.tokens // 4,
    )
    return dict(pairs)


Command = (
    Annotated[ConstancyConfig, tyro.conf.subcommand("constancy")]
    | Annotated[BytesConfig, tyro.conf.subcommand("bytes")]
    | Annotated[KernelsConfig, tyro.conf.subcommand("kernels")]
    | Annotated[LayoutConfig, tyro.conf.subcommand("layout")]
    | Annotated[PriceConfig, tyro.conf.subcommand("price")]
    | Annotated[SketchConfig, tyro.conf.subcommand("sketch")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; return the exit status."""
    config = tyro.cli(Command, args=argv, description=__doc__)  # type: ignore[arg-type]
    try:
        if isinstance(config, KernelsConfig):
            return measure_kernels(config, machine())
        if isinstance(config, ConstancyConfig):
            result = constancy(config)
            data, table = result.as_dict(), constancy_table(result)
        elif isinstance(config, PriceConfig):
            cost = price(config)
            data, table = cost.as_dict(), price_tables(cost)
        elif isinstance(config, BytesConfig):
            data = footprints(config)
            table = footprint_table(config, data)
        elif isinstance(config, LayoutConfig):
            data = layouts(config)
            table = plain_table("per-layer budgets at rest", data)
        else:
            data = sketches(config)
            table = plain_table("kept sets, sketch against whole vectors (Jaccard)", data)
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


def plain_table(title: str, data: dict[str, float]) -> Table:
    """Return numbers by name as a table."""
    table = Table(title=title)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in data.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    return table


if __name__ == "__main__":
    sys.exit(main())
