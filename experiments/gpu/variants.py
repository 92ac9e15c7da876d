"""Settings of the kernels on this GPU: times, and how far off each is from the first of its kind.

python experiments/gpu/variants.py [THREADS]

All are compiled first, on many threads, then timed one after the other.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.experiments.benchmark.kernels_scans import gradient, run, scan_inputs, scans
from jaxmem.experiments.benchmark.kernels_shapes import Shape, inputs, rope_of, segments
from jaxmem.kernels import pallas_scan as ps
from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kernels.attend import attend
from jaxmem.kernels.attend import pallas as attend_pallas
from jaxmem.kernels.tiles import Tile

CALL = pt.call
PRODUCTS = {
    "ieee": lax.Precision.HIGHEST,
    "tf32": lax.DotAlgorithmPreset.TF32_TF32_F32,
    "tf32x3": lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
    "bf16x3": lax.DotAlgorithmPreset.BF16_BF16_F32_X3,
    "bf16x6": lax.DotAlgorithmPreset.BF16_BF16_F32_X6,
}
SIZES = (32, 32, 8), (32, 32, 4), (32, 64, 8), (64, 64, 8)
FORWARD = (
    *(("ieee", *size) for size in (*SIZES, (16, 64, 4))),
    *(("tf32x3", *size) for size in (*SIZES, (16, 32, 4))),
    *(("bf16x3", *size) for size in SIZES),
    *((way, *size) for way in ("tf32", "bf16x6") for size in SIZES[:2]),
)
"""Products, rows and columns of a tile, warps."""
BACKWARD = (
    ("ieee", 32, 32, 8), ("tf32x3", 32, 32, 8), ("tf32x3", 16, 32, 4), ("bf16x3", 32, 32, 8),
    ("bf16x3", 32, 32, 4), ("bf16x6", 32, 32, 8),
)  # fmt: skip
ATTEND = (
    (64, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3),
    (128, 128, 8, 2), (64, 128, 4, 2), (128, 64, 4, 2), (128, 32, 4, 3),
)  # fmt: skip
"""Rows and keys of a tile, warps, stages."""


def of_scans():
    """Yield (operation, setting, lowered, inputs) of `ssd` and `delta`, 4,096 rows."""
    for scan in (s for s in scans("7b") if s.rows == 4096):
        x = scan_inputs(scan)
        for call, settings, more in ((run, FORWARD, ""), (gradient, BACKWARD, " gradient")):
            name = ("delta" if scan.gated else "ssd") + more
            for way, rows, columns, warps in settings:
                ps.PRODUCTS, ps.ROWS, ps.COLUMNS = PRODUCTS[way], rows, columns
                # The warps that a kernel asks for itself are not taken.
                ps.call = lambda *a, warps=warps, **k: CALL(
                    *a, **{**k, "warps": warps, "stages": 1}
                )
                once = jax.jit(partial(call, scan=scan, implementation="pallas"))
                yield name, f"{way} {rows} x {columns}, {warps} warps", once.lower(x), x
            for way in ("xla", "xla_blocks"):
                once = jax.jit(partial(call, scan=scan, implementation=way))
                yield name, way, once.lower(x), x


def of_attention():
    """Yield the same of `attend` of a 7B model in bfloat16."""
    for rows, slots in ((512, 4096), (1024, 8192)):
        shape = Shape("7B", rows, slots, 28, 4, 128, dtype="bfloat16")
        x, rope, name = inputs(shape), rope_of(shape), f"attend T={rows} S={slots}"
        for high, wide, warps, stages in ATTEND:
            pt.call = lambda *a, warps=warps, stages=stages, **k: CALL(
                *a, **{**k, "warps": warps, "stages": stages}
            )
            tile = Tile(high, wide)
            once = lambda x, t=tile, r=rope: attend_pallas.attend(x.q, segments(x), rope=r, tile=t)
            yield (
                name,
                f"{high} x {wide}, {warps} warps, {stages} stages",
                jax.jit(once).lower(x),
                x,
            )
        pt.call = CALL
        for way in ("xla", "cudnn"):
            once = lambda x, w=way, r=rope: attend(x.q, segments(x), rope=r, implementation=w)
            yield name, way, jax.jit(once).lower(x), x


def milliseconds(once, x, long=0.03):
    """The best of three runs of about `long` seconds."""
    jax.block_until_ready(once(x))
    count, best = 3, []
    for _ in range(4):
        begin = time.perf_counter()
        for _ in range(count):
            out = once(x)
        jax.block_until_ready(out)
        best.append((time.perf_counter() - begin) / count)
        count = max(3, min(200, int(long / best[0])))
    return 1e3 * min(best[1:])


def off(got, first):
    """The largest distance of an output, over the length of the first setting's."""
    wide = [(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in zip(got, first, strict=True)]
    length = jnp.linalg.norm
    return max(float(length((a - b).ravel()) / length(b.ravel())) for a, b in wide)


def main(threads=8):
    """Compile, then print a line for every setting."""
    jobs = [*of_scans(), *of_attention()]
    with ThreadPoolExecutor(int(threads)) as pool:
        built = list(pool.map(lambda job: job[2].compile(), jobs))
    first = {}
    for (name, setting, _, x), once in zip(jobs, built, strict=True):
        leaves = jax.tree.leaves(once(x))
        took, error = milliseconds(once, x), off(leaves, first.setdefault(name, leaves))
        print(f"{name:20} {setting:32} {took:8.3f} ms  {error:.1e}", flush=True)


main(*sys.argv[1:])
