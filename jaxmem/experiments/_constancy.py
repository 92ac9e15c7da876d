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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Memory, Rows, nbytes
from jaxmem.models.base import Model
from jaxmem.report.compilations import count_compilations
from jaxmem.stream import (
    Carry,
    Program,
    ask,
    branch,
    decoder_of,
    init_carry,
    make_program,
    question_rows,
    spec_of,
    stream,
)
from jaxmem.tokens import AUDIO, VISION
from jaxmem.typing import Array, Params


@dataclass(frozen=True)
class Constancy:
    """What stayed the same between an early and a late moment of one stream.

    Attributes:
      memory: name of the memory.
      hours: length of the stream, hours.
      tokens: tokens that were streamed.
      early_minute: the early moment, minutes.
      chunk_ms: median time of one chunk at the early and the late moment, milliseconds.
      first_token_ms: median time from a question to its first token, milliseconds.
      chunk_ratio: late / early.
      first_token_ratio: late / early.
      state_bytes: bytes of the carry at both moments.
      memory_bytes: bytes of the memory's state as `nbytes` prices it.
      resident_bytes: resident memory of the process at both moments.
      resident_growth: late / early - 1.
      recompilations: programs compiled after the early moment.
    """

    memory: str
    hours: float
    tokens: int
    early_minute: float
    chunk_ms: tuple[float, float]
    first_token_ms: tuple[float, float]
    chunk_ratio: float
    first_token_ratio: float
    state_bytes: tuple[int, int]
    memory_bytes: int
    resident_bytes: tuple[int, int]
    resident_growth: float
    recompilations: int

    def as_dict(self) -> dict:
        """Return plain data for JSON."""
        return asdict(self)


def synthetic_chunk(
    params: Params, number: Array, *, seconds: int, per_second: int, width: int, axes: int
) -> Rows:
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
    return Rows(x, jnp.asarray(rel), jnp.asarray(kind), jnp.asarray(span))


def resident() -> int:
    """Return the resident memory of this process in bytes (its peak, where no better is known)."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bytes_of(carry: Carry) -> int:
    """Return the bytes that a carry really holds."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(carry))


def measure(
    model: Model,
    memory: Memory,
    *,
    hours: float = 10.0,
    early_minute: float = 10.0,
    chunk_seconds: int = 1,
    segment: int = 60,
    pairs: int = 200,
    progress: Callable[[float], None] = lambda done: None,
) -> Constancy:
    """Stream `hours` of synthetic tokens and compare minute `early_minute` with the end.

    Args:
      model: whose decoder is streamed (its encoders are not used).
      memory: what is proven.
      hours: length of the stream.
      early_minute: the moment to compare with, minutes.
      chunk_seconds: seconds per chunk.
      segment: chunks per call of `stream`.
      pairs: how many times both moments are timed, in turn.
      progress: called with the share that is done.

    Raises:
      ValueError: if the stream is not longer than `early_minute`.
    """
    total, early_at = (int(s / chunk_seconds) for s in (hours * 3600, early_minute * 60))
    if total <= early_at:
        raise ValueError(
            f"{hours} hours are not longer than minute {early_minute}: raise hours or lower "
            "early_minute."
        )
    size = chunk_seconds * model.tokens_per_piece
    spec = spec_of(model.decoder, chunk=size, pos_dtype=model.pos_dtype, text_step=model.text_step)
    program = make_program(model.decoder, memory, spec)
    encode = partial(
        synthetic_chunk,
        seconds=chunk_seconds,
        per_second=model.tokens_per_piece,
        width=spec.width,
        axes=spec.axes,
    )
    weights = decoder_of(model.params)
    run = lambda carry, numbers: stream(weights, carry, numbers, program=program, encode=encode)

    carry, at, early, early_resident = init_carry(program), 0, None, 0
    run(init_carry(program), np.zeros((segment,), np.int32))
    probe = Timer(program, weights, run)
    probe(carry)
    with count_compilations() as counted:
        while at < total:
            numbers = np.arange(at, at + segment, dtype=np.int32)
            carry = jax.block_until_ready(run(carry, numbers))
            at += segment
            if early is None and at >= early_at:
                early, early_resident = branch(carry), resident()
            progress(at / total)
        late_resident = resident()
        assert early is not None
        times = np.array([(*probe(early), *probe(carry)) for _ in range(pairs)])
    chunk_early, token_early, chunk_late, token_late = np.median(times, axis=0) * 1e3
    return Constancy(
        memory=memory.name,
        hours=at * chunk_seconds / 3600,
        tokens=at * size,
        early_minute=early_minute,
        chunk_ms=(float(chunk_early), float(chunk_late)),
        first_token_ms=(float(token_early), float(token_late)),
        chunk_ratio=float(chunk_late / chunk_early),
        first_token_ratio=float(token_late / token_early),
        state_bytes=(bytes_of(early), bytes_of(carry)),
        memory_bytes=nbytes(memory, spec),
        resident_bytes=(early_resident, late_resident),
        resident_growth=late_resident / early_resident - 1,
        recompilations=counted.count,
    )


class Timer:
    """Times one chunk and one question from a given carry, which it leaves as it is."""

    def __init__(self, program: Program, weights: Params, run: Callable):
        """Prepare a question of four words for `program`."""
        self.run, self.program, self.weights = run, program, weights
        self.number = np.zeros((1,), np.int32)
        self.question = question_rows(weights, np.arange(4), program=program)

    def __call__(self, carry: Carry) -> tuple[float, float]:
        """Return the seconds of one chunk and of one first token."""
        copy = jax.block_until_ready(branch(carry))
        start = time.perf_counter()
        jax.block_until_ready(self.run(copy, self.number))
        chunk = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(ask(self.weights, carry, self.question, program=self.program))
        return chunk, time.perf_counter() - start
