"""Prices: counts against closed forms, published numbers of parameters, and the whole command."""

import json
import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import pytest
from checkpoints import FAMILIES, heard_in_time

from jaxmem.experiments.benchmark import __main__ as benchmark
from jaxmem.experiments.benchmark import flops as _flops
from jaxmem.experiments.benchmark import price as _price
from jaxmem.experiments.benchmark.price import PriceConfig, nbytes
from jaxmem.experiments.benchmark.price_table import GPUS, Step, bound
from jaxmem.memory import sizes
from jaxmem.memory.baselines import Full
from jaxmem.memory.options import NAMES
from jaxmem.models.hf import published
from jaxmem.models.hf.config import read_json
from jaxmem.models.llava import onevision
from jaxmem.models.load import load

PARAMETERS = {  # of the safetensors files' index, the model card, or transformers' model
    "qwen2-vl:2b": 2_208_985_600,
    "qwen2-vl:7b": 8_291_375_616,
    "qwen2-vl:72b": pytest.approx(73.4e9, rel=2e-3),
    "qwen2.5-vl:3b": 3_754_622_976,
    "qwen2.5-vl:7b": 8_292_166_656,
    "qwen2.5-vl:32b": 33_452_718_336,
    "qwen2.5-vl:72b": 73_410_777_344,
    "smolvlm2:256m": 256_484_928,
    "smolvlm2:500m": 507_482_304,
    "smolvlm2:2.2b": 2_246_784_880,
    "qwen3-vl:2b": 2_127_532_032,
    "qwen3-vl:4b": 4_437_815_808,
    "qwen3-vl:8b": 8_767_123_696,
    "qwen3-vl:32b": pytest.approx(33.4e9, rel=2e-3),
    "qwen3.5:9b": 9_409_813_744,
    "qwen2.5-omni:3b": pytest.approx(4.70e9, rel=2e-3),
    "qwen2.5-omni:7b": pytest.approx(8.93e9, rel=2e-3),
    "llava-onevision:0.5b": pytest.approx(0.894e9, rel=2e-3),
    "llava-onevision:7b": pytest.approx(8.03e9, rel=2e-3),
    "llava-onevision:72b": pytest.approx(73.2e9, rel=2e-3),
}
HEARS = 636_968_960 + 280_092_672 + 3_072  # Whisper large-v3's encoder, Q-Former, query
PARAMETERS |= {  # and a projection to the width of the base
    f"salmonn:{size}": PARAMETERS[f"{base}:{size}"] + HEARS + 3_073 * width
    for base, size, width in (
        ("qwen2.5-vl", "3b", 2048), ("qwen2.5-vl", "7b", 3584), ("qwen2.5-vl", "72b", 8192),
        ("qwen3-vl", "4b", 2560), ("qwen3-vl", "8b", 4096),
    )
}  # fmt: skip
MA2MBA = {
    "370m": (1024, 48, 269_056), "1.3b": (2048, 48, 537_344), "2.7b": (2560, 64, 671_488),
}  # fmt: skip
"""Video-Ma2mba: width, layers, and numbers of a layer's state as the paper prints them (C_S)."""


def ma2mba(width, layers):
    """Parameters of Mamba-2, of 23 blocks of CLIP ViT-L/14-336 and of the projector, by hand."""
    inner, heads = 2 * width, 2 * width // 64
    channels = inner + 2 * 128
    layer = width * (inner + channels + heads) + 5 * channels + 3 * heads + inner + inner * width
    words = 50_288 * width + width + layers * (layer + width)
    block = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    return words + (14 * 14 * 3 + 1 + 577 + 2) * 1024 + 23 * block + (1024 + width + 2) * width


PARAMETERS |= {f"ma2mba:{size}": ma2mba(*sizes[:2]) for size, sizes in MA2MBA.items()}
SIDES = (4, 6)  # cells of a frame

TINY = [name for name, *_ in FAMILIES.values()]


def test_every_name_has_the_published_parameters():
    assert set(published.names()) == set(PARAMETERS)
    for name, expected in PARAMETERS.items():
        model = load(name, abstract=True)
        # A tied output matrix is held a second time where the embedding changes (LLaVA).
        raw = published.published_config(name)
        tied = any(x.get("tie_word_embeddings") for x in (raw, raw.get("text_config", {})))
        copied = tied and not model.decoder.tied and "head" in model.params["decoder"]
        copy = model.decoder.vocab * model.decoder.width if copied else 0
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(model.params))
        assert count - copy == expected, name
    assert all(published.published(family)["source"] for family in published.FAMILIES)


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


