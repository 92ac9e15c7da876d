"""What scoring and selection add to a chunk: the step with `OmniMem` over the step with `Recent`.

Both hold equally many slots per layer, so that both attend to equally many keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from jaxmem.bound import decoder_of
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.experiments.benchmark.constancy import synthetic_chunk
from jaxmem.experiments.benchmark.kernels_measure import timing
from jaxmem.loop import advance
from jaxmem.memory.base import Memory
from jaxmem.memory.baselines import Recent
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.models.base import Model
from jaxmem.models.tiny.embedded import embedded

GOAL = 1.25
SEGMENT = 40  # chunks of one timing


def memories(slots: int) -> tuple[Memory, Memory]:
    """Return `OmniMem` and `Recent` of so many slots per layer.

    The stream has no text, so OmniMem's slots are all for audio and vision.
    """
    return OmniMem(slots, sketch=128), Recent(slots)


def stepper(model: Model, memory: Memory, seconds: int) -> tuple[Callable[[], float], float]:
    """Return a function that streams one segment and gives the seconds per chunk, and compile time.

    The stream is random embeddings of the model's token layout, made inside the program; the
    weights are the model's own.
    """
    size = seconds * model.tokens_per_piece
    spec = spec_of(model.decoder, chunk=size, pos_dtype=model.pos_dtype, step=model.text_step)
    encode = partial(
        synthetic_chunk,
        seconds=seconds,
        per_second=model.tokens_per_piece,
        width=spec.width,
        axes=spec.axes,
    )
    program = make_program(model.decoder, memory, spec, encode=encode)
    weights, numbers = decoder_of(model.params), np.arange(SEGMENT, dtype=np.int32)
    carry = init_carry(program)
    start = time.perf_counter()
    step = advance.lower(weights, carry, numbers, program=program).compile()
    compile_s = time.perf_counter() - start

    def run() -> float:
        nonlocal carry
        start = time.perf_counter()
        carry = jax.block_until_ready(step(weights, carry, numbers))
        return (time.perf_counter() - start) / SEGMENT

    return run, compile_s


def steps(slots: tuple[int, ...], seconds: tuple[int, ...], *, pairs: int) -> Iterator[dict]:
    """Yield one record per number of slots and length of a chunk.

    The memories are full before the first timing: 40 chunks of 20 tokens are more than their slots
    for up to 800 of them.
    """
    model = embedded()
    for length in seconds:
        for count in slots:
            runs, compile_s = zip(
                *(stepper(model, memory, length) for memory in memories(count)), strict=True
            )
            for run in runs * 2:
                run()
            times = np.array([[run() for run in runs] for _ in range(pairs)])
            ours, plain = (timing(times[:, i], compile_s[i], None) for i in range(2))
            ratio = float(np.median(times[:, 0] / times[:, 1]))
            yield {
                "operation": "chunk step",
                "shape": f"embedded T={length * model.tokens_per_piece} S={count}",
                "compile_s": ours.compile_s,
                "median_ms": ours.median_ms,
                "best_ms": ours.best_ms,
                "spread": ours.spread,
                "against": "recent",
                "plain_median_ms": plain.median_ms,
                "plain_best_ms": plain.best_ms,
                "ratio": ratio,
                "best_ratio": ours.best_ms / plain.best_ms,
                "goal": GOAL,
                "met": ratio <= GOAL,
            }
