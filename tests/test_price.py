"""Prices: counts against closed forms, published numbers of parameters, and the whole command."""

import json
import math
from functools import cache
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.experiments.benchmark import __main__ as benchmark
from jaxmem.experiments.benchmark import flops as _flops
from jaxmem.experiments.benchmark import price as _price
from jaxmem.experiments.benchmark.price import PriceConfig, nbytes
from jaxmem.experiments.benchmark.price_table import GPUS, Step, bound
from jaxmem.experiments.benchmark.shapes import FAMILIES, names, open_shapes, published
from jaxmem.experiments.memories import Name
from jaxmem.loop import spec_of
from jaxmem.memory import base
from jaxmem.memory.full import full

PARAMETERS = {  # of the safetensors files' index, or the model card
    "qwen2.5-vl:3b": 3_754_622_976,
    "qwen2.5-vl:7b": 8_292_166_656,
    "qwen2.5-vl:32b": 33_452_718_336,
    "qwen2.5-vl:72b": 73_410_777_344,
    "qwen3-vl:2b": 2_127_532_032,
    "qwen3-vl:4b": 4_437_815_808,
    "qwen3-vl:8b": 8_767_123_696,
    "qwen3-vl:32b": pytest.approx(33.4e9, rel=2e-3),
    "qwen2.5-omni:3b": pytest.approx(4.70e9, rel=2e-3),
    "qwen2.5-omni:7b": pytest.approx(8.93e9, rel=2e-3),
    "llava-onevision:0.5b": pytest.approx(0.894e9, rel=2e-3),
    "llava-onevision:7b": pytest.approx(8.03e9, rel=2e-3),
    "llava-onevision:72b": pytest.approx(73.2e9, rel=2e-3),
}
TINY = {  # settings that fit the tiny golden checkpoints
    "qwen2_5_vl": {"height": 32, "width": 48},
    "qwen3_vl": {"height": 32, "width": 48},
    "qwen2_5_omni_thinker": {"height": 32, "width": 48, "fps": 2.0},
    "llava_onevision": {},
}


def test_every_name_has_the_published_parameters():
    assert set(names()) == set(PARAMETERS)
    for name, expected in PARAMETERS.items():
        shapes = open_shapes(name, jnp.bfloat16)
        assert nbytes(shapes.params) / 2 == expected, name
    assert all(published(family)["source"] for family in FAMILIES)