@pytest.fixture(scope="module")
def tiny(golden, tmp_path_factory):
    """Configs for the reference checkpoints; of their directories nothing but config.json."""
    root = tmp_path_factory.mktemp("price")

    def make(name, **more):
        source = golden / "hf" / name / "config.json"
        if not source.exists():
            pytest.skip(f"no {source}")
        config, folder = json.loads(source.read_text()), root / name
        folder.mkdir(exist_ok=True)
        if "audio_config" in config:
            config = heard_in_time(config)
        (folder / "config.json").write_text(json.dumps(config))
        model = load(folder, abstract=True, fps=fps_of(config))
        seconds = max(1, round(2 / model.media.piece_seconds)) * model.media.piece_seconds
        sizes = dict(zip(("height", "width"), sides_of(config), strict=True))
        options = {"budget": 64, "dtype": "float32", "fps": fps_of(config), **sizes, **more}
        return PriceConfig(str(folder), chunk_seconds=seconds, **options)

    return make


def fps_of(config):
    """One frame of patches in a second; of Omni, two in a piece."""
    temporal = config["vision_config"].get("temporal_patch_size", 1)
    return 2 * temporal / config.get("seconds_per_chunk", 2)


def sides_of(config):
    """(height, width) of a frame of `SIDES` cells."""
    vision = config["vision_config"]
    cell = vision["patch_size"] * vision.get("spatial_merge_size", 1)
    return SIDES[0] * cell, SIDES[1] * cell


@pytest.mark.parametrize("name", TINY)
def test_a_chunk_by_hand(tiny, name):
    """Decoder, encoder and attention of a chunk and of a question, in closed form.

    Of layers with a state their kernel's operations are those of the layer by itself.
    """
    config = tiny(name, memory="full")
    options = {"abstract": True, "dtype": "float32", "fps": config.fps}
    found, model = counted(config), load(config.model, **options)
    decoder, rows, slots = model.decoder, found.rows, config.budget + len(model.prefix)
    stacks = [model.params["decoder"]["layers"], *model.params["decoder"].get("mixers", ())]
    leaves = [leaf for stack in stacks for leaf in stack.values()]
    kernels = sum(leaf["kernel"].size for leaf in leaves if "kernel" in leaf)
    wide = 4 * decoder.attends * decoder.heads * decoder.head_dim
    expected = 2 * kernels * rows + wide * rows * (slots + rows) + mixed(model, rows)
    assert expected < found.chunk.flops
    encoders = found.chunk.flops - expected
    parts = [v for k, v in model.params.items() if k not in ("decoder", "newline")]
    weights = sum(x.size for x in jax.tree.leaves(parts))
    vision = read_json(config.model)["vision_config"]
    patches = vision.get("spatial_merge_size", vision.get("image_size", 0) // vision["patch_size"])
    assert 0.2 * 2 * weights * rows < encoders < 8 * 2 * weights * patches**2 * rows
    question = config.question
    head = 2 * decoder.width * decoder.vocab
    asked = 2 * kernels * question + wide * question * (slots + question + 1) + head
    asked += mixed(model, question)
    assert found.question.flops == asked
    assert found.flops_per_frame == found.chunk.flops / found.pictures


def mixed(model, rows):
    """Operations of all layers with a state, without norm and MLP."""
    found, decoder = 0, model.decoder
    for mixer, stack in zip(decoder.stacks, model.params["decoder"].get("mixers", ()), strict=True):
        layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack["mixer"])
        x = jax.ShapeDtypeStruct((rows, decoder.width), jnp.float32)
        state = jax.eval_shape(lambda mixer=mixer: mixer.init(decoder.width))
        one = _flops.count(mixer.chunk, layer, state, x, jax.ShapeDtypeStruct((rows,), bool))
        found += decoder.kinds.count(mixer) * one
    return found


def test_encoder_by_hand(tiny):
    """LLaVA's encoder and projector: every product of it, pooling as resampling matrices."""
    config = tiny("llava_onevision", memory="full")
    llava, pictures = onevision.read_config(read_json(config.model)), 2
    stack, n = llava.vision.stack, llava.vision.grid**2
    block = 4 * stack.width**2 + 2 * stack.width * stack.mlp_width
    per_picture = (llava.layer + 1) * (2 * n * block + 4 * n * n * stack.width)
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
    assert found.pictures == pictures and found.rows == rows
    assert found.chunk.flops == pictures * per_picture + layers


