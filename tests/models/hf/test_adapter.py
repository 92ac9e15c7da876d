"""LoRA adapters in PEFT's layout: merged weights against W + s B A, and what is refused."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoints import write_checkpoint
from safetensors.numpy import load_file, save_file

import jaxmem as jm
from jaxmem.data.world.files import held_out
from jaxmem.experiments.stream.__main__ import main
from jaxmem.models.qwen.tiny_checkpoint import write_tiny

INSIDE = "base_model.model."
ROOT = {"qwen2_5_vl": "model.", "llava_onevision": "language_model.model."}  # of the stored decoder
NEWER = {"model.": "model.language_model.", "visual.": "model.visual."}
LLAVA_NEWER = {
    "language_model.model.": "model.language_model.", "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}  # fmt: skip
HEAD = "lm_head.weight"
RANK = 2


def pair(weight, rank=RANK, seed=0):
    """A and B for a matrix (or a convolution, as PEFT makes them)."""
    draw = np.random.default_rng(seed)
    out, *rest = weight.shape
    shapes = (rank, *rest), (out, rank, *(1 for _ in rest[1:]))
    return [draw.standard_normal(shape).astype(np.float32) for shape in shapes]


def write_adapter(folder, tensors, **settings):
    """A directory as PEFT's save_pretrained writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3, "bias": "none"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def lora(modules, base, *, middle="", rename=lambda name: name, rank=RANK):
    """Tensors of an adapter for modules of a base, by their stored names."""
    found = {}
    for i, module in enumerate(modules):
        a, b = pair(base[f"{module}.weight"], rank, i)
        at = f"{INSIDE}{rename(module)}.lora_"
        found |= {f"{at}A{middle}.weight": a, f"{at}B{middle}.weight": b}
    return found


def product(base, module, i, rank=RANK):
    """B A of the i-th module of `lora`, in float64."""
    weight = base[f"{module}.weight"]
    a, b = (x.astype(np.float64).reshape(len(x), -1) for x in pair(weight, rank, i))
    return (b @ a).reshape(weight.shape)


def merged_by_hand(where, target, changes):
    """A whole checkpoint: the base with tensors replaced."""
    target.mkdir()
    for path in where.iterdir():
        if path.name != "model.safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(where / "model.safetensors") | changes
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, target / "model.safetensors"
    )
    return target


def same_weights(one, other, rtol=1e-6):
    one, other = (jax.tree_util.tree_leaves_with_path(model.params) for model in (one, other))
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, x), (_, y) in zip(one, other, strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol, err_msg=str(path))


def newer(family):
    def rename(name):
        table = NEWER if family == "qwen2_5_vl" else LLAVA_NEWER
        old = next((old for old in table if name.startswith(old)), "")
        return table.get(old, "") + name.removeprefix(old)

    return rename


def targets(family, tensors):
    """Matrices of the decoder, the encoder and the projector, and the encoder's convolution."""
    root = ROOT[family]
    parts = {
        "qwen2_5_vl": ("visual.blocks.0.attn.qkv", "visual.patch_embed.proj"),
        "llava_onevision": ("patch_embedding", "multi_modal_projector.linear_1"),
    }[family]
    names = [name.removesuffix(".weight") for name in tensors]
    found = [name for name in names if name.endswith(parts)]
    assert len(found) == 2 and any(tensors[f"{name}.weight"].ndim > 2 for name in found)
    return [f"{root}layers.0.self_attn.q_proj", f"{root}layers.1.mlp.down_proj", *found]


