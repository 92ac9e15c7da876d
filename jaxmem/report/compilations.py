"""Count what XLA compiles: the proof that a stream runs through one program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax.monitoring

EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass
class Compilations:
    """Programs compiled so far and the seconds they took."""

    count: int = 0
    seconds: float = 0.0


@contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Count the programs that are compiled inside the context, on any thread.

    Yields:
      A `Compilations` that is updated while the context is open.
    """
    counted = Compilations()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == EVENT:
            counted.count += 1
            counted.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
