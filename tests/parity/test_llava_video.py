"""LLaVA-Video: LLaVA-NeXT's config and names, rows with newlines, streams as one prompt."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import tokenizer_of
from passes import LOGITS, Reference, close, one_pass
from safetensors.numpy import load_file, save_file

from jaxmem.loop import ask
from jaxmem.memory.full import full
from jaxmem.models import load
from jaxmem.models.llava import onevision as llava_onevision
from jaxmem.models.llava import video as llava_video
from jaxmem.models.llava.onevision import project, prompt_plan, video_chunk
from jaxmem.session import Session, asked_rows

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
    return Reference(golden / "hf" / "llava_onevision", llava_onevision)


@pytest.fixture(scope="module")
def raw(reference):
    """The reference's config.json with the keys of LLaVA-NeXT."""
    text = reference.raw["text_config"]
    keys = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "rms_norm_eps", "vocab_size", "use_sliding_window",
    )  # fmt: skip
    return {key: text[key] for key in keys} | {
        "model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"],
        "rope_theta": text["rope_parameters"]["rope_theta"], "rope_scaling": None,
        "mm_vision_tower": "tiny/siglip", "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2,
        "image_token_index": 97, "tie_word_embeddings": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tower(reference):
    """The reference's encoder by a name, with one block more than is stored."""
    patch, vision = pytest.MonkeyPatch(), dict(reference.raw["vision_config"])
    vision["num_hidden_layers"] += 1
    patch.setitem(llava_video.TOWERS, "tiny/siglip", vision)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(reference, raw, tower, tmp_path_factory):
    """The reference checkpoint as LLaVA-NeXT would have saved it."""
    target = tmp_path_factory.mktemp("next") / "tiny-video"
    target.mkdir()
    tensors = load_file(reference.folder / "model.safetensors")
    save_file({original(k): v for k, v in tensors.items()}, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(raw))
    (target / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    tokenizer_of({}).save(str(target / "tokenizer.json"))
    return target


@pytest.fixture(scope="module")
def model(folder):
    return load.load(folder, dtype="float32", fps=2, max_new=4)


@pytest.fixture(scope="module")
def config(raw, tower):
    return llava_video.read_config(raw)


def test_config_and_renamed_weights(reference, config, model):
    """The same model and weights as from transformers' directory."""
    for field in ("decoder", "vision", "layer", "bias"):
        assert getattr(config, field) == getattr(reference.config, field)
    assert (config.frame_side, config.frame_tokens, config.video) == (3, 3 * 4, 97)
    jax.tree.map(np.testing.assert_array_equal, model.params, reference.params)
    assert model.tokens_per_piece == 2 * 12 and model.media.size == (20, 20)


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
    """Frame by frame, row by row, the newline behind every row."""
    config = replace(config, pooling=pooling)
    pixels = np.random.default_rng(0).normal(size=(3, 20, 20, 3)).astype(np.float32)
    projected = np.asarray(project(reference.params, config, jnp.asarray(pixels)))
    newline, side, expected = np.asarray(reference.params["newline"]), config.frame_side, []
    for frame in projected:
        for r in range(side):
            expected += [each(frame, r, c, side) for c in range(side)] + [newline]
    found = llava_video.encode(reference.params, config, jnp.asarray(pixels))
    assert side == {"bilinear": 3, "average": 2}[pooling]
    assert len(found) == 3 * config.frame_tokens
    close(found, np.stack(expected), 1e-6)


def test_prompt(model):
    """The text around `<image>`, which is no token here; what template and question may not do."""
    assert model.prefix.tolist() == [8, 11]
    assert model.tokenize(QUESTION).tolist() == [13, 14, 15, 9, 8, 12]
    assert model.end == (9,) and model.detokenize(np.array([13, 14, 9])) == "what is"
    with pytest.raises(ValueError, match="holds <image> 2 times, expected once"):
        model.tokenize("what is <image>")
    with pytest.raises(ValueError, match="question is empty"):
        model.tokenize(" ")


def test_stream_in_chunks_is_one_pass(reference, config, model):
    """Three seconds in chunks of two, one padded: logits and greedy tokens of one pass."""
    rng = np.random.default_rng(1)
    pieces = [
        SimpleNamespace(
            frames=rng.integers(0, 256, (2, 20, 20, 3), np.uint8),
            samples=np.zeros(16_000, np.float32),
        )
        for _ in range(3)
    ]
    params, decoder = reference.params, reference.config.decoder
    session = Session(model, full(3 * model.tokens_per_piece), chunk_pieces=2)
    session.watch(pieces[:1]).watch(pieces[1:])
    rows = asked_rows(model, session.program, model.tokenize(QUESTION), session.pieces)
    more = {"program": session.program, "max_new": 4, "prefix": session.prefix}
    answer = ask(model.params, session.carry, rows, **more)
    pixels = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 127.5 - 1
    see = jax.jit(lambda p, x: llava_video.encode(p, config, x))
    features = see(params, jnp.asarray(pixels))
    assert len(features) == 6 * 12
    ids = [*model.prefix, *[config.video] * len(features), *model.tokenize(QUESTION)]
    plan = prompt_plan(config, ids + answer.ids[:-1].tolist())
    out = one_pass(params["decoder"], decoder, plan, features).logits[-4:]
    close(answer.first, out[0], LOGITS)
    np.testing.assert_array_equal(answer.ids, out.argmax(-1))


def test_ten_hours(config):
    """A chunk after ten hours is laid out like the first; positions stay exact integers."""
    part = video_chunk(config, 2)
    assert part.pos[:, 0].tolist() == list(range(24)) and part.advance.tolist() == [24]
    assert (part.modality == 2).all() and 36_000 * 210 < 2**31


def test_refusals(raw, tower, folder, tmp_path):
    wrong = {
        "model_type": ("llava_onevision", "expected one of llava_qwen, llava"),
        "mm_newline_position": ("one_token", "implemented is 'grid' only"),
        "mm_projector_type": ("linear", "implemented is 'mlp2x_gelu' only"),
        "mm_vision_select_layer": (-1, "implemented is -2 only"),
        "mm_spatial_pool_stride": (4, "implemented is 2 only"),
        "mm_spatial_pool_mode": ("max", "implemented are 'bilinear' and 'average'"),
        "mm_vision_tower": ("openai/clip", "known are google/siglip-so400m-patch14-384"),
    }
    for key, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=message):
            llava_video.read_config(raw | {key: value})
    lacking = {k: v for k, v in raw.items() if k != "mm_newline_position"}
    with pytest.raises(ValueError, match="has no mm_newline_position"):
        llava_video.read_config(lacking)
    with pytest.raises(ValueError, match=r"whole number of frames in each second, got 1\.5"):
        load.load(folder, fps=1.5)
    with pytest.raises(ValueError, match="takes frames of one size: leave max_pixels out"):
        load.load(folder, max_pixels=400)
