"""InfiniPot-V against the released code: kept sets, scores, keys and values of one compression."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Spec
from jaxmem.memory.recent import recent
from jaxmem.memory.video.infinipot_v import infinipot_v, static

BASELINES = ("uniform", "swa")


def pytest_generate_tests(metafunc):
    if "file" in metafunc.fixturenames:
        given = metafunc.config.getoption("--golden")
        folder = metafunc.config.rootpath / "tests/golden/data" if given is None else given
        files = [
            f for f in sorted(Path(folder).glob("infinipot_v/*.npz")) if f.stem not in BASELINES
        ]
        metafunc.parametrize("file", files, ids=[f.stem for f in files])


def seen_of(z, groups: int) -> Chunk:
    """Return every layer's chunk, leading axis L: the file's vision tokens, behind its prefix."""
    first, layers = int(z["system_size"]), int(z["num_layers"])
    k, v = (z[name][:, :, first:].transpose(0, 2, 1, 3) for name in "kv")
    n = k.shape[1]
    index = np.broadcast_to(np.arange(n, dtype=np.int32)[None, :, None], (layers, n, groups))
    kind = np.full(index.shape, tk.VISION, np.int8)
    zero = np.zeros((layers, 1), np.int32)
    tokens = KV(k, v, index[..., None], index, kind)
    return Chunk(tokens, zero, zero + n, np.arange(layers, dtype=np.int32))


def spec_of(z) -> Spec:
    heads = int(z["num_kv_heads"])
    return Spec(int(z["num_layers"]), heads, heads, int(z["head_dim"]), 4)


def start(memory, spec):
    states = [memory.init(spec.at(l)) for l in range(spec.layers)]
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


def test_kept_sets_and_scores(file):
    z = weights.read(file)
    budget = int(z["compress_frame_num"]) * int(z["tokens_per_frame"])
    tar, query = float(np.float32(z["tar_ratio"])), float(z["query_ratio"])
    memory = infinipot_v(
        budget,
        (int(z["grid_height"]), int(z["grid_width"])),
        tar_ratio=tar,
        query_ratio=query,
        pooling=bool(z["adaptive_pooling"]),
        per_kind=False,
    )
    spec, n = spec_of(z), z["van_raw"].shape[2]
    seen = seen_of(z, spec.kv_heads)
    state = jax.jit(jax.vmap(lambda s, x: memory.write(s, x)[0]))(start(memory, spec), seen)
    assert_kept(z, state.slots.tokens)

    # A memory that holds everything shows the scores before compression.
    ample = infinipot_v(
        n, (int(z["grid_height"]), int(z["grid_width"])), pooling=bool(z["adaptive_pooling"]),
        per_kind=False,
    )  # fmt: skip
    full = jax.jit(jax.vmap(lambda s, x: ample.write(s, x)[0]))(start(ample, spec), seen)
    close = {"rtol": 0, "atol": 2e-5}
    norms = np.asarray(full.slots.norm).transpose(0, 2, 1)
    np.testing.assert_allclose(norms, z["van_pooled"], **close)
    if "tar_score" not in z:
        assert tar == 0
        return
    frame, cap = int(z["tokens_per_frame"]), jnp.asarray(budget)
    chosen, scores = jax.jit(
        jax.vmap(lambda slots: static(slots, cap, frame, tar, query, None))
    )(full.slots)  # fmt: skip
    older = z["tar_score"].shape[2]
    np.testing.assert_allclose(np.asarray(scores)[..., :older], z["tar_score"], **close)
    for layer, heads in enumerate(np.asarray(chosen)):
        for head, mask in enumerate(heads):
            np.testing.assert_array_equal(np.flatnonzero(mask), z["tar_indices"][layer, head])


def test_window_baseline(golden):
    path = golden / "infinipot_v" / "swa.npz"
    if not path.exists():
        pytest.skip("no file of the window baseline")
    z = weights.read(path)
    spec = spec_of(z)
    memory = recent(z["kept_indices"].shape[2], sinks=0)
    seen = jax.tree.map(lambda x: x[0], seen_of(z, 1))
    tokens = jax.jit(lambda s, x: memory.write(s, x)[0])(memory.init(spec), seen).slots.tokens
    assert_kept(z, jax.tree.map(lambda x: x[None], tokens))
