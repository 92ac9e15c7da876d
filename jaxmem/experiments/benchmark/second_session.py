"""What a second `Session` with an equal memory costs: it compiles nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from rich.table import Table

from jaxmem.experiments.memories import MemoryOptions
from jaxmem.memory.base import AnyMemory
from jaxmem.memory.by_name import Contestant, contestants, parse_budget, parse_names
from jaxmem.memory.options import NAMES
from jaxmem.models.base import Model
from jaxmem.models.tiny.embedded import embedded
from jaxmem.pieces import Preprocessor
from jaxmem.programs import model_spec
from jaxmem.report.compilations import count_compilations
from jaxmem.session import Session
from jaxmem.typing import PyTree


@dataclass(frozen=True)
class SessionConfig:
    """Start two sessions with equal memories and compare what they cost."""

    memory: str = ",".join(NAMES)  # names; set them with --NAME.OPTION and --bank.OPTION
    budget: str = "64"  # slots per layer, or bytes over all layers (64KiB)
    # Tokens per layer of `full`, and of banks of rekv and flexmem whose options do not say.
    capacity: int = 4096
    json: bool = False  # print JSON instead of a table
    memories: MemoryOptions = field(default_factory=dict)


class Start(NamedTuple):
    """What the start of a session cost."""

    seconds: float  # of `Session(...)`
    first_chunk: float  # seconds of the first `feed`
    compilations: int


class Noise(NamedTuple):
    """A piece of noise."""

    frames: np.ndarray
    samples: np.ndarray


def noise(model: Model, seed: int = 0) -> Noise:
    """Return a piece of noise in a model's format, which must have a size of frames."""
    media, rng = model.media, np.random.default_rng(seed)
    count = round(media.sample_rate * media.piece_seconds)
    assert isinstance(media.size, tuple)
    shape = (round(media.fps * media.piece_seconds), *media.size, 3)
    frames = rng.integers(0, 256, shape, np.uint8)
    return Noise(frames, rng.normal(0, 0.1, count).astype(np.float32))


def noise_chunk(model: Model, pieces: int = 1) -> PyTree:
    """Return the inputs of a chunk that holds a piece of noise so many times."""
    return Preprocessor(model, pieces)([noise(model)] * pieces)


def measure_sessions(config: SessionConfig) -> dict[str, tuple[Start, Start]]:
    """Return what the first and the second session of every memory cost, in this process.

    Raises:
      ValueError: if a memory is unknown, does not fit its budget or its options do not fit.
    """
    model, names = embedded(), parse_names(config.memory)
    spec, budget = model_spec(model, 1), parse_budget(config.budget)

    def chosen() -> list[Contestant]:
        options, presets = config.memories, model.presets
        return contestants(names, options, budget, spec, config.capacity, presets=presets)

    pairs = zip(chosen(), chosen(), strict=True)
    return {a.name: (_begin(model, a.memory), _begin(model, b.memory)) for a, b in pairs}


def _begin(model: Model, memory: AnyMemory) -> Start:
    """Start a session, feed it one piece, and tell what both took."""
    piece = noise(model)
    with count_compilations() as counted:
        begin = time.perf_counter()
        session = Session(model, memory)
        ready = time.perf_counter()
        session.feed(piece)
        jax.block_until_ready(session.carry)
    return Start(ready - begin, time.perf_counter() - ready, counted.count)


def sessions_table(result: dict[str, tuple[Start, Start]]) -> Table:
    """Return a line for every memory: both sessions, and what the second one saves."""
    table = Table(title="A second session with an equal memory")
    for column in ("memory", "first", "second", "its first chunk", "second / first", "compiled"):
        table.add_column(column, justify="left" if column == "memory" else "right")
    for name, (first, second) in result.items():
        whole = [start.seconds + start.first_chunk for start in (first, second)]
        table.add_row(
            name,
            f"{whole[0]:.2f} s",
            f"{whole[1]:.3f} s",
            f"{second.first_chunk:.3f} s",
            f"{whole[1] / whole[0]:.3f}",
            str(second.compilations),
        )
    return table
