"""Options of `evaluate recall`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxmem.experiments.evaluate.recall_streams import StreamsConfig
from jaxmem.memory.options import NAMES


@dataclass(frozen=True)
class RecallConfig(StreamsConfig):
    """Right answers of the embedded model with every memory, at equal device bytes."""

    # Names, comma-separated; `full` is the reference and has no budget.
    memories: str = ",".join(NAMES)
    # Further models, whose layers have states: MODEL, or MODEL+MEMORY where some of them attend.
    # Names or files as for --weights, comma-separated. A state is its own budget.
    states: str = ""
    # Bytes of the state over all layers, from starving to ample.
    budgets: tuple[str, ...] = ("32KiB", "128KiB", "512KiB", "2MiB")
    seconds: tuple[int, ...] = (64, 128, 256)  # Lengths of the streams.
    timed: str = "512KiB"  # Budget at which times are measured (longest streams); empty: none.
    measured_only: bool = False  # Measure nothing: tables and plots of the cells that are there.
    # Folder of cells (one file each: a stopped run goes on where it was), tables and plots.
    out: Path = Path("out/recall")
    bits: Literal[4, 8] | None = None  # Store keys and values in so many bits.
