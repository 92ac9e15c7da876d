"""Compile gradients with states in the host's memory for a GPU on a machine without one.

python tests/training/offload_aot.py sm_90     # JSON lines: bytes by memory

Needs what tests/kernels/kernels_aot.py needs.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/kernels"), str(ROOT / "tests/support"), str(ROOT)]
from kernels_aot import NEEDS, missing, put_on  # noqa: E402, the script finds it there

CHUNK, SEGMENTS, STREAMS = 32, 4, 2
ROWS = (32 * CHUNK, 64 * CHUNK)
CASES = (("D", False), ("D", True), ("E", False), ("E", True))


def main(target):
    """Print what gradients of the generic cell take of both memories, side by side streams too."""
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    put = put_on(target)
    import jax
    from cells import shapes

    from jaxmem.training.plan import squares
    from jaxmem.training.remat import grid

    for scheme, offload in CASES:
        for rows in ROWS:
            cell, params, x, state = shapes("generic", rows)
            more = {"scheme": scheme, "segments": SEGMENTS if scheme == "E" else None}
            run = squares(grid(cell, chunk=CHUNK, offload=offload, **more))
            for streams in (1, STREAMS):
                many = streams > 1
                loss = sum_of(jax.vmap(run, (None, 0, None))) if many else run
                rows_of = jax.ShapeDtypeStruct((streams, *x.shape), x.dtype) if many else x
                given = jax.tree.map(put, (params, rows_of, state))
                traced = jax.jit(jax.value_and_grad(loss)).trace(*given)
                memory = traced.lower(lowering_platforms=("cuda",)).compile().memory_analysis()
                record = {"scheme": scheme, "offload": offload, "rows": rows, "streams": streams}
                record |= {"device": memory.temp_size_in_bytes}
                print(json.dumps(record | {"host": memory.host_temp_size_in_bytes}), flush=True)


def sum_of(f):
    """The sum of what a function returns."""
    return lambda *given: f(*given).sum()


if __name__ == "__main__":
    if missing():
        sys.exit(f"missing: {NEEDS}.")
    main(sys.argv[1])
