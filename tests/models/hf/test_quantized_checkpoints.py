"""Quantised checkpoints load as the matrices that plain loops make of the same numbers."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmem as jm
from jaxmem.models.qwen.tiny_checkpoint import write_tiny

DTYPES = {"float32": "F32", "float16": "F16", "float8_e4m3fn": "F8_E4M3", "int32": "I32"}
LINEAR = (
    "q_proj.weight",
    "up_proj.weight",
    "down_proj.weight",
)  # o_proj and others stay as they are
GROUP, ORDER = 16, (0, 2, 4, 6, 1, 3, 5, 7)


def save_raw(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file with dtypes that the package does not write from numpy."""
    head, data = {}, b""
    for name, x in tensors.items():
        part = np.ascontiguousarray(x).tobytes()
        offsets = [len(data), len(data) + len(part)]
        head[name] = {
            "dtype": DTYPES[x.dtype.name],
            "shape": list(x.shape),
            "data_offsets": offsets,
        }
        data += part
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write(folder: Path, make, settings, block=None):
    """Two directories: one quantised, in two shards, and the plain one that it stands for."""
    plain, quantised = write_tiny(folder / "plain"), write_tiny(folder / "quantised")
    tensors, stored = load_file(plain / "model.safetensors"), {}
    for name, x in tensors.items():
        if name.startswith("model.") and name.endswith(LINEAR):
            parts, tensors[name] = make(name, x, block)
            stored |= parts
        else:
            stored[name] = x
    save_file(tensors, plain / "model.safetensors")
    (quantised / "model.safetensors").unlink()
    shards = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(stored)}
    for file in set(shards.values()):
        save_raw(quantised / file, {k: v for k, v in stored.items() if shards[k] == file})
    (quantised / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    config = json.loads((quantised / "config.json").read_text()) | {"quantization_config": settings}
    (quantised / "config.json").write_text(json.dumps(config))
    return plain, quantised


def fp8(name, x, block):
    scale = np.zeros([-(-n // b) for n, b in zip(x.shape, block, strict=True)], np.float32)
    found, whole = np.zeros(x.shape, ml_dtypes.float8_e4m3fn), np.zeros_like(x)
    for i, j in np.ndindex(scale.shape):
        at = tuple(slice(n * b, (n + 1) * b) for n, b in zip((i, j), block, strict=True))
        scale[i, j] = np.abs(x[at]).max() / 448
        found[at] = (x[at] / scale[i, j]).astype(found.dtype)
        whole[at] = found[at].astype(np.float32) * scale[i, j]
    return {name: found, f"{name}_scale_inv": scale}, whole


def packed(x):
    """Eight columns in 32 bits, in AWQ's order, as its "gemm" layout is written."""
    out = np.zeros((x.shape[0], x.shape[1] // 8), np.uint32)
    for column in range(out.shape[1]):
        for i, place in enumerate(ORDER):
            out[:, column] |= x[:, 8 * column + place].astype(np.uint32) << np.uint32(4 * i)
    return out.view(np.int32)


def awq(name, x, zero_point):
    name, turned = name.removesuffix(".weight"), x.T
    groups = turned.reshape(-1, GROUP, turned.shape[1])
    low, high = groups.min(1), groups.max(1)
    if zero_point is None:
        scale = (np.abs(groups).max(1) / 7).astype(np.float16)
        zeros = np.full(low.shape, 8)
    else:
        scale = ((high - low) / 15).astype(np.float16)
        zeros = np.clip(np.round(-low / scale), 0, 15)
    found = np.clip(np.round(groups / scale[:, None]) + zeros[:, None], 0, 15)
    whole = (found - zeros[:, None]).astype(np.float32) * scale[:, None].astype(np.float32)
    parts = {"qweight": packed(found.reshape(turned.shape)), "scales": scale}
    if zero_point is not None:
        parts["qzeros"] = packed(zeros)
    whole = np.ascontiguousarray(whole.reshape(turned.shape).T)
    return {f"{name}.{key}": x for key, x in parts.items()}, whole


FP8, AWQ = {"quant_method": "fp8"}, {"quant_method": "awq", "bits": 4, "group_size": GROUP}
CASES = {
    "fp8 as released": (fp8, FP8 | {"weight_block_size": [128, 128]}, (128, 128)),
    "fp8, cut blocks": (fp8, FP8 | {"weight_block_size": [20, 32]}, (20, 32)),
    "fp8, nothing said": (fp8, FP8 | {"weight_block_size": None}, (128, 128)),
    "awq": (awq, AWQ | {"zero_point": True, "version": "gemm"}, True),
    "awq, no zeros": (awq, AWQ | {"zero_point": False, "version": "GEMM"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_loads_as_what_it_stands_for(tmp_path, case):
    make, settings, block = CASES[case]
    plain, quantised = write(tmp_path, make, settings, block)
    expected, found = (jm.load(folder, dtype="float32") for folder in (plain, quantised))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
        expected.params,
        found.params,
    )
    assert jm.load(quantised).params["decoder"]["layers"]["up"]["kernel"].dtype == "bfloat16"


@pytest.mark.parametrize("case", ["fp8 as released", "awq"])
def test_an_adapter_on_a_quantised_base(tmp_path, case):
    make, settings, block = CASES[case]
    folders = write(tmp_path, make, settings, block)
    adapter, at = tmp_path / "adapter", "base_model.model.model.layers.1.mlp.up_proj.lora_"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 1}')
    kernel = jm.load(folders[0], dtype="float32").params["decoder"]["layers"]["up"]["kernel"][1]
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal(s).astype("f") for s in ((2, len(kernel)), (kernel.shape[1], 2)))
    save_file(
        {f"{at}A.weight": a, f"{at}B.weight": b},
        adapter / "adapter_model.safetensors",
    )
    for folder in folders:
        found = jm.load(folder, adapter=adapter, dtype="float32").params["decoder"]["layers"]
        np.testing.assert_allclose(found["up"]["kernel"][1], kernel + (b @ a).T / 2, atol=1e-5)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "quantised by compressed-tensors"),
        (AWQ | {"version": "gemv"}, "quantised by awq, version gemv, 4 bits"),
        (AWQ | {"bits": 8}, "quantised by awq, version gemm, 8 bits"),
    ],
)
def test_others_are_refused_in_one_sentence(tmp_path, settings, said):
    folder = write_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "preprocessor_config.json"):
        (folder / name).unlink()  # it is looked at first
    with pytest.raises(ValueError, match=said) as caught:
        jm.load(folder)
    assert "use the checkpoint it was made from" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case, part", [("fp8 as released", "_scale_inv"), ("awq", "scales")])
def test_a_part_that_is_missing_is_named(tmp_path, case, part):
    make, settings, block = CASES[case]

    def cut(name, x, block):
        parts, whole = make(name, x, block)
        return {k: v for k, v in parts.items() if not k.endswith(part)}, whole

    with pytest.raises(ValueError, match=r"layers\.0\..*are missing.*download .* again"):
        jm.load(write(tmp_path, cut, settings, block)[1])


def test_ten_tensors_at_most_are_named(tmp_path):
    folder = write_tiny(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    other = {k.replace("mlp", "mlp.base").replace("blocks", "block"): v for k, v in tensors.items()}
    save_file(other, folder / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        jm.load(folder)
    first, *lines = str(caught.value).splitlines()
    changed = 2 * len(set(other) - set(tensors))
    assert first.startswith("the weights do not fit config.json: use the config.json and")
    assert f"{changed} tensor(s) differ, 10 of them are:" in first and len(lines) == 10


@pytest.mark.parametrize("wrong", ["x", 128, [128], [0, 128], [128.0, 128]], ids=repr)
def test_blocks_are_two_whole_numbers(tmp_path, wrong):
    make, settings, block = CASES["fp8 as released"]
    _, folder = write(tmp_path, make, settings | {"weight_block_size": wrong}, block)
    with pytest.raises(ValueError, match="^weight_block_size is .*, expected two whole numbers"):
        jm.load(folder)
