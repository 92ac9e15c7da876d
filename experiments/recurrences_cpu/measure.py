"""Time `ssd` and `delta` against the PyTorch functions of transformers, in turn, on a CPU.

measure.py ROUNDS OPERATIONS [BLOCKS], such as 7 ssd,delta 64. Needs the extra `parity`. Prints one
JSON object for every operation and block size.
"""

import json
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from jaxmem.kernels.delta import delta
from jaxmem.kernels.ssd import ssd

ROWS, ROWS_OF_DELTA, BLOCKS, WAYS = 4096, 1024, (32, 64, 128), ("xla", "xla_blocks")


def ssd_case(rng):
    """24 heads of 64, N 128, one group: the inputs, and the two functions of them."""
    x, b = rng.normal(size=(ROWS, 24, 64)), rng.normal(size=(ROWS, 1, 128))
    dt, c = np.logaddexp(0, rng.normal(size=(ROWS, 24)) - 2), rng.normal(size=(ROWS, 1, 128))
    a, state = -np.exp(rng.normal(size=24)), np.zeros((24, 64, 128))

    def theirs(block, x, dt, a, b, c, state):
        out = mamba2_chunk_scan(
            x[None], dt[None], a, b[None], c[None], chunk_size=block, D=None, dt_bias=None,
            initial_states=state[None], dt_softplus=False, return_final_states=True,
        )  # fmt: skip
        return out[0][0]

    return (x, dt, a, b, c, state), ssd, theirs


def delta_case(rng):
    """16 heads of 128 x 128."""
    q, k, v = (rng.normal(size=(ROWS_OF_DELTA, 16, 128)) for _ in range(3))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    g, beta = (
        -np.logaddexp(0, rng.normal(size=(ROWS_OF_DELTA, 16))),
        rng.random((ROWS_OF_DELTA, 16)),
    )

    def theirs(block, q, k, v, g, beta, state):
        given = (x[None] for x in (q, k, v, g, beta))
        out = torch_chunk_gated_delta_rule(
            *given, chunk_size=block, initial_state=state[None], output_final_state=True
        )
        return out[0][0]

    return (q, k, v, g, beta, np.zeros((16, 128, 128))), delta, theirs


def seconds(run):
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def runs_of(ours, theirs, arrays, block):
    """All calls to be timed, by name: forward, and the gradient by everything but the state."""
    mine = tuple(jnp.asarray(x, jnp.float32) for x in arrays)
    other = [torch.tensor(x, dtype=torch.float32) for x in arrays]
    runs = {}
    for way in WAYS:
        run = partial(ours, block=block, implementation=way)
        forward = jax.jit(lambda *x, run=run: run(*x)[0])
        total = lambda *x, run=run: jnp.sum(run(*x)[0])
        gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3, 4)))
        runs[way, "forward"] = partial(lambda f: jax.block_until_ready(f(*mine)), forward)
        runs[way, "gradient"] = partial(lambda f: jax.block_until_ready(f(*mine)), gradient)

    def forward():
        with torch.no_grad():
            return theirs(block, *other)

    def gradient():
        leaves = [x.clone().requires_grad_() for x in other[:5]]
        torch.autograd.grad(theirs(block, *leaves, other[5]).sum(), leaves)

    runs["torch", "forward"], runs["torch", "gradient"] = forward, gradient
    np.testing.assert_allclose(runs["xla", "forward"](), forward().numpy(), atol=2e-3)
    return runs


def main(rounds, names, blocks):
    """Print every time: the median and the shortest of `rounds`, all calls in turn."""
    for name in names:
        case = {"ssd": ssd_case, "delta": delta_case}[name]
        arrays, ours, theirs = case(np.random.default_rng(0))
        for block in blocks:
            runs = runs_of(ours, theirs, arrays, block)
            for run in runs.values():
                run()
            found = {key: [] for key in runs}
            for _ in range(rounds):
                for key, run in runs.items():
                    found[key].append(seconds(run))
            line = {"operation": name, "block": block, "rounds": rounds, "jax": jax.__version__}
            for (way, what), times in found.items():
                line[f"{way} {what}"] = [round(float(f(times)), 4) for f in (np.median, min)]
            print(json.dumps(line), flush=True)


GIVEN = sys.argv[1:]
main(int(GIVEN[0]), GIVEN[1].split(","), [int(b) for b in GIVEN[2:]] or BLOCKS)
