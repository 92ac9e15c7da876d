"""LLaVA-Video: LLaVA-NeXT's config and names, rows with newlines, streams as one prompt."""

import json
import math
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import ids_of, tokenizer_of, write_checkpoint
from passes import Reference, answers_alike, close, one_pass, pieces_of, streamed
from safetensors.numpy import load_file, save_file

from jaxmem.models.llava import onevision as llava_onevision
from jaxmem.models.llava import video as llava_video
from jaxmem.models.llava.onevision import project, prompt_plan, video_chunk
from jaxmem.models.load import load

pytest.importorskip("jinja2")

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = "what is shown"
NAMES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("image_newline", "model.image_newline"),
)


def original(name):
    """A name as LLaVA-NeXT stores it."""
    old, new = next(pair for pair in NAMES if name.startswith(pair[0]))
    return new + name.removeprefix(old)


@pytest.fixture(scope="module")
def reference(golden):
    """OneVision's weights as LLaVA-Video has them, whatever the file holds.

    That is the encoder's blocks up to the features, biases in the projector, an output matrix.
    """
    found = Reference(golden / "hf" / "llava_onevision", llava_onevision)
    config, params, blocks = found.config, found.params, found.config.layer + 1
    stack = replace(config.vision.stack, depth=blocks)
    found.config = replace(
        config, vision=replace(config.vision, stack=stack), bias=True,
        decoder=replace(config.decoder, tied=False),
    )  # fmt: skip
    seen = params["vision"]
    seen = seen | {"blocks": jax.tree.map(lambda x: x[:blocks], seen["blocks"])}
    zeros = {"bias": jnp.zeros(config.decoder.width)}
    projector = {name: zeros | layer for name, layer in params["projector"].items()}
    decoder = params["decoder"]
    head = {"head": {"kernel": decoder["embedding"]["embedding"].T}}
    found.params = params | {
        "vision": seen, "projector": projector, "decoder": head | decoder,
    }  # fmt: skip
    return found


@pytest.fixture(scope="module")
def raw(reference):
    """The reference's config.json with the keys of LLaVA-NeXT."""
    text = reference.raw["text_config"]
    keys = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "rms_norm_eps", "vocab_size", "use_sliding_window",
    )  # fmt: skip
    return {key: text[key] for key in keys if key in text} | {
        "model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"],
        "rope_theta": text["rope_parameters"]["rope_theta"], "rope_scaling": None,
        "mm_vision_tower": "tiny/siglip", "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2,
        "image_token_index": text["vocab_size"] - 3, "tie_word_embeddings": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tower(reference):
    """The reference's encoder by a name, with one block more than is stored."""
    patch, vision = pytest.MonkeyPatch(), dict(reference.raw["vision_config"])
    vision["num_hidden_layers"] = reference.config.layer + 2
    patch.setitem(llava_video.TOWERS, "tiny/siglip", vision)
    yield
    patch.undo()


def stored(reference):
    """The reference's tensors, without later blocks, with biases and an output matrix."""
    tensors, blocks = load_file(reference.folder / "model.safetensors"), reference.config.layer + 1
    block = "vision_tower.encoder.layers."
    for name in [name for name in tensors if name.startswith(block)]:
        if int(name.removeprefix(block).split(".")[0]) >= blocks:
            del tensors[name]
    bias = np.zeros(reference.config.decoder.width, np.float32)
    table = tensors["language_model.model.embed_tokens.weight"]
    added = {f"multi_modal_projector.linear_{i}.bias": bias for i in (1, 2)}
    return added | {llava_onevision.HEAD: table} | tensors


