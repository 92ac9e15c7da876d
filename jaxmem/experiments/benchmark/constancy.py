"""Proof of constancy: hour 10 of a stream costs what minute 10 costs.

The stream is synthetic tokens made inside the compiled program, so nothing but the decoder and the
memory is measured. Times are compared in pairs: the live states of minute 10 and of the end are
both kept and stepped in turn, so that a change in the machine's load falls on both alike.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxmem.asking import ask
from jaxmem.bound import bind, question_rows
from jaxmem.decoder.program import Carry, init_carry
from jaxmem.kv import AUDIO, VISION
from jaxmem.loop import advance, branch
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import AnyMemory, Spec
from jaxmem.memory.by_name import Contestant
from jaxmem.memory.exchange import Embeds
from jaxmem.models.base import Model
from jaxmem.programs import compile
from jaxmem.report.compilations import count_compilations
from jaxmem.typing import Array, Params


@dataclass(frozen=True)
class Constancy:
    """What stayed the same between an early and a late moment of one stream: pairs of both."""

    memory: str
    hours: float
    tokens: int  # that were streamed
    early_minute: float
    chunk_ms: tuple[float, float]  # median time of one chunk
    first_token_ms: tuple[float, float]  # median, from a question to its first token
    chunk_ratio: float  # late / early
    first_token_ratio: float
    state_bytes: tuple[int, int]  # of the carry, wherever they lie
    memory_bytes: int  # of the memory and its bank on the device, as `footprint` prices them
    host_bytes: int  # of the bank in host memory, likewise
    resident_bytes: tuple[int, int]  # of the process
    resident_growth: float  # late / early - 1
    recompilations: int  # programs compiled after the early moment


def synthetic_chunk(
    params: Params, number: Array, *, seconds: int, per_second: int, width: int, axes: int
) -> Embeds:
    """Return chunk `number` of an endless stream: random embeddings, a fifth of them audio."""
    del params
    size = seconds * per_second
    x = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), (size, width))
    place = np.arange(size) % per_second
    rel = np.zeros((size, axes), np.int32)
    rel[:, 0] = np.arange(size) // per_second * 4
    kind = np.where(place < per_second * 4 // 5, VISION, AUDIO).astype(np.int8)
    span = np.zeros(axes, np.int32)
    span[0] = 4 * seconds
    return Embeds(x, jnp.asarray(rel), jnp.asarray(kind), jnp.asarray(span))


def resident() -> int:
    """Return the resident memory of this process in bytes (its peak, where no better is known)."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Streamed:
    """One memory's stream of synthetic chunks in the decoder of a model."""

    def __init__(self, model: Model, memory: AnyMemory, spec: Spec):
        """Prepare the program and a question of four words.

        Raises:
          ValueError: if the memory reads probes and the model names none, or the chunks of its
            spec are no whole pieces.
        """
        pieces = spec.chunk / model.tokens_per_piece
        if pieces != int(pieces):
            raise ValueError(
                f"chunks of {spec.chunk} tokens are no whole pieces of {model.tokens_per_piece}."
            )
        encode = partial(
            synthetic_chunk,
            seconds=int(pieces),
            per_second=model.tokens_per_piece,
            width=spec.width,
            axes=spec.axes,
        )
        self.program = compile(model._replace(encode=encode), memory, spec=spec)
        self.bound = bind(self.program, model.params)
        self.question = question_rows(model.params, np.arange(4), program=self.program)

    def run(self, carry: Carry, numbers: np.ndarray) -> Carry:
        """Return the carry, which is donated, after the chunks of those numbers."""
        return jax.block_until_ready(advance(self.bound, carry, numbers, program=self.program))

    def times(self, carry: Carry) -> tuple[float, float]:
        """Return the seconds of one chunk and of one first token; the carry stays as it is."""
        copy = jax.block_until_ready(branch(carry))
        start = time.perf_counter()
        self.run(copy, np.zeros((1,), np.int32))
        chunk = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(ask(self.bound, carry, self.question, program=self.program))
        return chunk, time.perf_counter() - start

    def advance(
        self, until: int, early: int, segment: int, progress: Callable[[float], None]
    ) -> tuple[Moment, Moment]:
        """Return the moments after at least `early` and `until` chunks, `segment` at a time."""
        carry, at, before = init_carry(self.program), 0, None
        while at < until:
            carry = self.run(carry, np.arange(at, at + segment, dtype=np.int32))
            at += segment
            if before is None and at >= early:
                before = Moment(branch(carry), at, resident())
            progress(at / until)
        assert before is not None
        return before, Moment(carry, at, resident())


def check_longer(end: float, early: float, hours: float, early_minute: float) -> None:
    """Raise ValueError if a stream ends before there is an early moment to compare with.

    Args:
      end: of the stream, in any unit; `early` likewise.
      hours: of the stream, as the caller gave them; `early_minute` likewise.
    """
    if end <= early:
        raise ValueError(
            f"{hours} hours are not longer than minute {early_minute}: raise hours or lower "
            "early_minute."
        )


class Moment(NamedTuple):
    """A moment of a stream."""

    carry: Carry
    chunks: int  # that were streamed
    resident: int  # bytes

    @property
    def nbytes(self) -> int:
        """Return the bytes that the carry really holds."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.carry))


def measure(
    model: Model,
    chosen: Contestant,
    spec: Spec,
    *,
    hours: float = 10.0,
    early_minute: float = 10.0,
    segment: int = 60,
    pairs: int = 200,
    progress: Callable[[float], None] = lambda done: None,
) -> Constancy:
    """Stream `hours` of synthetic tokens and compare minute `early_minute` with the end.

    The model's decoder is streamed, `segment` chunks a call; its encoders are not used. Both
    moments are timed in turn, `pairs` times. `progress` is called with the share that is done.

    Raises:
      ValueError: if the stream is not longer than `early_minute`, or does not fit the model.
    """
    streamed = Streamed(model, chosen.memory, spec)
    size = spec.chunk
    seconds = size // model.tokens_per_piece
    total, early_at = (int(s / seconds) for s in (hours * 3600, early_minute * 60))
    check_longer(total, early_at, hours, early_minute)
    warm = streamed.run(init_carry(streamed.program), np.zeros((segment,), np.int32))
    streamed.times(warm)
    del warm
    with count_compilations() as counted:
        early, late = streamed.advance(total, early_at, segment, progress)
        times = np.array(
            [(*streamed.times(early.carry), *streamed.times(late.carry)) for _ in range(pairs)]
        )
    chunk_early, token_early, chunk_late, token_late = (np.median(times, axis=0) * 1e3).tolist()
    price = footprint(chosen.memory, spec)
    return Constancy(
        memory=chosen.name,
        hours=late.chunks * seconds / 3600,
        tokens=late.chunks * size,
        early_minute=early_minute,
        chunk_ms=(chunk_early, chunk_late),
        first_token_ms=(token_early, token_late),
        chunk_ratio=chunk_late / chunk_early,
        first_token_ratio=token_late / token_early,
        state_bytes=(early.nbytes, late.nbytes),
        memory_bytes=price.device,
        host_bytes=price.host,
        resident_bytes=(early.resident, late.resident),
        resident_growth=late.resident / early.resident - 1,
        recompilations=counted.count,
    )


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
