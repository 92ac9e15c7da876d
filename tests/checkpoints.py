"""Tiny checkpoint directories: the reference weights with a tokenizer, a template and settings."""

import json
import shutil
from pathlib import Path

import pytest

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] if c['type'] == 'video' %}{{ 'VIDEO' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ("user", "assistant", "what", "is", "shown", "now", "Describe", "the", "video", "seconds")
SIGNS = ("<", ">", ".", *"0123456789")
QWEN = {1: "<|vision_start|>", 2: "<|vision_end|>", 3: "<|image_pad|>", 4: "<|video_pad|>"}
OMNI = {
    1: "<|vision_bos|>", 2: "<|vision_eos|>", 3: "<|AUDIO|>", 4: "<|IMAGE|>", 5: "<|VIDEO|>",
    6: "<|audio_bos|>", 7: "<|audio_eos|>",
}  # fmt: skip
LLAVA = {3: "<image>", 4: "<video>"}
# Directory of the reference, its special tokens, what the template writes for a video.
FAMILIES = {
    "qwen2_5_vl": ("qwen2_5_vl", QWEN, "<|vision_start|><|video_pad|><|vision_end|>"),
    "qwen3_vl": ("qwen3_vl", QWEN, "<|vision_start|><|video_pad|><|vision_end|>"),
    "qwen2_5_omni": ("qwen2_5_omni_thinker", OMNI, "<|vision_bos|><|VIDEO|><|vision_eos|>"),
    "llava_onevision": ("llava_onevision", LLAVA, "<video>\n"),
}
SETTINGS = {
    "min_pixels": 64, "max_pixels": 640, "patch_size": 4, "temporal_patch_size": 2,
    "merge_size": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.25, 0.2],
}  # fmt: skip


def tokenizer_of(special):
    """A tokenizer of words and single signs; ids without a name are `w` and their number."""
    tokenizers = pytest.importorskip("tokenizers")
    names = {i: f"w{i}" for i in range(100)} | special
    names |= {8: "<|im_start|>", 9: "<|im_end|>", 10: "<unk>"}
    names |= {11 + i: word for i, word in enumerate((*WORDS, *SIGNS))}
    ids = {name: i for i, name in names.items()}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    cut = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = cut.Sequence([cut.Whitespace(), cut.Digits(individual_digits=True)])
    tokenizer.add_special_tokens([*special.values(), "<|im_start|>", "<|im_end|>", "<unk>"])
    return tokenizer


def write_checkpoint(golden: Path, family: str, target: Path) -> Path:
    """Write a directory as a hub's, with the reference weights of `family`."""
    name, special, video = FAMILIES[family]
    source = golden / "hf" / name
    if not (source / "model.safetensors").exists():
        pytest.skip(f"no model.safetensors in {source}")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "model.safetensors", target)
    config = json.loads((source / "config.json").read_text())
    if family == "qwen2_5_omni":  # sound: one token in 40 ms, as in the released models
        config["position_id_per_seconds"] = 25
    settings = dict(SETTINGS)
    if family == "qwen3_vl":  # limits of whole videos
        low, high = settings.pop("min_pixels"), settings.pop("max_pixels")
        settings["size"] = {"shortest_edge": 100 * low, "longest_edge": 100 * high}
        settings["max_frames"] = 100
    if family == "llava_onevision":
        settings = {}
    for file, value in (
        ("config.json", config),
        ("preprocessor_config.json", settings),
        ("chat_template.json", {"chat_template": TEMPLATE.replace("VIDEO", video)}),
        ("generation_config.json", {"eos_token_id": [9, 1]}),
    ):
        (target / file).write_text(json.dumps(value))
    tokenizer_of(special).save(str(target / "tokenizer.json"))
    return target
