"""Hours of real decoding: a file looped at full speed leaks no memory, thread or file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from jaxmem.data.media.prefetch import prefetch
from jaxmem.data.media.types import Piece
from jaxmem.experiments.benchmark.constancy import check_longer, resident
from jaxmem.experiments.stream.segments import segments
from jaxmem.memory.by_name import Contestant
from jaxmem.models.base import Model
from jaxmem.report.compilations import count_compilations
from jaxmem.session import Session

SEGMENT = 8
"""Chunks that are fed at once."""
QUESTION_EVERY = 600
"""Seconds of stream between two questions."""


class Held(NamedTuple):
    """What a process holds at a moment of the stream."""

    hour: float
    resident_bytes: int
    threads: int  # those of libraries included, where the system says
    descriptors: int  # open files; 0 where the system does not say


@dataclass(frozen=True)
class Soak:
    """What a process held at an early moment, at every hour, and at the end."""

    memory: str
    hours: float
    loops: int  # of the file
    wall_seconds: float
    moments: tuple[Held, ...]
    resident_growth: float  # end / early - 1
    recompilations: int  # programs compiled after the early moment


def holds(hour: float) -> Held:
    """Return what this process holds now."""
    mine = Path("/proc/self")
    files = len(os.listdir(mine / "fd")) if mine.exists() else 0
    threads = len(os.listdir(mine / "task")) if mine.exists() else threading.active_count()
    return Held(hour, resident(), threads, files)


def looped(session: Session, path: Path, count: Callable[[], None]) -> Iterator[Piece]:
    """Yield pieces of a file that is read again and again; `count` is called each time."""
    each, number = session.model.media.piece_seconds, 0
    while True:
        count()
        with session.open(path) as reader:
            for piece in reader:
                yield Piece(number * each, *piece[1:5], valid_seconds=each)
                number += 1


def soak(
    model: Model,
    chosen: Contestant,
    path: Path,
    *,
    hours: float = 10.0,
    early_minute: float = 10.0,
    chunk_pieces: int = 1,
    progress: Callable[[float], None] = lambda done: None,
) -> Soak:
    """Stream a file again and again through decoder, encoders and memory, asking on the way.

    Args:
      model: that streams.
      chosen: memory.
      path: of the file.
      hours: of stream.
      early_minute: when what the end is compared with is noted.
      chunk_pieces: pieces that are written at once.
      progress: called with the share that is done.

    Raises:
      ValueError: if the stream is not longer than `early_minute`, or the file does not open.
    """
    seconds, early = hours * 3600, early_minute * 60
    check_longer(seconds, early, hours, early_minute)
    session, loops = Session(model, chosen.memory, chunk_pieces=chunk_pieces), []
    moments: list[Held] = []
    begin, asked, compiled = time.perf_counter(), 0.0, 0
    pieces = looped(session, path, lambda: loops.append(None))
    more = {"chunk_pieces": chunk_pieces, "chunks": SEGMENT, "times": ()}
    segmented = segments(pieces, session.model, **more)
    with count_compilations() as counted, prefetch(segmented) as ahead:
        for segment in ahead:
            if segment.inputs is not None:
                session.write(segment.inputs, segment.heard)
            if not asked or segment.time >= asked + QUESTION_EVERY:
                asked = segment.time
                session.ask(model.probes[0])
            if segment.time >= min(early if not moments else len(moments) * 3600, seconds):
                moments.append(holds(segment.time / 3600))
                compiled = compiled or counted.count
            progress(segment.time / seconds)
            if segment.time >= seconds:
                break
    return Soak(
        memory=chosen.name,
        hours=session.seconds / 3600,
        loops=len(loops),
        wall_seconds=time.perf_counter() - begin,
        moments=tuple(moments),
        resident_growth=moments[-1].resident_bytes / moments[0].resident_bytes - 1,
        recompilations=counted.count - compiled,
    )


def soak_table(result: Soak) -> Table:
    """Return the moments as a table."""
    speed = result.hours * 3600 / result.wall_seconds
    table = Table(
        title=f"{result.memory}: {result.loops} times the file, {speed:.0f}x real time, resident "
        f"growth {result.resident_growth:.2%}, {result.recompilations} programs compiled since"
    )
    for column in ("hour", "resident bytes", "threads", "open files"):
        table.add_column(column, justify="right")
    for hour, nbytes, threads, files in result.moments:
        table.add_row(f"{hour:.2f}", f"{nbytes:,}", str(threads), str(files))
    return table
