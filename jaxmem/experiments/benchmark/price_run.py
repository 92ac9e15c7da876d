"""`benchmark price --run`: both programs of a price on this machine, with random weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.asking import ask
from jaxmem.bound import bind, question_rows
from jaxmem.loop import advance, start
from jaxmem.typing import PyTree

SPREAD = 0.02
"""Standard deviation of the weights that are drawn."""


@dataclass(frozen=True)
class Ran:
    """Times of one run, in seconds, and bytes. The memory was full."""

    device: str
    written: int  # chunks before anything was timed
    chunk: float  # median of a chunk
    chunk_quartiles: tuple[float, float]
    first_token: float  # median of a question with one answer token
    first_token_quartiles: tuple[float, float]
    token: float  # each further token of an answer
    compile: tuple[float, float]  # of chunk and question, with one run of each
    peak_bytes: int | None  # in use at once on the device since the process began, None: unknown


def device_peak() -> int | None:
    """Return the most bytes in use at once on the device since the process began; None: unknown."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def drawn(shapes: PyTree, seed: int = 0) -> PyTree:
    """Return arrays of these shapes and types on the device: weights and pictures are normal.

    Every array is made by one compiled call, so nothing large lies in host memory.
    """
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), max(1, len(leaves)))
    return jax.tree.unflatten(tree, [_one(x, k) for x, k in zip(leaves, keys, strict=True)])


def _one(of: Any, key: jax.Array) -> jax.Array:
    if of.dtype == jnp.bool_:
        return jnp.ones(of.shape, bool)
    if not jnp.issubdtype(of.dtype, jnp.floating):
        return jnp.zeros(of.shape, of.dtype)
    return _normal(key, of.shape, of.dtype)


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return (SPREAD * jax.random.normal(key, shape, dtype)).astype(dtype)


def measured(
    params: PyTree, chunk: PyTree, program: Any, *,
    fill: int, question: int, answer: int, rounds: int = 7,
) -> Ran:  # fmt: skip
    """Return the times of a stream's chunks and of its questions.

    Args:
      params: shapes of all weights.
      chunk: one chunk of inputs as `Program.encode` takes it.
      program: static description.
      fill: chunks that are written before anything is timed.
      question: tokens of a question.
      answer: tokens of the long answer, from which the time of a token is taken; more than 1.
      rounds: how often each is timed.

    Returns:
      The times; a call writes one chunk, as a live stream does.
    """
    bound = bind(program, drawn(params))
    carry = start(program, bound)
    chunks = jax.tree.map(lambda x: jnp.asarray(x)[None], chunk)
    times = []
    for _ in range(fill + rounds):
        begin = time.perf_counter()
        carry = jax.block_until_ready(advance(bound, carry, chunks, program=program))
        times.append(time.perf_counter() - begin)
    compiled, times = times[:1], times[-rounds:]
    ids = np.arange(question, dtype=np.int32) % program.config.vocab
    rows = question_rows(bound.params, ids, program=program)

    def asked(count: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(ask(bound, carry, rows, program=program, max_new=count))
        return time.perf_counter() - begin

    compiled.append(asked(1))
    asked(answer)
    first, whole = ([asked(count) for _ in range(rounds)] for count in (1, answer))
    quartiles = lambda x: (float(np.percentile(x, 25)), float(np.percentile(x, 75)))
    return Ran(
        device=jax.devices()[0].device_kind,
        written=fill,
        chunk=float(np.median(times)),
        chunk_quartiles=quartiles(times),
        first_token=float(np.median(first)),
        first_token_quartiles=quartiles(first),
        token=max(0.0, float(np.median(whole) - np.median(first)) / (answer - 1)),
        compile=(compiled[0], compiled[1]),
        peak_bytes=device_peak(),
    )
