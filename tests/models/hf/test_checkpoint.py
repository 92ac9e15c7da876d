"""Reading checkpoint directories: layouts of weights, shards, renames, and every error at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.decoder.placing import weight_places
from jaxmem.models.hf import checkpoint as ck
from jaxmem.models.hf import weights as ws
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.weights import Weight
from jaxmem.rope import rope_1d

CONFIG = DecoderConfig(3, 24, 4, 2, 8, 32, 30, rope_1d(8), qkv_bias=True, qk_norm=True)
TABLE = ws.decoder_table(CONFIG)


def stored(table, dtype=np.float32, seed=0):
    """Random tensors for every name of a table."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=weight.shape).astype(dtype)
        for weight in table.values()
        for name in weight.names
    }


def write(folder, tensors, shards=1):
    """Save tensors as one file, or dealt out over shards with an index."""
    folder.mkdir(exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {name: f"part-{i % shards}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def same(tree, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), tree, other
    )


def test_decoder_tree_is_the_decoders(tmp_path):
    tensors = stored(TABLE)
    params = ck.load(write(tmp_path, tensors), TABLE)
    expected = jax.eval_shape(lambda: init_decoder(CONFIG, jax.random.key(0)))
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, expected)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ws.abstract(TABLE)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    for layer in range(CONFIG.layers):
        at = f"model.layers.{layer}."
        got = jax.tree.map(lambda x, l=layer: np.asarray(x[l]), params["layers"])
        np.testing.assert_array_equal(got["down"]["kernel"], tensors[f"{at}mlp.down_proj.weight"].T)
        np.testing.assert_array_equal(got["k"]["bias"], tensors[f"{at}self_attn.k_proj.bias"])
        np.testing.assert_array_equal(
            got["q_norm"]["scale"], tensors[f"{at}self_attn.q_norm.weight"]
        )
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["lm_head.weight"].T)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_are_the_single_file(tmp_path, shards):
    tensors = stored(TABLE)
    one = ck.load(write(tmp_path / "one", tensors), TABLE)
    same(one, ck.load(write(tmp_path / "many", tensors, shards), TABLE))


def test_a_shard_that_is_not_there(tmp_path):
    write(tmp_path, stored(TABLE), 3)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks the shards part-1\.safetensors"):
        ck.load(tmp_path, TABLE)


def test_turns(tmp_path):
    rng = np.random.default_rng(1)
    conv = rng.normal(size=(5, 3, 2, 4)).astype(np.float32)
    fused = rng.normal(size=(6, 3)).astype(np.float32)
    probe = rng.normal(size=(1, 1, 4)).astype(np.float32)
    folder = write(tmp_path, {"conv": conv, "fused": fused, "probe": probe})
    table = {
        "a.conv": Weight("conv", conv.shape, "conv"),
        "a.patch": Weight("conv", conv.shape, "patch"),
        "k": Weight("fused", (6, 3), "linear", rows=(2, 4)),
        "b": Weight("probe", (1, 1, 4), "flat"),
    }
    params = ck.load(folder, table)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ws.abstract(table))
    for o, i, y, x in np.ndindex(conv.shape):
        assert params["a"]["conv"][y, x, i, o] == conv[o, i, y, x]
        assert params["a"]["patch"][(i * 2 + y) * 4 + x, o] == conv[o, i, y, x]
    np.testing.assert_array_equal(params["k"], fused[2:4].T)
    np.testing.assert_array_equal(params["b"], probe.reshape(-1))


