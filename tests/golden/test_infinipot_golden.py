"""InfiniPot-V against the released code: kept sets, scores, keys and values of one compression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from golden_files import cases, found

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.base import Spec
from jaxmem.memory.baselines import Recent
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.video.infinipot_v import InfiniPotV

BASELINES = ("uniform", "swa")


def pytest_generate_tests(metafunc):
    if "file" in metafunc.fixturenames:
        files = [f for f in found(metafunc.config, "infinipot_v/*.npz") if f.stem not in BASELINES]
        metafunc.parametrize("file", cases(metafunc.config, files))


def seen_of(z, groups: int) -> Chunk:
    """Return every layer's chunk, leading axis L: the file's vision tokens, behind its prefix."""
    first, layers = int(z["system_size"]), int(z["num_layers"])
    k, v = (z[name][:, :, first:].transpose(0, 2, 1, 3) for name in "kv")
    n = k.shape[1]
    index = np.broadcast_to(np.arange(n, dtype=np.int32)[None, :, None], (layers, n, groups))
    kind = np.full(index.shape, tk.VISION, np.int8)
    return Chunk(KV(k, v, index[..., None], index, kind), np.full((layers, 1), n, np.int32))


def spec_of(z) -> Spec:
    """Return what the memory knows of the file's model; a decoder's width is not asked."""
    frame = int(z["grid_height"]), int(z["grid_width"])
    heads, dim = int(z["num_kv_heads"]), int(z["head_dim"])
    return Spec(int(z["num_layers"]), heads, dim, heads * dim, frame=frame)


def start(memory, spec):
    states = [memory.init(spec, l) for l in range(spec.layers)]
    return jax.tree.map(lambda *x: jnp.stack(x), *states)


def assert_kept(z, tokens) -> None:
    first = int(z["system_size"])
    order = np.asarray(tokens.index).transpose(0, 2, 1)
    np.testing.assert_array_equal(
        np.broadcast_to(order, z["kept_indices"].shape), z["kept_indices"]
    )
    for ours, theirs in ((tokens.k, "k_new"), (tokens.v, "v_new")):
        np.testing.assert_array_equal(
            np.asarray(ours).transpose(0, 2, 1, 3), z[theirs][:, :, first:]
        )


def decimal(x) -> float:
    """Return the number that the released code was given, which the file holds in float32."""
    return float(str(x[()]))


def test_kept_sets_and_scores(file):
    z = weights.read(file)
    budget = int(z["compress_frame_num"]) * int(z["tokens_per_frame"])
    options = {
        "tar_ratio": decimal(z["tar_ratio"]),
        "query_ratio": decimal(z["query_ratio"]),
        "pooling": bool(z["adaptive_pooling"]),
        "audio_share": None,
        "rotated": False,  # the files hold keys as they are compared
    }
    memory = InfiniPotV(budget, **options)
    spec, n = spec_of(z), z["van_raw"].shape[2]
    assert memory.frame_of(spec) == int(z["tokens_per_frame"])
    seen = seen_of(z, spec.kv_heads)
    write = lambda memory: jax.jit(jax.vmap(lambda s, x: memory.write(spec, s, x)[0]))
    state = write(memory)(start(memory, spec), seen)
    assert_kept(z, state.slots.kv)

    # A memory that holds everything shows the scores before compression.
    ample = InfiniPotV(n, **options)
    full = write(ample)(start(ample, spec), seen)
    close = {"rtol": 0, "atol": 2e-5}
    norms = np.asarray(full.slots.norm).transpose(0, 2, 1)
    np.testing.assert_allclose(norms, z["van_pooled"], **close)
    if "tar_score" not in z:
        assert memory.tar_ratio == 0
        return
    chosen, scores = jax.jit(
        jax.vmap(lambda slots: memory.temporal(spec, slots, jnp.asarray(budget)))
    )(full.slots)  # fmt: skip
    older = z["tar_score"].shape[2]
    np.testing.assert_allclose(np.asarray(scores)[..., :older], z["tar_score"], **close)
    for layer, heads in enumerate(np.asarray(chosen)):
        for head, mask in enumerate(heads):
            theirs = z["tar_indices"][layer, head]
            np.testing.assert_array_equal(np.flatnonzero(mask), theirs[theirs >= 0])


def test_window_baseline(golden):
    path = golden / "infinipot_v" / "swa.npz"
    if not path.exists():
        pytest.skip("no file of the window baseline")
    z = weights.read(path)
    spec = spec_of(z)
    memory = Recent(z["kept_indices"].shape[2], sinks=0)
    seen = jax.tree.map(lambda x: x[0], seen_of(z, 1))
    write = jax.jit(lambda s, x: memory.write(spec, s, x)[0])
    tokens = write(memory.init(spec), seen).slots.kv
    assert_kept(z, jax.tree.map(lambda x: x[None], tokens))
