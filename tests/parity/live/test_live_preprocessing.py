"""Preprocessing against the installed transformers: sizes, patches, log-mel frames, prompts.

transformers' video processors need torchvision, so videos are compared by what their pictures
share: the size rule, the normalisation and the order of patches. Frames are resized while they are
decoded, by another library than PIL: their pixels differ by less than a grey level on average.
"""

from importlib import import_module

import jax.numpy as jnp
import numpy as np
import pytest
from av import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from jaxmem.data.media.library import SCALING
from jaxmem.models.encoders.vision_parts import patchify
from jaxmem.models.encoders.whisper_mel import LogMel, mel_filters
from jaxmem.models.hf.chat import read_chat
from jaxmem.models.hf.preprocessor import Limits, limits_of, pixels_of, read_settings, smart_resize
from jaxmem.models.llava import onevision as llava_onevision
from jaxmem.models.llava import pictures

SIZES = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(20, 2200, (60, 2))]


@pytest.mark.parametrize("cell, least, most", [(28, 3136, 1_003_520), (32, 65_536, 400_000)])
def test_size_of_pictures(hf, cell, least, most):
    pil = hf.transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    for size in SIZES:
        expected = pil.smart_resize(*size, factor=cell, min_pixels=least, max_pixels=most)
        assert smart_resize(*size, cell=cell, limits=Limits(least, most)) == tuple(expected)
    with pytest.raises(ValueError):
        pil.smart_resize(2010, 10, factor=cell)
    with pytest.raises(ValueError):
        smart_resize(2010, 10, cell=cell, limits=Limits(least, most))


def test_size_of_qwen3_videos(hf):
    """A frame gets what the settings leave to one of the longest video."""
    # Only its class needs torchvision.
    video = import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    size = {"shortest_edge": 4096, "longest_edge": 25_165_824}
    limits = limits_of({"size": size, "max_frames": 768}, whole_videos=True)
    for height, width in SIZES:
        if min(height, width) < 32:
            continue
        expected = video.smart_resize(
            num_frames=768, height=height, width=width, temporal_factor=2, factor=32,
            min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"],
        )  # fmt: skip
        assert smart_resize(height, width, cell=32, limits=limits) == tuple(expected)


@pytest.mark.parametrize("patch, merge, temporal", [(14, 2, 2), (16, 2, 2), (4, 3, 1)])
def test_patches(hf, tmp_path, patch, merge, temporal):
    """Values and order of a picture's patches, through the saved settings."""
    rng = np.random.default_rng(patch)
    mean, std = rng.uniform(0.3, 0.6, (2, 3)).tolist()
    processor = hf.transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    processor = processor.Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=merge, temporal_patch_size=temporal,
        image_mean=mean, image_std=std, min_pixels=1, max_pixels=10**9,
    )  # fmt: skip
    processor.save_pretrained(tmp_path)
    cell = patch * merge
    picture = rng.integers(0, 256, (cell * 3, cell * 5, 3), np.uint8)
    expected = processor(images=[picture], return_tensors="np")
    pixels = pixels_of(read_settings(tmp_path))(jnp.asarray(picture[None]))
    pixels = jnp.repeat(pixels, temporal, axis=0)
    found = patchify(pixels, patch=patch, temporal=temporal, merge=merge)
    np.testing.assert_array_equal(expected["image_grid_thw"], [[1, merge * 3, merge * 5]])
    np.testing.assert_allclose(found, expected["pixel_values"], atol=2e-6)