@pytest.mark.parametrize("source", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("target", [None, jnp.float32, jnp.bfloat16])
def test_dtypes(tmp_path, source, target):
    table = {"x": Weight("x", (4, 3), "linear"), "s": Weight("s.{}", (5,), layers=2)}
    tensors = stored(table, source)
    params = ck.load(write(tmp_path, tensors), table, dtype=target)
    kept = np.float32 if source is np.float64 else source
    final = jnp.dtype(kept if target is None else target)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {final}
    np.testing.assert_array_equal(np.asarray(params["x"]), tensors["x"].T.astype(final))
    np.testing.assert_array_equal(np.asarray(params["s"][1]), tensors["s.1"].astype(final))


def test_everything_wrong_is_reported_at_once(tmp_path):
    tensors = stored(TABLE)
    del tensors["model.norm.weight"]
    del tensors["model.layers.2.mlp.up_proj.weight"]
    tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros((7,), np.float32)
    tensors["model.embed_tokens.weight"] = np.zeros((30, 24), np.int32)
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    tensors["lora.weight"] = np.zeros((2,), np.float32)
    with pytest.raises(ValueError) as caught:
        ck.load(write(tmp_path, tensors), TABLE)
    text = str(caught.value)
    assert "6 tensor(s) differ" in text
    for line in (
        "model.norm.weight: missing, expected shape (24,)",
        "model.layers.2.mlp.up_proj.weight: missing, expected shape (32, 24)",
        "model.layers.1.self_attn.q_proj.bias: has shape (7,), expected (32,)",
        "model.embed_tokens.weight: has dtype I32, known are F64, F32, F16, BF16",
        "model.layers.3.mlp.up_proj.weight: unexpected, shape (2, 2)",
        "lora.weight: unexpected, shape (2,)",
    ):
        assert line in text


def test_ignored_tensors(tmp_path):
    tensors = stored(TABLE)
    params = ck.load(write(tmp_path / "plain", tensors), TABLE)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros((4,), np.float32)
    tensors["vision.embeddings.position_ids"] = np.zeros((1, 4), np.int64)
    tensors["decoder.x"] = np.zeros((1,), np.float32)
    folder = write(tmp_path / "more", tensors)
    same(params, ck.load(folder, TABLE, ignore=("decoder.*",)))
    with pytest.raises(ValueError, match=r"1 tensor\(s\) differ"):
        ck.load(folder, TABLE)


def test_a_tied_decoder_needs_no_head(tmp_path):
    from dataclasses import replace

    table = ws.decoder_table(replace(CONFIG, tied=True))
    assert set(TABLE) - set(table) == {"head.kernel"}
    folder = write(tmp_path, stored(TABLE))
    assert "head" not in ck.load(folder, table, ignore=("lm_head.weight",))
    with pytest.raises(ValueError, match=r"lm_head\.weight: unexpected"):
        ck.load(folder, table)


RENAMES = (
    ("thinker.", ""),
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


@pytest.mark.parametrize(
    "older",
    [
        lambda n: f"thinker.{n}",
        lambda n: n.replace("model.", "model.language_model.", 1),
        lambda n: f"language_model.{n}",
        lambda n: f"thinker.language_model.{n}",
    ],
)
def test_prefix_renames(tmp_path, older):
    tensors = stored(TABLE)
    params = ck.load(write(tmp_path / "new", tensors), TABLE)
    old = write(tmp_path / "old", {older(name): x for name, x in tensors.items()})
    same(params, ck.load(old, TABLE, renames=RENAMES))


def test_two_names_for_one_tensor(tmp_path):
    tensors = stored({"x": Weight("x", (2,))})
    folder = write(tmp_path, {**tensors, "thinker.x": tensors["x"]})
    with pytest.raises(ValueError, match=r"x: stored twice, as (thinker\.)?x and as (thinker\.)?x"):
        ck.load(folder, {"x": Weight("x", (2,))}, renames=RENAMES)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"pickled weights only \(pytorch_model\.bin\)\. Unpick"):
        ck.load(tmp_path, TABLE)
    write(tmp_path, stored(TABLE))  # safetensors beside it are read
    ck.load(tmp_path, TABLE)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match="no weights in"):
        ck.load(tmp_path, TABLE)
    with pytest.raises(ValueError, match=r"no config\.json in"):
        read_json(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_json(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list, expected a JSON object"):
        read_json(tmp_path)
    write(tmp_path, stored(TABLE))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        ck.load(tmp_path, TABLE)
    with pytest.raises(ValueError, match="has an index without shards"):
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "model.safetensors.index.json").write_text("{}")
        ck.load(tmp_path, TABLE)
    for found, said in (([1], r"weight_map is \[1\] in "), ({"a": 3}, "lacks the shards 3")):
        index = json.dumps({"weight_map": found})
        (tmp_path / "model.safetensors.index.json").write_text(index)
        with pytest.raises(ValueError, match=said):
            ck.load(tmp_path, TABLE)


def test_weight_names_and_layers_go_together():
    with pytest.raises(ValueError, match="give `layers` exactly where"):
        Weight("layers.{}.x", (2,))
    with pytest.raises(ValueError, match="give `layers` exactly where"):
        Weight("x", (2,), layers=2)


def test_placement_on_one_device(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    place = weight_places(mesh)
    params = ck.load(write(tmp_path, stored(TABLE)), TABLE, sharding=place)
    assert params["layers"]["q"]["kernel"].sharding.is_fully_replicated
    assert params["norm"]["scale"].sharding == NamedSharding(mesh, PartitionSpec())


SPLIT = """
import sys, jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
sys.path.insert(0, {tests!r})
import test_checkpoint as t
folder = t.write(__import__("pathlib").Path(sys.argv[1]), t.stored(t.TABLE), 2)
mesh = Mesh(np.array(jax.devices()), ("model",))
place = t.weight_places(mesh)
split = t.ck.load(folder, t.TABLE, sharding=place)
t.same(split, t.ck.load(folder, t.TABLE))
q, down = split["layers"]["q"]["kernel"], split["layers"]["down"]["kernel"]
assert q.sharding.spec == P(None, None, "model"), q.sharding
assert split["layers"]["q"]["bias"].sharding.spec == P(None, "model")
assert q.addressable_shards[0].data.shape == (3, 24, 16)
assert down.addressable_shards[0].data.shape == (3, 16, 24)
assert len(split["norm"]["scale"].addressable_shards) == 2
try:
    t.ck.load(folder, t.TABLE, sharding=t.ws.mesh_rule(mesh, [("layers.q.kernel", P("model"))]))
except ValueError as error:
    assert "layers.q.kernel: shape (3, 24, 32)" in str(error), error
else:
    raise AssertionError("three layers were cut over two devices")
"""


def test_placement_on_two_devices(tmp_path):
    """In a process of its own, since the number of devices is fixed at the first use."""
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = SPLIT.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


STATES = """
import sys, jax, numpy as np
sys.path.insert(0, {tests!r})
from checkpoints import write_ma2mba
import jaxmem as jm
from jaxmem.decoder.placing import weight_places
folder = write_ma2mba(__import__("pathlib").Path(sys.argv[1]))
found = []
for mesh in (None, jm.parse_mesh("model=2")):
    place = None if mesh is None else weight_places(mesh)
    model = jm.load(folder, dtype="float32", sharding=place)
    program = jm.compile(model, jm.Recent(4), chunk_pieces=2, mesh=mesh)
    bound = jm.bind(program, model.params)
    begun = jm.start(program, bound)
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 1, 16, 16, 3), np.uint8)
    samples, valid = np.zeros((2, 1), np.float32), np.ones(2, bool)
    chunks = [model.preprocess(part, samples, valid, None, 0) for part in frames]
    chunks = jax.tree.map(lambda *x: np.stack(x), *chunks)
    carry = jm.stream(bound, begun, chunks, program=program)
    found.append((model.params["decoder"]["mixers"][0]["mixer"], carry, begun))
mixer, carry, begun = found[1]
assert mixer["in"]["kernel"].addressable_shards[0].data.shape == (3, 32, 152 // 2)
assert mixer["out"]["kernel"].addressable_shards[0].data.shape == (3, 64 // 2, 32)
assert begun.states[0].ssm.addressable_shards[0].data.shape == (3, 8 // 2, 8, 8)
assert mixer["a_log"].addressable_shards[0].data.shape == (3, 8)
for one, other in zip(*(jax.tree.leaves(carry.states) for _, carry, _ in found), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())
assert np.abs(found[0][1].states[0].ssm).max() > 0.1
"""


@pytest.mark.slow
def test_layers_with_a_state_on_two_devices(tmp_path):
    """Weights and states cut over two devices stream what uncut ones do."""
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = STATES.format(tests=str(Path(__file__).parents[2] / "support"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


PEAK = """
import resource, sys, jax.numpy as jnp
from jaxmem.models.hf import checkpoint as ck, weights as ws
layers, width = 8, 1024
table = ws.dense("w", "w.{}", width, width, bias=False, layers=layers)
tiny = ws.dense("w", "v.{}", width, width, bias=False, layers=1)
ck.load(sys.argv[1] + "/tiny", tiny)  # what compiling needs
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
params = ck.load(sys.argv[1] + "/big", table)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_host_memory_peak(tmp_path):
    """Peak growth is the weights (32 MiB: the device is the host here) and two 8 MiB shards."""
    blocks = {f"w.{i}.weight": np.ones((1024, 1024), np.float32) for i in range(8)}
    write(tmp_path / "big", blocks, shards=4)
    write(tmp_path / "tiny", {"v.0.weight": blocks["w.0.weight"]})
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 32 + 2 * 8 + 8, done.stdout
