"""Compile every Pallas kernel for one GPU architecture on a machine without a GPU.

python tests/kernels/kernels_aot.py sm_90     # JSON lines: registers, spills, shared memory

Needs jax-cuda12-plugin and jax-cuda12-pjrt of JAX's own version, and nvidia-cuda-nvcc-cu12. XLA
compiles for a described device; ptxas then says what its PTX takes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

NEEDS = "jax-cuda12-plugin and jax-cuda12-pjrt (of JAX's version) and nvidia-cuda-nvcc-cu12"


@dataclass(frozen=True)
class Target:
    """What the compiler must know of a GPU; shared memory is what one block may ask for."""

    major: int
    minor: int
    shared: int
    cores: int
    name: str


TARGETS = {
    "sm_80": Target(8, 0, 166_912, 108, "NVIDIA A100-SXM4-80GB"),
    "sm_89": Target(8, 9, 101_376, 58, "NVIDIA L4"),
    "sm_90": Target(9, 0, 232_448, 132, "NVIDIA H100"),
}


def described(target: Target) -> str:
    """Return the GpuTargetConfigProto of a target as text."""
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {target.major} minor: {target.minor} }}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 1536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {target.shared}
  shared_memory_per_core: {target.shared + 1024} core_count: {target.cores}
  registers_per_block_limit: 65536 registers_per_core_limit: 65536 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 2000000000000 l2_cache_size: 50331648 clock_rate_ghz: 1.5
  device_memory_size: 42949672960
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 3 }} runtime_version {{ major: 12 }}
device_description_str: "{target.name}"
"""


def ptxas() -> Path | None:
    """Return the assembler of the installed packages."""
    spec = find_spec("nvidia")
    for root in () if spec is None else spec.submodule_search_locations or ():
        for path in Path(root).glob("*/bin/ptxas"):
            return path
    return None


def missing() -> bool:
    """Return whether a package is not installed."""
    return find_spec("jax_cuda12_plugin") is None or ptxas() is None