@pytest.mark.parametrize("layout", ["stored", "newer"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_merged_weights_are_those_of_the_sum(golden, tmp_path, family, layout):
    """Under the names of the checkpoint and of newer transformers, with the adapter's name."""
    base = write_checkpoint(golden, family, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    modules = targets(family, tensors)
    rename = newer(family) if layout == "newer" else lambda name: name
    parts = lora(modules, tensors, rename=rename, middle=".default" * (layout == "newer"))
    saved = f"{ROOT[family]}norm.weight"
    parts[f"{INSIDE}{rename(saved)}"] = 2 * tensors[saved]
    adapter = write_adapter(tmp_path / "mine", parts, modules_to_save=["norm"])
    changes = {
        f"{m}.weight": (tensors[f"{m}.weight"] + 1.5 * product(tensors, m, i)).astype(np.float32)
        for i, m in enumerate(modules)
    } | {saved: 2 * tensors[saved]}
    model = jm.load(base, adapter=adapter, dtype="float32")
    assert model.name == "base+mine"
    same_weights(model, jm.load(merged_by_hand(base, tmp_path / "whole", changes), dtype="float32"))
    plain = jm.load(base, dtype="float32").params["decoder"]["layers"]["q"]["kernel"]
    found = model.params["decoder"]["layers"]["q"]["kernel"]
    assert np.abs(found[0] - plain[0]).max() > 0.1
    np.testing.assert_array_equal(found[1], plain[1])  # no adapter there
    abstract = jm.load(base, adapter=adapter, abstract=True, dtype="float32")
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), abstract.params)


@pytest.mark.parametrize(
    "settings, scales, rank",
    [
        ({"use_rslora": True}, (3 / 2**0.5,) * 3, 2),
        ({"r": 5, "rank_pattern": {"q_proj": 2, r"layers\.\d\.mlp\..*": 2}}, (1.5,) * 3, 2),
        (
            {"alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 8, "proj": 99}},
            (4, 1.5, 1.5),
            2,
        ),
        ({"alpha_pattern": {"1.mlp.up_proj": 5, "_proj": 7}}, (1.5, 2.5, 1.5), 2),
        ({"fan_in_fan_out": True}, (1.5,) * 3, 2),  # a Linear's weight is never turned
        ({"r": 8, "lora_alpha": 8, "peft_version": "0.9", "rank_pattern": None}, (1,) * 3, 8),
    ],
)
def test_scale_and_rank(tmp_path, settings, scales, rank):
    base = write_tiny(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    names = ("0.self_attn.q_proj", "1.mlp.up_proj", "2.mlp.down_proj")
    modules = [f"model.layers.{name}" for name in names]
    adapter = write_adapter(tmp_path / "mine", lora(modules, tensors, rank=rank), **settings)
    found = jm.load(base, adapter=adapter, dtype="float32").params["decoder"]["layers"]
    for i, (path, module) in enumerate(zip(("q", "up", "down"), modules, strict=True)):
        expected = tensors[f"{module}.weight"] + scales[i] * product(tensors, module, i, rank)
        np.testing.assert_allclose(found[path]["kernel"][i], expected.T, rtol=1e-5, atol=1e-5)


def test_the_sum_is_taken_in_float32(tmp_path):
    """Of a base and an adapter in bfloat16: rounded once."""
    base = write_tiny(tmp_path / "base")
    half = {
        k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(base / "model.safetensors").items()
    }
    save_file(half, base / "model.safetensors")
    module = "model.layers.0.self_attn.v_proj"
    parts = lora([module], half)
    parts = {k: (v / 16).astype(ml_dtypes.bfloat16) for k, v in parts.items()}
    adapter = write_adapter(tmp_path / "mine", parts)
    model = jm.load(base, adapter=adapter)
    a, b = (x.astype(np.float32) for x in parts.values())
    whole = half[f"{module}.weight"].astype(np.float32) + np.float32(1.5) * b @ a
    found = np.asarray(model.params["decoder"]["layers"]["v"]["kernel"][0], np.float32)
    expected = whole.astype(ml_dtypes.bfloat16).astype(np.float32).T
    assert model.params["decoder"]["norm"]["scale"].dtype == "bfloat16"
    assert np.mean(found != expected) < 0.01  # the order of a sum may differ
    np.testing.assert_allclose(found, expected, rtol=2**-7)


def tied(folder):
    """A checkpoint whose embedding is its output matrix."""
    base = write_tiny(folder)
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    tensors.pop(HEAD)
    save_file(tensors, base / "model.safetensors")
    return base, tensors


@pytest.mark.parametrize("what", ["head", "embedding", "both", "lora", "one", "same"])
def test_a_tied_output_matrix(tmp_path, what):
    """As PEFT runs it: what an adapter brings for one of the two does not reach the other."""
    base, tensors = tied(tmp_path / "base")
    name = "model.embed_tokens.weight"
    table = tensors[name]
    copies = {"head": [HEAD], "embedding": [name], "both": [name, HEAD], "one": [name]}
    new = {key: table * (3 if key == HEAD else 2) for key in copies.get(what, ())}
    if what == "same":
        new = dict.fromkeys((name, HEAD), 2 * table)
    parts = {f"{INSIDE}{key}": x for key, x in new.items()}
    if what == "lora":
        a, b = pair(table)
        parts = {f"{INSIDE}lm_head.lora_A.weight": a, f"{INSIDE}lm_head.lora_B.weight": b}
        new[HEAD] = table + 1.5 * b @ a
    settings = {"ensure_weight_tying": True} if what in ("one", "same") else {}
    adapter = write_adapter(tmp_path / "mine", parts, **settings)
    decoder = jm.load(base, adapter=adapter, dtype="float32").params["decoder"]
    np.testing.assert_array_equal(decoder["embedding"]["embedding"], new.get(name, table))
    if settings:
        assert "head" not in decoder
    else:
        head = decoder["head"]["kernel"]
        np.testing.assert_allclose(head.T, new.get(HEAD, table), rtol=1e-5, atol=1e-5)


def test_raw_names_of_copies(tmp_path):
    """Of a state dict that was saved as it is: wrapped copies, and the base's beside them."""
    base = write_tiny(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    one, two = "visual.merger.mlp.0.weight", "model.norm.weight"
    parts = {
        f"{INSIDE}visual.merger.modules_to_save.default.mlp.0.weight": 2 * tensors[one],
        f"{INSIDE}visual.merger.original_module.mlp.0.weight": 9 * tensors[one],
        f"{INSIDE}model.norm.modules_to_save.weight": 3 * tensors[two],
        f"{INSIDE}lm_head.base_layer.weight": tensors[HEAD] + 1,  # below its own A and B
        **lora(["lm_head"], tensors),
    }
    head = tensors[HEAD] + 1 + np.float32(1.5) * product(tensors, "lm_head", 0)
    model = jm.load(base, adapter=write_adapter(tmp_path / "mine", parts), dtype="float32")
    changes = {one: 2 * tensors[one], two: 3 * tensors[two], HEAD: head.astype(np.float32)}
    by_hand = merged_by_hand(base, tmp_path / "whole", changes)
    same_weights(model, jm.load(by_hand, dtype="float32"))


@pytest.fixture
def tiny(tmp_path):
    """A base, and an adapter of one matrix that `make` writes with other settings or tensors."""
    base = write_tiny(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")

    def make(more=None, folder="mine", **settings):
        parts = lora(["model.layers.0.self_attn.q_proj"], tensors)
        return write_adapter(tmp_path / folder, parts | (more or {}), **settings)

    return base, make


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"peft_type": None}, "peft_type None"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base"),
    ],
)
def test_other_kinds_are_refused_in_a_sentence(tiny, settings, words):
    base, make = tiny
    for options in ({}, {"abstract": True}):
        with pytest.raises(ValueError, match="only plain LoRA is read: merge it") as caught:
            jm.load(base, adapter=make(**settings), **options)
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, words",
    [
        ("model.embed_tokens.lora_embedding_A", "LoRA of embeddings"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", "lora_bias"),
    ],
)
def test_tensors_of_other_kinds_are_refused(tiny, name, words):
    base, make = tiny
    with pytest.raises(ValueError, match=f"has {words} .*{name}.*; only plain LoRA"):
        jm.load(base, adapter=make({INSIDE + name: np.ones((2, 2), np.float32)}))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"r": 0}, "r is 0, expected a positive number"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', expected a positive number"),
        ({"rank_pattern": [3]}, r"rank_pattern is \[3\], expected an object"),
        (
            {"alpha_pattern": {"q_proj": -1}},
            r"alpha_pattern\['q_proj'\] is -1, expected a positive",
        ),
        ({"use_rslora": "x"}, "use_rslora is 'x' in adapter_config.json, expected true or false"),
        ({"rank_pattern": {"(": 2}}, "'[(]' in rank_pattern is no regular expression"),
        ({"r": 4}, r"q_proj: lora_A \(2, 48\) and lora_B \(48, 2\) do not have the rank 4"),
    ],
)
def test_settings_that_make_no_sense(tiny, settings, message):
    base, make = tiny
    with pytest.raises(ValueError, match=message):
        jm.load(base, adapter=make(**settings))


