"""What scoring and selection add to a chunk: the step with `OmniMem` over the step with `Recent`.

Both hold equally many slots per layer, so that both attend to equally many keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from jaxmem.decoder.program import init_carry
from jaxmem.experiments.benchmark.constancy import Streamed
from jaxmem.experiments.benchmark.kernels_measure import timing
from jaxmem.loop import advance
from jaxmem.memory.baselines import Recent
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec

GOAL = 1.25
SEGMENT = 40  # chunks of one timing


def stepper(streamed: Streamed) -> tuple[Callable[[], float], float]:
    """Return what streams one segment and gives the seconds per chunk, and the compile time."""
    program, numbers = streamed.program, np.arange(SEGMENT, dtype=np.int32)
    carry = init_carry(program)
    start = time.perf_counter()
    step = advance.lower(streamed.bound, carry, numbers, program=program).compile()
    compile_s = time.perf_counter() - start

    def run() -> float:
        nonlocal carry
        start = time.perf_counter()
        carry = jax.block_until_ready(step(streamed.bound, carry, numbers))
        return (time.perf_counter() - start) / SEGMENT

    return run, compile_s


def steps(
    slots: tuple[int, ...], seconds: tuple[int, ...], *, pairs: int
) -> Iterator[dict[Any, Any]]:
    """Yield one record per number of slots and length of a chunk.

    The memories are full before the first timing: 40 chunks of 20 tokens are more than their slots
    for up to 800 of them. The stream has no text, so OmniMem's slots are for audio and vision.
    """
    model = embedded()
    for length, count in ((length, count) for length in seconds for count in slots):
        spec, both = model_spec(model, length), (OmniMem(count, sketch=128), Recent(count))
        made = [stepper(Streamed(model, memory, spec)) for memory in both]
        runs = [run for run, _ in made]
        for run in runs * 2:
            run()
        times = np.array([[run() for run in runs] for _ in range(pairs)])
        ours, plain = (timing(times[:, i], made[i][1], None) for i in range(2))
        compared = ours.against(plain, times[:, 0] / times[:, 1])
        yield {
            "operation": "chunk step",
            "shape": f"embedded T={spec.chunk} S={count}",
            **asdict(ours),
            "against": "recent",
            **compared,
            "goal": GOAL,
            "met": compared["ratio"] <= GOAL,
        }