def assembled(ptx: Path, target: str) -> dict[str, int]:
    """Return registers and spilled bytes of a kernel, as ptxas reports them."""
    arch = re.search(r"^\.target (\w+)", ptx.read_text(), re.M)
    command = [ptxas(), f"-arch={arch.group(1) if arch else target}", "-v", ptx, "-o", os.devnull]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        assert found is not None, said
        return int(found.group(1))

    return {
        "registers": number(r"Used (\d+) registers"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
    }


def kernels_in(dump: Path, target: str) -> list[dict]:
    """Return what is known of the library's kernels in a compilation's dump."""
    (sequence,) = dump.glob("*thunk_sequence.txt")
    pattern = r"(jaxmem_\w+) grid: .*threads: \[(\d+), .*shared_memory: (\d+) bytes"
    out = {}
    for name, threads, shared in re.findall(pattern, sequence.read_text()):
        (ptx,) = [p for p in dump.glob("*.ptx") if f".entry {name}(" in p.read_text()]
        out[name] = {
            "kernel": name.removeprefix("jaxmem_"),
            "warps": int(threads) // 32,
            **assembled(ptx, target),
            "shared": int(shared),
            "shared_limit": TARGETS[target].shared,
        }
    return list(out.values())


def cases():
    """Yield (name, function, shapes) of what is compiled: the shapes of the lowering tests."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from test_kernels_lowering import QWEN_7B, inputs, scored

    from jaxmem.kernels.attend import attend
    from jaxmem.kernels.attend import pallas as attend_pallas
    from jaxmem.kernels.attend_mass import attend_mass
    from jaxmem.kernels.received import mass, row_mass
    from jaxmem.kernels.select import select
    from jaxmem.rope import rope_1d

    how = {"implementation": "pallas"}
    heads = {64: (1024, 14, 2, 64), 80: (1024, 16, 16, 80), 128: QWEN_7B}
    for dim, shape in heads.items():
        rope = rope_1d(dim)
        for dtype in (jnp.bfloat16, jnp.float32):
            given = inputs((13,), shape, 4096, dtype)
            kind = f"D={dim} {jnp.dtype(dtype).name}"
            for turn, on_load in (("on load", True), ("before", False)):
                yield (
                    f"attend {kind}, rotated {turn}",
                    lambda q, s, rope=rope, on_load=on_load: attend_pallas.attend(
                        q, s, rope=rope, on_load=on_load
                    ),
                    given[:2],
                )
            yield (
                f"attend_mass {kind}",
                lambda q, s, c, rope=rope: attend_mass(q, s, rows=c, last=32, rope=rope, **how),
                (*given[:2], given[3]),
            )

            def sums(q, segments, lse, counted, rope=rope, **options):
                return mass(q, segments, lse, rope=rope, rows=counted, **how, **options)

            given = inputs((), shape, 4096, dtype)
            yield (
                f"row_mass {kind}",
                lambda q, s, lse, rope=rope: row_mass(q, s, lse, rope=rope, segment=0, **how),
                given[:3],
            )
            yield f"mass {kind}", sums, given
            for kind_of_sum in ("A2v2", "caote"):
                weighted = _with(sums, weights=kind_of_sum)
                yield (
                    f"mass {kind_of_sum} {kind}",
                    lambda q, s, lse, c, f=weighted: f(q, s, lse, c, out=q),
                    given,
                )
            if dtype == jnp.bfloat16:
                yield f"mass per head {kind}", _with(sums, reduce="head"), given
            if dim != 80:
                yield f"mass mean_logit {kind}", _with(sums, form="mean_logit"), given
    eight = inputs((), (1024, 32, 8, 128), 4096)
    yield "mass mean_logit D=128 bfloat16, 8 KV heads", _with(sums, form="mean_logit"), eight
    q, segments = inputs((13,), QWEN_7B, 4096)[:2]
    scores = scored(segments, QWEN_7B[0], QWEN_7B[2])
    yield "attend with scores", lambda q, s: attend(q, s, rope=rope_1d(128), **how), (q, scores)
    count = {"rows": np.ones((QWEN_7B[0],), bool), "reduce": "kv_head", **how}
    yield (
        "attend_mass with scores",
        lambda q, s: attend_mass(q, s, rope=rope_1d(128), **count),
        (q, scores),
    )
    one = inputs((), (1, *QWEN_7B[1:]), 4096)[:2]
    yield "attend one row", lambda q, s: attend(q, s, rope=rope_1d(128), **how), one
    yield (
        "attend_mass one row",
        lambda q, s: attend_mass(q, s, rope=rope_1d(128), rows=np.ones((1,), bool), **how),
        one,
    )
    for n in (12_288, 65_536):
        scores = jax.ShapeDtypeStruct((2, n), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
        yield f"select N={n}", lambda s, c, n=n: select(s, c, slots=n // 2, **how), scores
    yield from scans()


def scans():
    """Yield the cases of the kernels that carry a state, forward and in a gradient."""
    import jax.numpy as jnp
    from test_kernels_lowering import DELTA, SSD, delta_shapes, gradient, ssd_shapes

    from jaxmem.kernels.delta import delta
    from jaxmem.kernels.ssd import ssd

    for name, kernel, shapes, sizes in (
        ("ssd", ssd, ssd_shapes, SSD),
        ("delta", delta, delta_shapes, DELTA),
    ):
        run = _with(kernel, implementation="pallas")
        for size in sizes:
            for dtype in (jnp.float32, jnp.bfloat16):
                kind = f"{name} {size[2]}x{size[4]} {jnp.dtype(dtype).name}"
                yield kind, run, shapes(*size, dtype)
                yield f"{kind}, gradient", gradient(run), shapes(*size, dtype)
        yield f"{name} one row", run, shapes(1, *sizes[0][1:])
        yield f"{name} one row, gradient", gradient(run), shapes(1, *sizes[0][1:])


def _with(function, **options):
    return lambda *given, **more: function(*given, **options, **more)


def put_on(target: str):
    """Return what places the shape of an array on a described device; to be called before JAX."""
    os.environ.pop("JAX_PLATFORMS", None)
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    device = topologies.get_topology_desc(
        platform="cuda",
        topology_name=target,
        topology="1x1x1",
        target_config=described(TARGETS[target]),
    ).devices[0]
    place = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    return lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def main(target: str, only: str = "") -> None:
    """Compile the cases whose name begins with `only` for a target; print a line per kernel."""
    if missing():
        sys.exit(f"missing: {NEEDS}.")
    with tempfile.TemporaryDirectory() as root:
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={root}"
        import jax

        put = put_on(target)
        for name, function, shapes in cases():
            if not name.startswith(only):
                continue
            traced = jax.jit(function).trace(*jax.tree.map(put, shapes))
            try:
                traced.lower(lowering_platforms=("cuda",)).compile()
                found = kernels_in(Path(root), target)
            except jax.errors.JaxRuntimeError as error:  # shared memory asked for beyond the limit
                found = [{"error": str(error)[:500]}]
            for record in found:
                about = {"target": target, "case": name, "jax": jax.__version__}
                print(json.dumps(about | record), flush=True)
            for path in Path(root).iterdir():
                path.unlink()


if __name__ == "__main__":
    sys.path[:0] = [
        str(Path(__file__).resolve().parent),
        str(Path(__file__).resolve().parents[2]),
    ]
    main(*sys.argv[1:3])