@pytest.fixture(scope="module")
def folder(reference, raw, tower, tmp_path_factory):
    """The reference checkpoint as LLaVA-NeXT would have saved it."""
    target = tmp_path_factory.mktemp("next") / "tiny-video"
    target.mkdir()
    tensors = {original(k): v for k, v in stored(reference).items()}
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(raw))
    (target / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    tokenizer = tokenizer_of({}, raw["vocab_size"])
    end = {"eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    (target / "generation_config.json").write_text(json.dumps(end))
    tokenizer.save(str(target / "tokenizer.json"))
    return target


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, dtype="float32", fps=2, max_new=4)


@pytest.fixture(scope="module")
def config(raw, tower):
    return llava_video.read_config(raw)


def test_config_and_renamed_weights(reference, config, model):
    """The same model and weights as from transformers' directory."""
    for field in ("decoder", "vision", "layer", "bias"):
        assert getattr(config, field) == getattr(reference.config, field)
    side = math.ceil(config.vision.grid / 2)
    assert (config.frame_side, config.frame_tokens) == (side, side * (side + 1))
    assert config.video == config.decoder.vocab - 3
    jax.tree.map(np.testing.assert_array_equal, model.params, reference.params)
    assert model.tokens_per_piece == 2 * config.frame_tokens
    assert model.media.size == (config.vision.side,) * 2 and model.frame == (side, side + 1)


def test_released_sizes():
    """The tokens of a frame as the released model writes them."""
    raw = {
        "model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_newline_position": "grid", "hidden_size": 3584, "num_attention_heads": 28,
        "num_key_value_heads": 4, "num_hidden_layers": 28, "intermediate_size": 18944,
        "vocab_size": 152064, "rope_theta": 1e6,
    }  # fmt: skip
    config = llava_video.read_config(raw)
    assert config.vision.grid == 27 and config.vision.stack.depth == 26 and config.layer == 25
    assert config.frame_tokens == 14 * 15 == 210 and 64 * config.frame_tokens == 13_440
    assert llava_video.read_config(raw | {"mm_spatial_pool_mode": "average"}).frame_tokens == 182
    assert config.decoder.rope.axes == 1 and config.video == 151646
    assert not any(name.startswith("head.") for name in llava_onevision.weight_table(config))


def at(frame, r, c):
    return frame[min(r, len(frame) - 1), min(c, len(frame) - 1)]


def bilinear(frame, r, c, side):
    """The value of output (r, c): half-pixel centres, borders repeated."""
    n = len(frame)
    y, x = (max((i + 0.5) * n / side - 0.5, 0) for i in (r, c))
    top, left = math.floor(y), math.floor(x)
    up = at(frame, top, left) * (1 - x + left) + at(frame, top, left + 1) * (x - left)
    low = at(frame, top + 1, left) * (1 - x + left) + at(frame, top + 1, left + 1) * (x - left)
    return up * (1 - y + top) + low * (y - top)


def average(frame, r, c, side):
    del side
    return sum(frame[2 * r + i, 2 * c + j] for i in (0, 1) for j in (0, 1)) / 4


@pytest.mark.parametrize("pooling, each", [("bilinear", bilinear), ("average", average)])
def test_layout_is_the_plain_loop(reference, config, pooling, each):
    """Frame by frame, row by row, the newline after every row."""
    config = replace(config, pooling=pooling)
    shape = (3, config.vision.side, config.vision.side, 3)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    projected = np.asarray(project(reference.params, config, jnp.asarray(pixels)))
    newline, side, expected = np.asarray(reference.params["newline"]), config.frame_side, []
    for frame in projected:
        for r in range(side):
            expected += [each(frame, r, c, side) for c in range(side)] + [newline]
    found = llava_video.encode(reference.params, config, jnp.asarray(pixels))
    assert side == {"bilinear": -(-len(frame) // 2), "average": len(frame) // 2}[pooling]
    assert len(found) == 3 * config.frame_tokens
    close(found, np.stack(expected), 1e-6)


def test_prompt(folder, model):
    """The text around `<image>`, which is no token here; what template and question may not do."""
    assert model.prefix.tolist() == ids_of(folder, "<|im_start|>user")
    after = ids_of(folder, QUESTION + "<|im_end|><|im_start|>assistant")
    assert model.tokenize(QUESTION).tolist() == after
    assert model.end == tuple(ids_of(folder, "<|im_end|>"))
    assert model.detokenize(np.array(ids_of(folder, "what is<|im_end|>"))) == "what is"
    with pytest.raises(ValueError, match="holds <image> 2 times, expected once"):
        model.tokenize("what is <image>")
    with pytest.raises(ValueError, match="question is empty"):
        model.tokenize(" ")


def test_stream_in_chunks_is_one_pass(reference, config, model):
    """Three seconds in chunks of two, one padded: logits and greedy tokens of one pass."""
    pieces = pieces_of(model, model.media.size, 3, seed=1)
    answer = streamed(model, pieces, QUESTION, 4)
    pixels = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 127.5 - 1
    see = jax.jit(lambda p, x: llava_video.encode(p, config, x))
    features = see(reference.params, jnp.asarray(pixels))
    assert len(features) == 6 * config.frame_tokens
    ids = [*model.prefix, *[config.video] * len(features), *model.tokenize(QUESTION)]
    plan = prompt_plan(config, ids + answer.ids[:-1].tolist())
    params, decoder = reference.params["decoder"], reference.config.decoder
    answers_alike(answer, one_pass(params, decoder, plan, features))


def test_equal_directories_are_one_program(folder, model):
    """What is static of two loads is equal: nothing compiles again."""
    again = load(folder, dtype="float32", fps=2, abstract=True)
    assert again.encode == model.encode and hash(again.encode) == hash(model.encode)
    assert again.decoder == model.decoder


def test_ten_hours(config):
    """A chunk after ten hours is laid out like the first; positions stay exact integers."""
    part = video_chunk(config, 2)
    rows = 2 * config.frame_tokens
    assert part.pos[:, 0].tolist() == list(range(rows)) and part.advance.tolist() == [rows]
    assert (part.modality == 2).all() and 36_000 * 210 < 2**31


def test_original_onevision_is_transformers_edition(golden, folder, raw, tmp_path):
    """config.json chooses the family: prompts and logits of transformers' edition of the file."""
    theirs, mine = write_checkpoint(golden, "llava_onevision", tmp_path / "hf"), tmp_path / "next"
    shutil.copytree(folder, mine)
    shutil.copy(folder / "model.safetensors", theirs)  # other names for the same
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(theirs / name, mine)
    config = json.loads((theirs / "config.json").read_text())
    next_config = {**raw, "model_type": "llava", "mm_newline_position": "one_token"}
    next_config["image_token_index"] = config["video_token_index"]
    (mine / "config.json").write_text(json.dumps(next_config))
    config |= {"vision_feature_layer": -1, "multimodal_projector_bias": True}
    config["vision_config"]["num_hidden_layers"] = llava_video.read_config(raw).layer + 1
    config["text_config"]["tie_word_embeddings"] = False
    (theirs / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    models = [load(x, dtype="float32", fps=2, max_new=4) for x in (theirs, mine)]
    pieces = pieces_of(models[0], models[0].media.size, 3)
    first, second = (streamed(model, pieces, QUESTION, 4) for model in models)
    np.testing.assert_array_equal(first.first, second.first)
    assert first.ids.tolist() == second.ids.tolist()
    assert models[0].prefix.tolist() == models[1].prefix.tolist()
    assert models[0].frame == models[1].frame
    del next_config["mm_newline_position"]  # it is what the released code takes by default
    (mine / "config.json").write_text(json.dumps(next_config | {"model_type": "llava_qwen"}))
    assert load(mine, fps=2, abstract=True).encode == models[1].encode


def test_refusals(raw, tower, folder, tmp_path):
    wrong = {
        "model_type": ("llava_onevision", "expected one of llava_qwen, llava"),
        "mm_newline_position": ("frame", "implemented are 'grid' and 'one_token'"),
        "mm_projector_type": ("linear", "implemented is 'mlp2x_gelu' only"),
        "mm_vision_select_layer": (-1, "implemented is -2 only"),
        "mm_spatial_pool_stride": (4, "implemented is 2 only"),
        "mm_spatial_pool_mode": ("max", "implemented are 'bilinear' and 'average'"),
        "mm_vision_tower": ("openai/clip", "known are google/siglip-so400m-patch14-384"),
    }
    for key, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=message):
            llava_video.read_config(raw | {key: value})
    lacking = {k: v for k, v in raw.items() if k != "mm_vision_tower"}
    with pytest.raises(ValueError, match="has no mm_vision_tower"):
        llava_video.read_config(lacking)
    with pytest.raises(ValueError, match=r"whole number of frames in each second, got 1\.5"):
        load(folder, fps=1.5)
    with pytest.raises(ValueError, match="takes frames of one size: leave max_pixels out"):
        load(folder, max_pixels=400)