def test_modules_that_the_base_does_not_have(tiny):
    base, make = tiny
    more = {}
    for layer in range(3, 15):
        for side, shape in (("A", (RANK, 48)), ("B", (48, RANK))):
            key = f"{INSIDE}model.layers.{layer}.self_attn.q_proj.lora_{side}.weight"
            more[key] = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match="12 part.s. of it do not fit, 10 of them are") as caught:
        jm.load(base, adapter=make(more, base_model_name_or_path="some/base"))
    text = str(caught.value)
    assert text.count("q_proj: the base has no such module") == 10 and "on some/base" in text


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("model.layers.1.mlp.up_proj.lora_A.weight", (2, 48), "up_proj: lora_B is missing"),
        ("model.layers.1.mlp.up_proj.lora_B.weight", (64, 2), "up_proj: lora_A is missing"),
        (
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            (2, 47),
            r"lora_A \(2, 47\) and lora_B \(48, 2\) do not fit the shape \(48, 48\)",
        ),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (2,), "do not have the rank 2"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", (2, 48), "stored twice"),
        ("model.embed_tokens.weight", (101, 48), r"shape \(101, 48\), the base's has \(100, 48\)"),
        ("audio.proj.weight", (3, 3), "audio.proj.weight: the base has no such tensor"),
    ],
)
def test_parts_that_do_not_fit(tiny, name, shape, message):
    base, make = tiny
    with pytest.raises(ValueError, match=message):
        jm.load(base, adapter=make({INSIDE + name: np.ones(shape, np.float32)}))