def test_bytes(tiny):
    config = tiny("qwen2_5_vl", memory="full")
    found, opened = price(config), _price.open_stream(config)
    state = sizes.nbytes(Full(config.budget), opened.program.spec)
    counts = nbytes(opened.carry._replace(state=()))
    assert found.state_bytes == state + counts and found.bank_bytes == 0
    assert counts < 64
    assert found.weight_bytes == 4 * sum(found.parameters.values())
    for step in (found.chunk, found.question):
        assert step.held_bytes >= found.weight_bytes + found.state_bytes
        assert step.peak_bytes >= step.held_bytes + step.temporary_bytes > step.held_bytes
        assert 0 < step.read_bytes < step.held_bytes


@pytest.mark.parametrize("memory", ["hermes", "rekv", "ma_lmm"])
def test_memories_with_probes_a_bank_or_features(tiny, memory):
    """What is watched costs what the memory asks for."""
    found = counted(tiny("llava_onevision", memory=memory, hours=0.01))
    plain = counted(tiny("llava_onevision", memory="recent"))
    if memory == "ma_lmm":  # no decoder while the stream is watched
        assert found.chunk.flops < plain.chunk.flops < found.question.flops + plain.chunk.flops
        assert found.chunk.read_bytes < plain.chunk.read_bytes
    else:
        assert found.chunk.flops >= plain.chunk.flops
    assert (found.bank_bytes > 0) == (memory == "rekv")


@pytest.mark.slow
@pytest.mark.parametrize("memory", NAMES)
def test_any_memory_on_any_family(tiny, memory):
    """Chunk and question of every family are traced with every memory."""
    for name in TINY:
        found = counted(tiny(name, memory=memory, budget=256, hours=0.01))
        assert found.question.flops > 0 and found.state_bytes > 0


@pytest.mark.parametrize("size", MA2MBA)
def test_states_of_video_ma2mba(size):
    """Those of the paper's table, at two hours (1.04 M tokens) and at its 2 M tokens alike."""
    width, layers, numbers = MA2MBA[size]
    two, four = (
        counted(PriceConfig(f"ma2mba:{size}", hours=hours)) for hours in (2, 2e6 / 144 / 3600)
    )
    assert (two.rows, two.size, two.tokens) == (288, (336, 336), 1_036_800)
    assert abs(four.tokens - 2_000_000) <= 144 and two.attends == 0
    assert two.mixer_bytes == 4 * layers * numbers
    assert 0 < two.state_bytes - two.mixer_bytes < 64  # numbers that are counted
    for name in ("state_bytes", "mixer_bytes", "bank_bytes", "chunk", "question"):
        assert getattr(two, name) == getattr(four, name)
    decoder = two.parameters["decoder"]
    block = 2 * 577 * 12 * 1024**2 + 4 * 577**2 * 1024
    known = 2 * 288 * (decoder - 50_288 * width) + 2 * (23 * block + 2 * 576 * 588 * 1024)
    assert known < two.chunk.flops < 1.1 * known  # what is left are the scans, and the projector


@pytest.mark.slow
def test_two_hours_of_video_ma2mba_on_24_gigabytes(capsys):
    """The whole command at full size; a carry is as small as the paper's 162 MiB."""
    assert benchmark.main("price --model ma2mba:2.7b --hours 2 --json".split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert round(found["state_bytes"] / 2**20, 1) == 163.9
    assert max(found[step]["peak_bytes"] for step in ("chunk", "question")) < 7 * 2**30
    assert all(item["fits"] for item in found["bounds"])
    assert benchmark.main("price --model ma2mba:370m --gpu rtx3090".split()) == 0
    printed = capsys.readouterr().out
    assert "states alone: no layer attends" in printed and "518,400 tokens" in printed


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
    argv = "price --model qwen2.5-vl:7b --memory omnimem --omnimem.sketch 128 --budget 4096".split()
    argv += ["--fps", "1", "--json"]
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


def test_a_hybrid_holds_states_for_ever_and_keys_and_values_of_few_layers():
    """Qwen3.5-9B: 24 states of 32 heads of 128 x 128, and 8 layers of 4 KV heads of 256."""
    config = PriceConfig("qwen3.5:9b", memory="full", budget=4096)
    found = _price.open_stream(config)
    decoder, spec, (states,) = found.model.decoder, found.program.spec, found.carry.states
    assert (decoder.layers, decoder.attends, spec.layers) == (32, 8, 8)
    assert decoder.kinds[:4].index(None) == 3 and decoder.kinds == decoder.kinds[:4] * 8
    assert nbytes(states.memory) == 24 * 32 * 128 * 128 * 4 == 48 * 2**20
    # The last three inputs of the convolutions: in 16 bits the states would be 49 MiB.
    assert nbytes(states.tail) == 24 * 3 * 8192 * 4
    assert round((nbytes(states.memory) + nbytes(states.tail) / 2) / 2**20) == 49
    token = 2 * spec.layers * spec.kv_heads * spec.head_dim * spec.dtype.itemsize
    assert token == 32 * 2**10 and 3600 * 128 * token / 2**30 == pytest.approx(14, abs=0.1)
    held = [x for x in jax.tree.leaves(found.carry.state) if x.shape[-1] == spec.head_dim]
    assert nbytes(held) == 4096 * token == 128 * 2**20
    longer = _price.open_stream(replace(config, hours=10.0, memory="recent"))
    assert nbytes(longer.carry.states) == nbytes(states)
    assert nbytes(longer.carry.state) < 1.1 * nbytes(held)


@pytest.mark.slow
def test_a_hybrid_on_the_command_line(capsys):
    argv = ["price", "--model", "qwen3.5:9b", "--memory", "recent", "--json"]
    assert benchmark.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["parameters"].values()) == PARAMETERS["qwen3.5:9b"]
    assert 178 * 2**20 < found["state_bytes"] < 190 * 2**20 and found["bounds"][-1]["fits"]


