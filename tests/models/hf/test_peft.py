"""Adapters that were trained here, as PEFT's directories: read again, they are what was merged."""

import json
import re
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import (
    FAMILIES,
    write_checkpoint,
    write_ma2mba,
    write_qwen2_vl,
    write_qwen3_5,
    write_smolvlm,
)
from safetensors.numpy import load_file

import jaxmem as jm
from jaxmem.models.hf.checkpoint import rename
from jaxmem.models.hf.peft import write
from jaxmem.models.qwen.tiny_checkpoint import write_tiny
from jaxmem.training import lora

RANK, ALPHA = 2, 3
WRITERS = {
    "qwen2_vl": write_qwen2_vl, "own_qwen3_5": write_qwen3_5, "smolvlm": write_smolvlm,
    "ma2mba": write_ma2mba, "tiny": write_tiny,
}  # fmt: skip


def checkpoint_of(name, golden, folder):
    return WRITERS[name](folder) if name in WRITERS else write_checkpoint(golden, name, folder)


def drawn(model, at=lora.LINEAR):
    """Adapters whose b is not 0."""
    rng, one = np.random.default_rng(0), jax.random.key(0)
    shapes = jax.eval_shape(lambda p, k: lora.init(p, k, rank=RANK, at=at), model.params, one)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


def assert_same(one, other):
    one, other = (jax.tree_util.tree_leaves_with_path(x) for x in (one, other))
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, x), (_, y) in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=str(path))


def with_slow(names, slow):
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


# Those of the slow ones are there in another size or family.
@pytest.mark.parametrize(
    "name",
    with_slow((*WRITERS, *FAMILIES), ("qwen3_5", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "ma2mba")),
)
def test_what_is_written_is_read_as_what_is_merged(golden, tmp_path, name):
    """All linear maps of the decoder, and the encoder's matrices, those of patches among them."""
    base = checkpoint_of(name, golden, tmp_path / "base")
    model = jm.load(base, dtype="float32")
    at = (*lora.LINEAR, "vision.patch", "vision.blocks.fc1")
    at = at if "fc1" in model.params["vision"]["blocks"] else (*lora.LINEAR, "vision.blocks.gate")
    adapters = drawn(model, at)
    found = write(tmp_path / "mine", adapters, model, base=base, alpha=ALPHA)
    merged = lora.merge(model.params, adapters, alpha=ALPHA)
    assert_same(jm.load(base, adapter=found, dtype="float32").params, merged)
    assert jm.load(found, dtype="float32").name == "base+mine"  # it knows its base
    table, renames, *_ = model.encode.of.names
    known = {name for weight in table.values() for name in weight.names}
    config = json.loads((found / "adapter_config.json").read_text())
    for key in load_file(found / "adapter_model.safetensors"):
        module = key.removeprefix("base_model.model.").split(".lora_")[0]
        assert rename(f"{module}.weight", renames) in known
        assert re.fullmatch(config["target_modules"], module)
    changed = sum(
        bool((x != y).any())
        for x, y in zip(jax.tree.leaves(merged), jax.tree.leaves(model.params), strict=True)
    )
    assert changed == len(jax.tree.leaves(adapters)) // 2


def test_other_names_of_the_same_matrices_are_targets(tmp_path):
    """As newer versions of transformers call them; never those of another part."""
    base = write_tiny(tmp_path / "base")
    model = jm.load(base, dtype="float32")
    found = write(tmp_path, drawn(model, lora.QUERIES), model, base=base, alpha=1)
    target = json.loads((found / "adapter_config.json").read_text())["target_modules"]
    for root in ("model.", "model.language_model."):
        assert re.fullmatch(target, f"{root}layers.12.self_attn.v_proj")
    for other in ("audio_tower.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"):
        assert not re.fullmatch(target, other)


@pytest.mark.parametrize(
    "name, root",
    [
        ("tiny", "model.language_model."), ("qwen2_5_omni", "model.language_model."),
        ("llava_onevision", "model.language_model."), ("qwen3_vl", "model.language_model."),
        ("smolvlm", "model.text_model."), ("ma2mba", "language_model.backbone."),
    ],
)  # fmt: skip
def test_names_are_those_of_the_modules(golden, tmp_path, name, root):
    """Of transformers 5, or where it has no such model those that the base stores."""
    base = checkpoint_of(name, golden, tmp_path / "base")
    model = jm.load(base, abstract=True)
    states, path = name == "ma2mba", ("layers", "q")
    path = ("mixers", "0", "mixer", "in") if states else path
    adapters = drawn(model, (f"decoder.{'.'.join(path)}",))
    write(tmp_path / "mine", adapters, model, base=base, alpha=1)
    names = load_file(tmp_path / "mine" / "adapter_model.safetensors")
    module = "mixer.in_proj" if states else "self_attn.q_proj"
    found = names[f"base_model.model.{root}layers.1.{module}.lora_A.weight"]
    pair = reduce(lambda tree, key: tree[key], path, adapters["decoder"])
    np.testing.assert_array_equal(found, pair["a"][1].T)
    assert len(names) == 2 * model.decoder.layers


def test_what_peft_cannot_hold(tmp_path):
    base = write_qwen3_5(tmp_path / "base")
    model = jm.load(base, abstract=True)
    odd = {"decoder": {"w": {"a": np.ones((4, 2)), "b": np.ones((2, 4))}}}
    with pytest.raises(
        ValueError, match=r"cannot hold these adapters: 1 of them:\n  decoder.w: is"
    ):
        write(tmp_path / "mine", odd, model, base=base, alpha=1)
    odd["decoder"]["v"] = {"a": np.ones((4, 3)), "b": np.ones((3, 4))}
    with pytest.raises(ValueError, match=r"one rank, these have \[2, 3\]"):
        write(tmp_path / "mine", odd, model, base=base, alpha=1)
    other = write_tiny(tmp_path / "other")
    with pytest.raises(ValueError, match="decoder.layers.q: .*other has no model.language_model.l"):
        write(tmp_path / "mine", drawn(model, ("*layers.q",)), model, base=other, alpha=1)
    tiny = jm.load("tiny", abstract=True)
    with pytest.raises(
        ValueError, match="tiny has no checkpoint that PEFT could load: .*lora.save"
    ):
        write(tmp_path / "mine", drawn(tiny), tiny, base="tiny", alpha=1)
    assert not (tmp_path / "mine").exists()
