"""How long programs take: in pairs, inside compiled loops, beside what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.typing import Array, Int, PyTree

LONG = 0.01  # seconds that one timing takes at least


class Rates(NamedTuple):
    """What the machine was measured to do."""

    copy: float  # bytes read and written per second
    matmul: dict[str, float]  # FLOP per second, by dtype


@dataclass(frozen=True)
class Timing:
    """Times of one program."""

    compile_s: float  # to lower and compile it alone
    temp_bytes: int | None  # of the compiled program
    median_ms: float  # of one run
    best_ms: float
    spread: float  # distance of the quartiles over the median

    def against(self, plain: Timing, ratios: np.ndarray) -> dict[str, float]:
        """Return this timing beside a plain formulation's; `ratios` of pairs, ours to theirs."""
        return {
            "plain_median_ms": plain.median_ms,
            "plain_best_ms": plain.best_ms,
            "ratio": float(np.median(ratios)),
            "best_ratio": self.best_ms / plain.best_ms,
        }


def repeated(function: Callable[[PyTree], PyTree]) -> Callable[[PyTree, Int[Array, ""]], PyTree]:
    """Return a compiled loop that runs `function` a given number of times and returns its result.

    Every turn depends on the one before through one number of every operand, so that nothing is
    hoisted out of the loop, and the loop carries the whole result, so that all of it is computed.
    The number is carried beside the result, which no turn reads: it is written where it belongs,
    without a copy. A single run of some microseconds could not be timed alone.
    """

    def first(x: Array) -> Array:
        return jnp.sum(x.ravel()[:1].astype(jnp.float32))

    @jax.jit
    def loop(given: PyTree, times: Int[Array, ""]) -> PyTree:
        shape = jax.eval_shape(function, given)
        out = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)

        def turn(i: Array, held: tuple[PyTree, PyTree, Array]) -> tuple[PyTree, PyTree, Array]:
            given, _, nothing = held

            def touch(x: Array) -> Array:
                return x if x.dtype == bool else x.at[(0,) * x.ndim].add(nothing.astype(x.dtype))

            given = jax.tree.map(touch, given)
            out = function(given)
            return given, out, jnp.sum(jnp.stack([first(x) for x in jax.tree.leaves(out)])) * 0.0

        return jax.lax.fori_loop(0, times, turn, (given, out, jnp.float32(0)))[1]

    return loop


def compiled(function: Callable[..., Any], *given: Any) -> tuple[float, int | None]:
    """Return the seconds to compile a program, and the bytes of its temporaries."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*given).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return seconds, None if memory is None else int(memory.temp_size_in_bytes)


def seconds_of(loop: Callable[..., Any], given: PyTree, times: int) -> float:
    """Return the seconds that one turn of a loop takes."""
    count = jnp.int32(times)
    start = time.perf_counter()
    jax.block_until_ready(loop(given, count))
    return (time.perf_counter() - start) / times


def turns(loop: Callable[..., Any], given: PyTree, long: float = LONG) -> int:
    """Return how many turns of a loop, which is compiled here, take `long` seconds.

    The shortest of five timings counts: one that was interrupted would make for too few turns,
    and what it takes to start a program would be measured instead.
    """
    seconds_of(loop, given, 1)
    if seconds_of(loop, given, 1) > 10 * long:
        return 1
    many = 1
    while True:
        took = many * min(seconds_of(loop, given, many) for _ in range(5))
        if took > 0.5 * long:
            return max(1, round(many * long / took))
        many = round(min(10.0, long / took) * many) + 1


def interleaved(loops: list[Callable[..., Any]], given: PyTree, *, pairs: int) -> np.ndarray:
    """Return seconds per turn [pairs, loops], measured in turn so that load falls on all alike."""
    times = [turns(loop, given) for loop in loops]
    once = lambda: [seconds_of(f, given, n) for f, n in zip(loops, times, strict=True)]
    return np.asarray([once() for _ in range(pairs)])


def timing(seconds: np.ndarray, compile_s: float, temp_bytes: int | None) -> Timing:
    """Return the summary of one program's times [pairs]."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    best, spread = float(np.min(seconds)), float((high - low) / median)
    return Timing(compile_s, temp_bytes, float(median) * 1e3, best * 1e3, spread)


def rates(dtypes: set[str], *, size: int | None = None, megabytes: int | None = None) -> Rates:
    """Return the best copy bandwidth and matmul rates of this machine, measured now.

    Args:
      dtypes: of the products.
      size: rows of the square matrices; None: 8,192 on a GPU, 1,024 elsewhere.
      megabytes: that are copied; None: 2,048 on a GPU, more than its cache holds, 128 elsewhere.
    """
    large = jax.default_backend() == "gpu"
    size = size or (8192 if large else 1024)
    megabytes = megabytes or (2048 if large else 128)
    block = jnp.ones((megabytes * 2**18,), jnp.float32)
    copy = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda i, x: x + 1.0, x))
    seconds = min(seconds_of(copy, block, 8) for _ in range(6))
    matmul = {}
    for dtype in sorted(dtypes):
        square = jnp.full((size, size), 1.0 / size, dtype)
        power = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda i, y: y @ x, x))
        best = min(seconds_of(power, square, 4) for _ in range(6))
        matmul[dtype] = 2 * size**3 / best
    return Rates(copy=2 * block.nbytes / seconds, matmul=matmul)