def test_flops_of_products_and_loops():
    x, w = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((4, 5, 5), jnp.float32)

    def looped(x, w):
        return jax.lax.fori_loop(0, 4, lambda i, h: jax.jit(jnp.matmul)(h, w[i]), x)

    def branched(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[0])

    assert _flops.count(looped, x, w) == 4 * 2 * 3 * 5 * 5
    assert _flops.count(jax.checkpoint(branched), x, w) == 2 * 2 * 3 * 5 * 5
    batched = lambda w: jnp.einsum("nij,nkj->nik", w, w)
    assert _flops.count(batched, w) == 2 * 4 * 5 * 5 * 5

    def convolved(x):
        kernel = jnp.ones((3, 5, 7))
        return jax.lax.conv_general_dilated(
            x[None], kernel, (1,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
        )

    assert _flops.count(convolved, x) == 2 * 3 * 7 * 3 * 5


price = cache(_price.price)


@cache
def counted(config):
    """A price without compiling its programs: operations, bytes read and bytes held."""

    def step(lowered, flops, *, held, read):
        return Step(flops, 0.0, held, 0, held, read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_price, "_step", step)
        return _price.price(config)


def tiny(golden, name, **more):
    folder = golden / "hf" / name
    if not folder.exists():
        pytest.skip(f"no {folder}")
    return PriceConfig(str(folder), budget=64, dtype="float32", **{**TINY[name], **more})


@pytest.mark.parametrize("name", TINY)
def test_a_chunk_by_hand(golden, name):
    """Decoder, encoder and attention of a chunk and of a question, in closed form."""
    config = tiny(golden, name, memory="full")
    found, shapes = counted(config), open_shapes(config.model, jnp.float32)
    decoder, rows, slots = shapes.config.decoder, found.rows, config.budget
    kernels = sum(
        leaf["kernel"].size
        for leaf in shapes.params["decoder"]["layers"].values()
        if "kernel" in leaf
    )
    wide = 4 * decoder.layers * decoder.heads * decoder.head_dim
    expected = 2 * kernels * rows + wide * rows * (slots + rows)
    assert expected < found.chunk.flops
    encoders = found.chunk.flops - expected
    parts = [v for k, v in shapes.params.items() if k not in ("decoder", "newline")]
    weights = sum(x.size for x in jax.tree.leaves(parts))
    patches = {"llava_onevision": 25}.get(name, 4) * rows
    assert 0.2 * 2 * weights * rows < encoders < 8 * 2 * weights * patches
    question = config.question
    head = 2 * decoder.width * decoder.vocab
    asked = 2 * kernels * question + wide * question * (slots + question + 1) + head
    assert found.question.flops == asked
    assert found.flops_per_frame == found.chunk.flops / found.pictures


def test_encoder_by_hand(golden):
    """LLaVA's encoder and projector: every product of it, pooling as resampling matrices."""
    config = tiny(golden, "llava_onevision", memory="full")
    llava = open_shapes(config.model, jnp.float32).config
    stack, pictures = llava.vision.stack, 2
    n = llava.vision.grid**2
    block = 4 * stack.width**2 + 2 * stack.width * stack.mlp_width
    per_picture = stack.depth * (2 * n * block + 4 * n * n * stack.width)
    per_picture += 2 * n * llava.vision.patch**2 * 3 * stack.width
    wide = llava.decoder.width
    per_picture += 2 * n * wide * (stack.width + wide)
    side, new = llava.vision.grid, llava.frame_side
    per_picture += 2 * wide * (new * side * side + new * side * new)
    found, decoder = counted(config), llava.decoder
    rows = pictures * llava.frame_tokens
    q, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    layer = 2 * decoder.width * (q + kv) + 3 * decoder.width * decoder.mlp_width
    layers = decoder.layers * (2 * layer * rows + 4 * q * rows * (config.budget + rows))
    assert found.chunk.flops == pictures * per_picture + layers


def test_bytes(golden):
    config = tiny(golden, "qwen2_5_vl", memory="full")
    found, shapes = price(config), open_shapes(config.model, jnp.float32)
    spec = spec_of(shapes.config.decoder, chunk=found.rows)
    state = base.nbytes(full(config.budget), spec)
    assert found.state_bytes == state + 4 and found.bank_bytes == 0  # and the clock
    assert found.weight_bytes == 4 * sum(found.parameters.values())
    for step in (found.chunk, found.question):
        assert step.held_bytes >= found.weight_bytes + found.state_bytes
        assert step.peak_bytes >= step.held_bytes + step.temporary_bytes > step.held_bytes
        assert 0 < step.read_bytes < step.held_bytes


@pytest.mark.parametrize("memory", ["hermes", "rekv", "ma_lmm"])
def test_memories_with_probes_a_bank_or_features(golden, memory):
    """What is watched costs what the memory asks for."""
    found = counted(tiny(golden, "llava_onevision", memory=memory, hours=0.01))
    plain = counted(tiny(golden, "llava_onevision", memory="recent"))
    if memory == "ma_lmm":  # no decoder while the stream is watched
        assert found.chunk.flops < plain.chunk.flops < found.question.flops + plain.chunk.flops
        assert found.chunk.read_bytes < plain.chunk.read_bytes
    else:
        assert found.chunk.flops >= plain.chunk.flops
    assert (found.bank_bytes > 0) == (memory == "rekv")


@pytest.mark.slow
@pytest.mark.parametrize("memory", get_args(Name))
def test_any_memory_on_any_family(golden, memory):
    """Chunk and question of every family are traced with every memory."""
    for name in TINY:
        found = counted(tiny(golden, name, memory=memory, hours=0.01))
        assert found.question.flops > 0 and found.state_bytes > 0


def test_roofline():
    step = Step(flops=989 * 10**12, xla_flops=0, held_bytes=0, temporary_bytes=0, peak_bytes=0,
                read_bytes=4_800 * 10**9)  # fmt: skip
    fast = bound(GPUS["h200"], step, step, peak=141 * 2**30)
    assert (fast.chunk_compute, fast.first_bandwidth, fast.fits) == (1.0, 1.0, True)
    slow = bound(GPUS["rtx3090"], step, step, peak=24 * 2**30 + 1)
    assert not slow.fits and slow.chunk_compute > 10 and slow.chunk_bandwidth > 5


def test_seven_billion_on_a_cpu(capsys):
    """The whole command at full size; nothing of that size is allocated."""
    before = sum(x.nbytes for x in jax.live_arrays())
    argv = "price --model qwen2.5-vl:7b --memory omnimem --budget 4096 --fps 1 --json".split()
    assert benchmark.main(argv) == 0
    assert sum(x.nbytes for x in jax.live_arrays()) - before < 2**20
    found = json.loads(capsys.readouterr().out)
    assert sum(found["parameters"].values()) == PARAMETERS["qwen2.5-vl:7b"]
    assert found["rows"] == 256 and found["size"] == [448, 448] and found["pictures"] == 2
    # keys and values of 28 layers of 4,096 slots and 4 heads of 128, and what OmniMem adds
    keys_and_values = 28 * 4096 * 2 * 4 * 128 * 2
    assert keys_and_values < found["state_bytes"] < 1.2 * keys_and_values
    layers = 28 * (2 * 3584 * (3584 + 512) + 3 * 3584 * 18944)
    attention = 4 * 28 * 3584 * 256 * (4096 + 256)
    assert 2 * layers * 256 + attention < found["chunk"]["flops"]
    assert found["chunk"]["flops"] < 2 * 8.3e9 * 256 + 2 * 0.68e9 * 1024 + 2 * attention
    assert found["chunk"]["xla_flops"] < found["chunk"]["flops"] / 4  # loops count once there
    assert found["chunk"]["peak_bytes"] < 20 * 2**30  # no float32 copy of all layers
    assert [item["gpu"] for item in found["bounds"]] == [gpu.name for gpu in GPUS.values()]
    assert all(item["fits"] for item in found["bounds"])
    first = found["bounds"][-1]["first_bandwidth"]
    assert math.isclose(first, found["question"]["read_bytes"] / 4.8e12)


def test_tables_and_errors(golden, capsys):
    folder = str(golden / "hf" / "qwen3_vl")
    if not (golden / "hf" / "qwen3_vl").exists():
        pytest.skip(f"no {folder}")
    argv = ["price", "--model", folder, "--height", "32", "--width", "32", "--budget", "16"]
    assert benchmark.main([*argv, "--gpu", "h100", "--memory", "recent"]) == 0
    printed = capsys.readouterr().out
    assert "H100" in printed and "A100" not in printed and "operations per frame" in printed
    for more, message in (
        (["--model", "qwen2.5-vl:8b"], "qwen2.5-vl:7b"),
        (["--fps", "0.7"], "whole number of pictures"),
        (["--fps", "1.5"], "groups of 2"),
        (["--budget", "0"], "--budget must be positive"),
        (["--model", "qwen2.5-omni:3b", "--chunk-seconds", "4"], "chunks of 2 s"),
    ):
        assert benchmark.main([*argv, *more]) == 2
        assert message in capsys.readouterr().err


def test_unknown_family(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type 'llama', supported are qwen2_5_vl"):
        open_shapes(str(tmp_path), np.float32)