def test_numbers_that_are_no_floats(tiny):
    base, make = tiny
    with pytest.raises(ValueError, match="norm.weight: has dtype I32, known are F64"):
        jm.load(base, adapter=make({f"{INSIDE}model.norm.weight": np.ones(48, np.int32)}))


def test_directories_that_are_no_adapters(tiny, tmp_path):
    base, make = tiny
    with pytest.raises(ValueError, match="no adapter .no adapter_config.json.: give a directory"):
        jm.load(base, adapter=base)
    with pytest.raises(ValueError, match="is no file of adapters for tiny"):
        jm.load("tiny", adapter=make())
    with pytest.raises(ValueError, match="no directory nowhere"):
        jm.load(base, adapter="nowhere")
    lost = make(folder="lost")
    (lost / "adapter_model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        jm.load(base, adapter=lost)
    (lost / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no adapter_model.safetensors in .* download"):
        jm.load(base, adapter=lost)
    (lost / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pickled weights \(adapter_model.bin\)"):
        jm.load(base, adapter=lost)
    (make() / "non_lora_trainables.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pickled weights \(non_lora_trainables.bin\)"):
        jm.load(base, adapter=make())
    empty = write_adapter(tmp_path / "empty", {})
    with pytest.raises(ValueError, match="adapter_model.safetensors is empty"):
        jm.load(base, adapter=empty)


def test_an_adapter_in_place_of_a_checkpoint(tiny):
    base, make = tiny
    adapter = make(base_model_name_or_path=str(base))
    found = jm.load(adapter, dtype="float32")
    same_weights(found, jm.load(base, adapter=adapter, dtype="float32"))
    assert found.name == "base+mine" and jm.load(adapter, abstract=True).name == "base+mine"
    with pytest.raises(ValueError, match="mine is an adapter, and so is .*; one can be merged"):
        jm.load(adapter, adapter=adapter)
    adapter = make(base_model_name_or_path="Qwen/Some-Base")
    with pytest.raises(ValueError, match=r"lacks its base Qwen/Some-Base, which is no local") as no:
        jm.load(adapter)
    assert f"jm.load('Qwen/Some-Base', adapter='{adapter}')" in str(no.value)
    assert f"--model Qwen/Some-Base --adapter {adapter}" in str(no.value)
    with pytest.raises(ValueError, match=r"lacks its base: give both, .* --model BASE --adapter"):
        jm.load(make())
    second = make(folder="second", base_model_name_or_path=str(make(base_model_name_or_path="x")))
    with pytest.raises(ValueError, match="the base of .*second, is an adapter itself: merge"):
        jm.load(second)
    # A whole checkpoint that was merged in place keeps its adapter's settings.
    (base / "adapter_config.json").write_text("{}")
    assert jm.load(base, dtype="float32").name == jm.load(base, abstract=True).name == "base"


def test_names_of_an_adapter_inside_a_checkpoint_say_what_to_give(tiny):
    base, _ = tiny
    tensors = load_file(base / "model.safetensors")
    parts = lora(["model.layers.0.self_attn.q_proj"], tensors)
    save_file(tensors | parts, base / "model.safetensors")
    with pytest.raises(ValueError, match="they are an adapter; give its base, and .* --adapter"):
        jm.load(base)


def test_on_the_command_line(tiny, tmp_path, capsys):
    """An adapter whose output matrix likes one word changes the answers to it."""
    base, _ = tiny
    tensors = load_file(base / "model.safetensors")
    a, b = np.zeros((RANK, 48), np.float32), np.zeros((100, RANK), np.float32)
    a[0], b[50:] = tensors["lm_head.weight"][60], 50
    at = f"{INSIDE}lm_head.lora_"
    adapter = write_adapter(tmp_path / "mine", {f"{at}A.weight": a, f"{at}B.weight": b})
    clip = held_out(1, 4, tmp_path / "clip", count=1)[0]
    words = ["--video", str(clip), "--memory", "recent", "--budget", "40", "--max-new", "3"]
    words += ["--no-prompt", "--ask", "end: What is shown?", "--dtype", "float32", "--json"]
    said = {}
    for more in ((), ("--adapter", str(adapter))):
        status = main([*words, "--model", str(base), "--out", str(tmp_path / "out"), *more])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        report = json.loads(captured.out)
        said[report["model"]] = report["results"][0]["answers"][0]["answer"]
    assert set(said) == {"base", "base+mine"} and said["base"] != said["base+mine"]
    refused = {
        ("--adapter", str(adapter)): "--dtype has no effect without --model; leave it out",
        ("--model", str(adapter)): "is a LoRA adapter and lacks its base",
        ("--model", str(base), "--adapter", "no/where"): "no/where",
    }
    for more, message in refused.items():
        assert main([*words, "--out", str(tmp_path / "out"), *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
