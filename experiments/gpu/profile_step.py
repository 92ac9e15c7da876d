"""Which kernels a chunk and a question of a published size take on this GPU, with drawn weights.

python experiments/gpu/profile_step.py MODEL MEMORY BUDGET [IMPLEMENTATION]
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.profiler import ProfileData

from jaxmem.asking import ask
from jaxmem.bound import bind, question_rows
from jaxmem.experiments.benchmark.price import PriceConfig, open_stream
from jaxmem.experiments.benchmark.price_run import drawn
from jaxmem.experiments.benchmark.second_session import noise_chunk
from jaxmem.kernels.dispatch import preferring
from jaxmem.loop import advance, start

FILL, CALLS, ANSWER, SHOWN = 12, 4, 8, 14


def kernels(folder):
    """Nanoseconds and launches by kernel, of a trace."""
    (path,) = Path(folder).rglob("*.xplane.pb")
    took, launched = Counter(), Counter()
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            if "GPU" in plane.name and line.name.startswith("Stream"):
                for event in line.events:
                    took[event.name] += event.duration_ns
                    launched[event.name] += 1
    return took, launched


def report(name, once, carry):
    """Print the wall time of a call, and the kernels that took most of it."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        carry = jax.block_until_ready(once(carry))
    wall = (time.perf_counter() - begin) / CALLS
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                carry = jax.block_until_ready(once(carry))
        took, launched = kernels(folder)
    busy, count = sum(took.values()) / CALLS / 1e6, sum(launched.values()) // CALLS
    print(f"== {name}: wall {1e3 * wall:.2f} ms, busy {busy:.2f} ms, {count} kernels")
    for kernel, spent in took.most_common(SHOWN):
        print(f"   {spent / CALLS / 1e6:8.3f} ms {launched[kernel] // CALLS:5d}  {kernel[:90]}")
    return carry


def main(model, memory, budget, implementation=None):
    """Profile both programs once the memory is full."""
    config = PriceConfig(model=model, memory=memory, budget=int(budget))
    with preferring(implementation):
        found = open_stream(config)
        program = found.program
        bound = bind(program, drawn(found.model.params))
        chunk = noise_chunk(found.model, found.pieces)
        chunk = jax.tree.map(lambda x: jnp.asarray(x)[None], chunk)
        watch = lambda carry: advance(bound, carry, chunk, program=program)
        ids = np.arange(config.question, dtype=np.int32)
        rows = question_rows(bound.params, ids, program=program)

        def answer(carry):
            ask(bound, carry, rows, program=program, max_new=ANSWER)
            return carry

        carry = start(program, bound)
        for _ in range(FILL):
            carry = watch(carry)
        answer(carry)
        carry = report(f"{model} {memory}: a chunk", watch, carry)
        report(f"{model} {memory}: a question and {ANSWER} tokens", answer, carry)


main(*sys.argv[1:])
