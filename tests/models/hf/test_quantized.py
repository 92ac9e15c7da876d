"""Quantised checkpoints against weights that were quantised here, number by number."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors
from test_checkpoint import CONFIG, stored, write

from jaxmem.models.hf import checkpoint as ck
from jaxmem.models.hf import quantized
from jaxmem.models.hf.weights import decoder_table

TABLE = decoder_table(CONFIG)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_projection(name):
    return name.endswith(".weight") and name.split(".")[-2] in PROJECTIONS


def save(folder, tensors, config):
    """Write tensors and a config.json; float8 goes through torch's file format by its bytes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, body = {}, b""
    kinds = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "float16": "F16", "int32": "I32"}
    for name, x in tensors.items():
        offsets = [len(body), len(body) + x.nbytes]
        header[name] = {"dtype": kinds[x.dtype.name], "shape": x.shape, "data_offsets": offsets}
        body += np.ascontiguousarray(x).tobytes()
    text = json.dumps(header).encode()
    size = len(text).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(size + text + body)
    return folder


def equal(params, plain, folder):
    """Assert that loaded weights are those of plain tensors."""
    other = ck.load(write(folder, plain), TABLE)
    for a, b in zip(ck.jax.tree.leaves(params), ck.jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("block", [[16, 8], [128, 128], None], ids=str)
def test_fp8_blocks(tmp_path, block):
    """Every weight is its float8 numbers times the factor of their block; ends are cut."""
    tensors, plain = stored(TABLE), {}
    rng, kept = np.random.default_rng(0), {}
    for name, x in tensors.items():
        if not is_projection(name):
            kept[name] = plain[name] = x
            continue
        small = x.astype(ml_dtypes.float8_e4m3fn)
        high, wide = block or x.shape
        factors = rng.uniform(0.5, 2, (-(-x.shape[0] // high), -(-x.shape[1] // wide)))
        factors = factors.astype(np.float32)
        kept[name], kept[f"{name}_scale_inv"] = small, factors if block else factors.reshape(())
        plain[name] = small.astype(np.float32)
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                plain[name][i, j] *= factors[i // high, j // wide]
    settings = {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": "dynamic"}
    folder = save(tmp_path / "fp8", kept, {"quantization_config": settings})
    equal(ck.load(folder, TABLE), plain, tmp_path / "plain")


def test_awq(tmp_path):
    """Eight numbers of 4 bits in an int32, in AWQ's order of columns, by group of inputs."""
    tensors, plain, kept, group = stored(TABLE), {}, {}, 8
    rng = np.random.default_rng(1)
    for name, x in tensors.items():
        if not is_projection(name):
            kept[name] = plain[name] = x
            continue
        outputs, inputs = x.shape
        numbers = rng.integers(0, 16, (inputs, outputs))
        zeros = rng.integers(0, 16, (inputs // group, outputs))
        scales = rng.uniform(0.01, 0.1, (inputs // group, outputs)).astype(np.float16)
        weight = np.empty((outputs, inputs), np.float32)
        for o in range(outputs):
            for i in range(inputs):
                g = i // group
                weight[o, i] = (numbers[i, o] - zeros[g, o]) * np.float32(scales[g, o])
        plain[name], base = weight, name.removesuffix(".weight")
        kept[f"{base}.qweight"], kept[f"{base}.qzeros"] = packed(numbers), packed(zeros)
        kept[f"{base}.scales"] = scales
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    folder = save(tmp_path / "awq", kept, {"quantization_config": settings})
    equal(ck.load(folder, TABLE), plain, tmp_path / "plain")


def packed(numbers):
    """Pack columns of 4 bits as AWQ does: the i-th bits hold column (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    rows, columns = numbers.shape
    out = np.zeros((rows, columns // 8), np.uint32)
    for column in range(columns // 8):
        for i, place in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            out[:, column] |= numbers[:, 8 * column + place].astype(np.uint32) << np.uint32(4 * i)
    return out.view(np.int32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"'gptq' \(bits 4\)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, r"'awq' \(bits 4 version gemv\)"),
        ({"bits": 3}, "a method that it does not name"),
    ],
)
def test_other_kinds_are_refused_in_one_sentence(tmp_path, settings, message):
    folder = save(tmp_path / "x", {"a": np.zeros(8, np.int32)}, {"quantization_config": settings})
    with pytest.raises(ValueError, match=message + ".*take the repository without") as error:
        ck.load(folder, TABLE)
    assert "\n" not in str(error.value)


def test_names_that_differ_are_counted_and_ten_are_shown(tmp_path):
    folder = write(tmp_path / "x", {"a": np.zeros(8, np.float32)})
    with pytest.raises(ValueError, match="use a whole checkpoint of this family") as error:
        ck.load(folder, TABLE)
    lines = str(error.value).splitlines()
    many = sum(len(weight.names) for weight in TABLE.values()) + 1
    assert f"{many} tensor(s) differ" in lines[0] and len(lines) == 12
    assert lines[-1] == f"  and {many - 10} more"


def test_a_view_of_a_file_is_what_safetensors_reads(tmp_path):
    tensors = stored(TABLE)
    folder = write(tmp_path / "x", tensors)
    whole = safetensors.load_file(folder / "model.safetensors")
    for item in ck.stored_tensors(folder):
        np.testing.assert_array_equal(quantized.raw(item), whole[item.key])
