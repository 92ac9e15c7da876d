"""Tiny checkpoint directories: the reference weights with a tokenizer, a template and settings.

Sizes and token ids are those of the reference's config.json; words take the ids that it leaves.
"""

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
CHAT = ("<|im_start|>", "<|im_end|>", "<unk>")
WORDS = ("user", "assistant", "what", "is", "shown", "now", "Describe", "the", "video", "seconds")
SIGNS = ("<", ">", ".", "?", *"0123456789")
QWEN = {
    "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>", "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}  # fmt: skip
OMNI = {
    "vision_start": "<|vision_bos|>", "vision_end": "<|vision_eos|>", "audio": "<|AUDIO|>",
    "image": "<|IMAGE|>", "video": "<|VIDEO|>", "audio_start": "<|audio_bos|>",
    "audio_end": "<|audio_eos|>",
}  # fmt: skip
LLAVA = {"image": "<image>", "video": "<video>"}
# Directory of the reference, its special tokens, what the template writes for a video.
FAMILIES = {
    "qwen2_5_vl": ("qwen2_5_vl", QWEN, "<|vision_start|><|video_pad|><|vision_end|>"),
    "qwen3_vl": ("qwen3_vl", QWEN, "<|vision_start|><|video_pad|><|vision_end|>"),
    "qwen2_5_omni": ("qwen2_5_omni_thinker", OMNI, "<|vision_bos|><|VIDEO|><|vision_eos|>"),
    "llava_onevision": ("llava_onevision", LLAVA, "<video>\n"),
}
MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]
LEAST, MOST = 1, 10  # cells of a frame
MAX_FRAMES = 100  # of a whole video, which the limits of Qwen3-VL are for


def special_of(config, names) -> dict[int, str]:
    """Ids of a config.json to their tokens."""
    keys = ("{}_token_id", "{}_token_index")
    found = {}
    for name, text in names.items():
        at = next(config[key.format(name)] for key in keys if key.format(name) in config)
        found[at] = text
    return found


def tokenizer_of(special, vocab: int):
    """A tokenizer of words and single signs; ids without a name are `w` and their number."""
    tokenizers = pytest.importorskip("tokenizers")
    names = {i: f"w{i}" for i in range(vocab)} | special
    free = [i for i in range(vocab) if i not in special]
    names |= dict(zip(free[1:], (*CHAT, *WORDS, *SIGNS), strict=False))
    ids = {name: i for i, name in names.items()}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    cut = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = cut.Sequence([cut.Whitespace(), cut.Digits(individual_digits=True)])
    tokenizer.add_special_tokens([*special.values(), *CHAT])
    return tokenizer


def settings_of(config, *, whole_videos: bool, cells=(LEAST, MOST)) -> dict:
    """Preprocessor settings of a Qwen config.json."""
    vision = config["vision_config"]
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    found = {
        "patch_size": patch, "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": merge, "image_mean": MEAN, "image_std": STD,
    }  # fmt: skip
    low, high = (each * (patch * merge) ** 2 for each in cells)
    if not whole_videos:
        return found | {"min_pixels": low, "max_pixels": high}
    size = {"shortest_edge": MAX_FRAMES * low, "longest_edge": MAX_FRAMES * high}
    return found | {"size": size, "max_frames": MAX_FRAMES}


def heard_in_time(config) -> dict:
    """Audio of 40 ms a token, as released, in pieces of whole windows, 2 s or more."""
    window = 4 * config["audio_config"]["n_window"]  # log-mel frames of an even number of tokens
    frames = -(-200 // window) * window
    return config | {"position_id_per_seconds": 25, "seconds_per_chunk": frames / 100}


def write_checkpoint(golden: Path, family: str, target: Path) -> Path:
    """Write a directory as a hub's, with the reference weights of `family`."""
    source = golden / "hf" / FAMILIES[family][0]
    if not (source / "model.safetensors").exists():
        pytest.skip(f"no model.safetensors in {source}")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "model.safetensors", target)
    config = json.loads((source / "config.json").read_text())
    if family == "qwen2_5_omni":
        config = heard_in_time(config)
    return write_small_files(config, family, target)


def write_small_files(config, family: str, target: Path, *, cells=(LEAST, MOST)) -> Path:
    """Write all but the weights: the config with a tokenizer, a template and settings."""
    _, names, video = FAMILIES[family]
    target.mkdir(parents=True, exist_ok=True)
    settings = {}
    if "qwen" in family:
        settings = settings_of(config, whole_videos=family == "qwen3_vl", cells=cells)
    vocab = config.get("text_config", config)["vocab_size"]
    tokenizer = tokenizer_of(special_of(config, names), vocab)
    for file, value in (
        ("config.json", config),
        ("preprocessor_config.json", settings),
        ("chat_template.json", {"chat_template": TEMPLATE.replace("VIDEO", video)}),
        ("generation_config.json", {"eos_token_id": [tokenizer.token_to_id("<|im_end|>"), 1]}),
    ):
        (target / file).write_text(json.dumps(value))
    tokenizer.save(str(target / "tokenizer.json"))
    return target


def ids_of(folder: Path, text: str) -> list[int]:
    """Token ids of a text by a directory's tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids
