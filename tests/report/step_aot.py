"""Compile the step of every memory for a GPU on a machine without one; print what its text says.

python tests/report/step_aot.py sm_90 pallas [MEMORY ...]     # JSON lines

Needs what tests/kernels/kernels_aot.py needs.
"""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/kernels"), str(ROOT)]
from kernels_aot import NEEDS, missing, put_on  # noqa: E402, the script finds it there

CHUNK = 512
SLOTS = {"pallas": 1024, "xla": 8192}
"""Of a layer; with XLA so many that the slots of all layers outgrow a tile of logits."""
ENTRIES = CHUNK * CHUNK
"""Rows by rows, and less than rows by slots; no pool, weight or array of rows is as large."""
FEW, MANY = 3, 12  # layers
BOTH = ((FEW, "bfloat16"), (FEW, "float32"))
CASES = {
    ("sm_80", "pallas"): BOTH,
    ("sm_90", "pallas"): (*BOTH, (MANY, "bfloat16")),
    ("sm_90", "xla"): ((MANY, "bfloat16"), (MANY, "float32")),
}
"""Layers and dtypes that are compiled for a target and a back end of the kernels."""

FLAGS = "--xla_backend_optimization_level=0 --xla_gpu_disable_gpuasm_optimizations=true"
"""They spare work on what is inside of kernels; the text is the same."""


def figures(name, slots, layers, dtype, put):
    """Return what is known of the step with a memory."""
    import jax

    from jaxmem.bound import bind
    from jaxmem.decoder.decoder import DecoderConfig, init_decoder
    from jaxmem.decoder.program import init_carry
    from jaxmem.decoder.scorer import add_scorer, init_scorer
    from jaxmem.experiments.benchmark.step_model import chunks_of, program_of
    from jaxmem.loop import advance
    from jaxmem.report.compiled import collectives, inspect, large, pool_size
    from jaxmem.rope import rope_1d

    config = DecoderConfig(layers, 64, 4, 2, 16, 64, 50, rope_1d(16))
    key = jax.random.key(0)
    params = add_scorer(init_decoder(config, key), init_scorer(config, key))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    program = program_of(config, name, slots, CHUNK, dtype)
    given = bind(program, params), init_carry(program), chunks_of(program)
    here, jax.default_backend = jax.default_backend, lambda: "gpu"  # traced as it is on a GPU
    try:
        traced = advance.trace(*jax.tree.map(put, given), program=program)
    finally:
        jax.default_backend = here
    held = {str(list(x.shape)).replace(" ", "") for x in jax.tree.leaves(given)}
    step = traced.lower(lowering_platforms=("cuda",)).compile()
    return {
        "memory": name,
        "dtype": dtype,
        "layers": layers,
        **inspect(step, pool_size(program))._asdict(),
        "state": sum(x.nbytes for x in jax.tree.leaves(given[1].state)),
        "pool": pool_size(program),
        "large": [x for x in large(step, ENTRIES) if x[x.index("[") :] not in held],
        "collectives": collectives(step),
        "kernels": sorted(set(re.findall(r"jaxmem_([a-z_]+[a-z])", step.as_text()))),
        "jax": jax.__version__,
    }


def main(target, kernels, *only):
    """Print a line per step; the kernels are those of `jaxmem.kernels.dispatch`."""
    if missing():
        sys.exit(f"missing: {NEEDS}.")
    os.environ["XLA_FLAGS"] = FLAGS
    put = put_on(target)
    from jaxmem.kernels import dispatch
    from jaxmem.memory import MEMORIES

    for name in only or MEMORIES:
        for layers, dtype in CASES[target, kernels]:
            about = {"target": target, "back end": kernels}
            with dispatch.preferring(kernels):
                found = figures(name, SLOTS[kernels], layers, dtype, put)
            print(json.dumps(about | found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