@pytest.mark.parametrize("native", [(270, 480), (90, 130), (56, 84)])
def test_resampling(hf, native):
    """A frame at the size of the rule, in grey levels of 255, against the processor's bicubic."""
    processor = hf.transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    limits = {"min_pixels": 28**2 * 20, "max_pixels": 28**2 * 60}
    rng, (height, width) = np.random.default_rng(0), native
    y, x = np.mgrid[:height, :width]
    picture = np.stack([127 + 90 * np.sin(x / 17), (3 * x + 5 * y) % 256, 2 * np.minimum(x, y)], -1)
    picture[height // 3 : height // 2, width // 4 : width // 2] = 255 * rng.integers(2)
    picture[: height // 5, : width // 5] = rng.integers(0, 256, (height // 5, width // 5, 3))
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    make = processor.Qwen2VLImageProcessorPil(**limits, image_mean=[0] * 3, image_std=[1] * 3)
    expected = make(images=[picture], return_tensors="np")
    size = smart_resize(*native, cell=28, limits=Limits(*limits.values()))
    assert tuple(expected["image_grid_thw"][0, 1:] * 14) == size
    frame = VideoReformatter().reformat(
        VideoFrame.from_ndarray(picture, format="rgb24"), width=size[1], height=size[0],
        format="rgb24", interpolation=SCALING, dst_color_range=ColorRange.JPEG, threads=1,
    ).to_ndarray()  # fmt: skip
    pixels = jnp.repeat(jnp.asarray(frame[None], jnp.float32), 2, axis=0)
    found = np.asarray(patchify(pixels, patch=14, temporal=2, merge=2))
    apart = np.abs(found - 255 * expected["pixel_values"])
    assert apart.mean() < 1 and np.quantile(apart, 0.99) <= 4 and apart.max() < 40


def test_siglip_pixels(hf, tmp_path):
    processor = hf.transformers.models.siglip.image_processing_pil_siglip
    processor = processor.SiglipImageProcessorPil(size={"height": 30, "width": 30})
    processor.save_pretrained(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    expected = processor(images=[picture], return_tensors="np")["pixel_values"]
    found = pixels_of(read_settings(tmp_path))(jnp.asarray(picture[None]))
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_llava_tiles(hf, seed):
    """The size that a picture is cut into tiles at, and how many tiles come."""
    rng, side = np.random.default_rng(seed), 28
    most = rng.integers(1, 7, 2)
    sizes = [[side * r, side * c] for r in range(1, most[0] + 1) for c in range(1, most[1] + 1)]
    raw = {
        "model_type": "llava_onevision", "image_grid_pinpoints": sizes,
        "image_token_index": 18, "video_token_index": 19,
        "text_config": {
            "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1,
            "vocab_size": 20, "intermediate_size": 8,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "image_size": side, "patch_size": 7,
        },
    }  # fmt: skip
    config = llava_onevision.read_config(raw)
    pil = hf.transformers.models.llava_onevision.image_processing_pil_llava_onevision
    processor = pil.LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_grid_pinpoints=sizes
    )
    for height, width in rng.integers(10, 300, (12, 2)).tolist():
        expected = hf.transformers.image_processing_utils.select_best_resolution(
            (height, width), sizes
        )
        best = pictures.best_size(config, (height, width))
        assert best == tuple(expected)
        picture = np.zeros((height, width, 3), np.uint8)
        tiles = processor(images=[picture], return_tensors="np")["pixel_values"]
        assert tiles.shape[1] == 1 + best[0] * best[1] // side**2


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("frames", [3, 57, 301])
def test_log_mel(hf, bins, frames):
    """A whole clip, mirrored at both ends, and one with silence after it, as Omni's is."""
    make = hf.transformers.WhisperFeatureExtractor(feature_size=bins)
    np.testing.assert_allclose(mel_filters(bins, 16_000, 400), make.mel_filters, atol=1e-9)
    rng = np.random.default_rng(frames)
    samples = (0.2 * rng.normal(size=160 * frames)).astype(np.float32)
    samples *= np.linspace(0.001, 1, len(samples), dtype=np.float32)
    whole = make(samples, sampling_rate=16_000, padding=False, return_tensors="np")
    found = LogMel(bins)(samples, None)
    np.testing.assert_allclose(found.T, whole["input_features"][0], atol=1e-4)
    padded = make(samples, sampling_rate=16_000, return_attention_mask=True, return_tensors="np")
    real = padded["input_features"][0][:, padded["attention_mask"][0] == 1]
    assert real.shape == found.T.shape
    np.testing.assert_allclose(found.T[:, :-2], real[:, :-2], atol=1e-4)


QWEN = (
    "{% set n = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'video' %}"
    "{% set n.value = n.value + 1 %}{% if add_vision_id %}Video {{ n.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BLOCKS = """{%- if messages[0].role == 'system' %}
    {{- raise_exception('no system prompt') }}
{%- endif %}
{% for message in messages %}
    {%- if message.role == 'nobody' %}
        {%- break %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for item in message.content %}
    {% if item.type == 'video' %}
<|video_pad|>
    {% elif item.type == 'text' %}
{{ item.text | trim }} {{ item | tojson }}
    {% endif %}
    {%- endfor %}
<|im_end|>{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|video_pad|>"]  # fmt: skip
QUESTIONS = (
    "What is shown?",
    "  Was steht dort:  'über'?\n",
    '<b>5 > 3 & "x"</b> \u4f60\u597d \U0001f3a5',
)


@pytest.fixture(scope="module")
def text_side(hf, tmp_path_factory):
    """A byte-level tokenizer, saved by transformers with a chat template."""
    tokenizers = pytest.importorskip("tokenizers")

    def make(template):
        raw = tokenizers.Tokenizer(tokenizers.models.BPE())
        raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        raw.train_from_iterator([QWEN, BLOCKS, *QUESTIONS], trainer)
        theirs = hf.transformers.PreTrainedTokenizerFast(
            tokenizer_object=raw, eos_token="<|im_end|>", chat_template=template
        )
        folder = tmp_path_factory.mktemp("text")
        theirs.save_pretrained(folder)
        return theirs, read_chat(folder)

    return make


@pytest.mark.parametrize("template", [QWEN, BLOCKS], ids=["qwen", "blocks"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_prompt(text_side, template, question):
    """Text, token ids, the parts before and after the video, and back."""
    theirs, chat = text_side(template)
    content = [{"type": "video"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    more = {"add_generation_prompt": True}
    expected = theirs.apply_chat_template(messages, tokenize=False, **more)
    assert chat.render(messages) == expected
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, **more)["input_ids"]
    np.testing.assert_array_equal(chat.ids(expected), ids)
    video = theirs.convert_tokens_to_ids("<|video_pad|>")
    before, after = chat.around(question, video)
    np.testing.assert_array_equal([*before, video, *after], ids)
    assert chat.text(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert chat.end == (theirs.eos_token_id,)