RUN = "price --model tiny --budget 64 --hours 0.02 --answer 2 --dtype float32 --run".split()


def test_both_programs_are_run(capsys):
    """The peak is known of a GPU alone; of a memory with a bank the shapes lie where it does."""
    for more in ([], ["--memory", "rekv", "--implementation", "xla"]):
        assert benchmark.main([*RUN, *more, "--json"]) == 0
        ran = json.loads(capsys.readouterr().out)["ran"]
        assert ran["written"] == 2 and ran["peak_bytes"] is None
        assert min(ran["chunk"], ran["first_token"]) > 0 <= ran["token"]
    assert benchmark.main("price --model tiny --implementation xla".split()) == 2
    assert "--run" in capsys.readouterr().err


def test_a_bank_in_host_memory_is_priced_on_a_cpu(capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    words = ["--memory", "rekv", "--budget", "64"]
    assert benchmark.main(["price", "--model", "tiny", *words]) == 2
    assert "JAX_PLATFORMS=cpu" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_memory_is_run(name, capsys):
    assert benchmark.main([*RUN, "--memory", name]) == 0
    assert "run here" in capsys.readouterr().out


def test_tables_and_errors(tiny, capsys):
    config = tiny("qwen3_vl")
    sides = ["--height", str(config.height), "--width", str(config.width)]
    argv = ["price", "--model", config.model, *sides, "--budget", "16", "--fps", str(config.fps)]
    argv += ["--chunk-seconds", str(config.chunk_seconds)]
    assert benchmark.main([*argv, "--gpu", "h100", "--memory", "recent"]) == 0
    printed = capsys.readouterr().out
    assert "H100" in printed and "A100" not in printed and "operations per frame" in printed
    for more, message in (
        (["--model", "qwen2.5-vl:8b"], "there are qwen2.5-vl:3b, qwen2.5-vl:7b"),
        (["--model", "qwen9-vl:8b"], "organisation/name"),
        (["--hours", "-1"], "--hours must be positive"),
        (["--budget", "99999999999"], "at most 1,073,741,824"),
        (["--memory", "full", "--budget", "1MiB"], "the capacity in tokens"),
        (["--model", "tiny", "--fps", "2"], "tiny sees 1 picture a second, got --fps 2"),
        (["--fps", "0.7", "--chunk-seconds", "2"], "whole number of pictures"),
        (["--fps", "1.5", "--chunk-seconds", "2"], "pieces of"),
        (["--budget", "0"], "--budget '0' is no budget"),
        (["--model", "qwen2.5-omni:3b", "--fps", "2", "--chunk-seconds", "3"], "pieces of 2 s"),
        (["--model", "llava-onevision:7b", "--fps", "0.5"], "whole number of frames"),
    ):
        assert benchmark.main([*argv, *more]) == 2
        assert message in capsys.readouterr().err


def test_the_embedded_model(tiny):
    """Priced like any other, with the options that suit it."""
    found = counted(PriceConfig("tiny", memory="recent", budget=32, chunk_seconds=1))
    assert (found.model, found.rows, found.size) == ("tiny", 20, (48, 48))


def test_a_budget_in_bytes_is_of_the_whole_state(capsys):
    argv = "price --model tiny --memory recent --chunk-seconds 1 --json --gpu h100 --budget".split()
    assert benchmark.main([*argv, "64KiB"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 20 < found["budget"] < 64 and 60 << 10 < found["state_bytes"] < 68 << 10
    assert benchmark.main([*argv, "1KiB"]) == 2
    assert "1024 bytes hold no memory" in capsys.readouterr().err


def test_unknown_family(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type 'llama' .* supported are .*qwen2_5_vl"):
        load(tmp_path, abstract=True)
