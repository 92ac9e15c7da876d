"""Calibrate OmniMem's budgets on videos: AVBA signals -> a budget table as JSON.

    python -m jaxmem.experiments.calibrate --average 64 --out table.json
    python -m jaxmem.experiments.calibrate --video a.mp4 --video b.mp4 --average 64

    python -m jaxmem.experiments.calibrate --model DIR --video a.mp4 --average 4096

Without videos the embedded model is calibrated on streams of its own world (validation split). The
table is used with `python -m jaxmem.experiments.stream --omnimem.table table.json`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxmem.data.media.prefetch import prefetch
from jaxmem.data.world.files import held_out
from jaxmem.experiments.parsing import refusing, shown
from jaxmem.memory.base import Memory, State
from jaxmem.memory.omnimem import avba, budgets
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.models.base import Model
from jaxmem.models.load import load
from jaxmem.session import Session


@dataclass(frozen=True)
class CalibrateConfig:
    """What to calibrate on and how to allocate."""

    model: str = "tiny"  # the embedded one; else a checkpoint directory, or organisation/name
    # Calibration videos; none: streams of the embedded model's own world.
    video: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    average: float = 64.0  # slots per layer, audio and vision together, averaged over layers
    # r, the prior of visual to audio slots. The released models use 5; where audio matters as much
    # as vision, use 1.
    ratio: float = 1.0
    temperature: float = 0.2  # T of the softmax over layers; larger is more even
    low: float = 0.25  # smallest cap in units of the average (audio: of average / ratio)
    high: float = 2.0  # largest cap in the same units
    uniform: int = 0  # slots per layer of the joint cap while recording; 0: the average
    skip: int = 5  # first chunks of every video that are not recorded
    chunk_seconds: int = 4  # per chunk
    streams: int = 6  # how many synthetic streams, without videos
    seconds: int = 64  # their length
    published: bool = False  # C without the square root, as the paper prints it
    out: Path = Path("budget_table.json")  # where the table is written


def record(model: Model, memory: Memory, video: Path, chunk_seconds: int) -> State:
    """Stream one video and return the recorder's final state."""
    session = Session(model, memory, chunk_pieces=chunk_seconds)
    with session.open(video) as reader, prefetch(reader) as pieces:
        session.watch(pieces)
    return jax.tree.map(np.asarray, session.carry.state)


@contextmanager
def calibration_videos(config: CalibrateConfig) -> Iterator[list[Path]]:
    """Yield the videos to calibrate on; synthetic ones live in a folder that is removed."""
    if config.video:
        yield list(config.video)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield [
            held_out(i, config.seconds, Path(folder) / str(i), split="validation", count=1)[0]
            for i in range(config.streams)
        ]


def calibrate(config: CalibrateConfig) -> tuple[avba.Profile, np.ndarray]:
    """Return the profile and the budget table [L, 2] of (audio, visual) caps.

    Raises:
      ValueError: if a video does not open, or holds too little of one modality.
    """
    if config.model != "tiny" and not config.video:
        raise ValueError(f"--model {config.model} needs --video FILE: the streams that are made "
                         "without are the embedded model's own.")  # fmt: skip
    uniform = config.uniform or max(1, round(config.average))
    model = load(config.model)
    memory = avba.Recorder(OmniMem(uniform, audio_share=None), skip=config.skip)
    with calibration_videos(config) as videos:
        states = [
            record(model, memory, video, config.chunk_seconds)
            for video in track(videos, "calibrating", console=Console(stderr=True), transient=True)
        ]
    profile = avba.profile_of(avba.signals_of(states), root=not config.published)
    table = avba.table(
        profile,
        average=config.average,
        temperature=config.temperature,
        ratio=config.ratio,
        low=config.low,
        high=config.high,
    )
    return profile, table


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate and write the table; return the exit status (0, or 2 for bad arguments)."""
    config = tyro.cli(CalibrateConfig, args=argv, **shown("calibrate", __doc__))
    return refusing(lambda: _run(config))


def _run(config: CalibrateConfig) -> None:
    profile, table = calibrate(config)
    made = {
        "model": config.model,
        "videos": [video.name for video in config.video] or f"{config.streams} synthetic streams",
        "average": config.average,
        "ratio": config.ratio,
        "temperature": config.temperature,
        "clips": [config.low, config.high],
        "root": not config.published,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    budgets.save_table(config.out, table, made)
    shown = Table(title=f"AVBA, {config.average:g} slots per layer on average")
    for column in ("layer", "C - max C", "C_v / C_a", "audio", "visual", "both"):
        shown.add_column(column, justify="right")
    for l, (audio, visual) in enumerate(table):
        caps = (str(int(n)) for n in (audio, visual, audio + visual))
        shown.add_row(str(l), f"{profile.delta[l]:.3f}", f"{profile.rho[l]:.3f}", *caps)
    Console().print(shown)
    Console().print(f"written to {config.out}")


if __name__ == "__main__":
    sys.exit(main())
