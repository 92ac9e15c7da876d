"""Tiny checkpoint directories: the reference weights with a tokenizer, a template and settings.

Sizes and token ids are those of the reference's config.json; words take the ids that it leaves.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmem.models.mamba import ma2mba
from jaxmem.models.qwen import qwen2_vl, qwen3_5
from jaxmem.models.qwen.tiny_checkpoint import random_tensors
from jaxmem.models.smolvlm import smolvlm, words

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
    "qwen3_5": ("qwen3_5", QWEN, "<|vision_start|><|video_pad|><|vision_end|>"),
    "qwen2_5_omni": ("qwen2_5_omni_thinker", OMNI, "<|vision_bos|><|VIDEO|><|vision_eos|>"),
    "llava_onevision": ("llava_onevision", LLAVA, "<video>\n"),
}
STAMPED = ("qwen3_vl", "qwen3_5")
"""Families with time stamps; their settings are meant for whole videos."""
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
    return write_files_of(config, family, target)


def write_files_of(config, family: str, target: Path, *, cells=(LEAST, MOST)) -> Path:
    """Write all but the weights of a family in `FAMILIES`."""
    _, names, video = FAMILIES[family]
    target.mkdir(parents=True, exist_ok=True)
    settings = {}
    if "qwen" in family:
        settings = settings_of(config, whole_videos=family in STAMPED, cells=cells)
    return write_small_files(target, config, names, settings, video)


def write_small_files(target: Path, config, names, settings, video: str) -> Path:
    """Write what a checkpoint holds besides its weights."""
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


def write_qwen2_vl(target: Path) -> Path:
    """Write a Qwen2-VL with weights of its own; nobody stores reference outputs of one."""
    config = {
        "model_type": "qwen2_vl", "image_token_id": 3, "video_token_id": 4,
        "vision_start_token_id": 5, "vision_end_token_id": 6, "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4,
            "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": 100,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
        },
        "vision_config": {
            "depth": 2, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2, "num_heads": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(qwen2_vl.weight_table(qwen2_vl.read_config(config)))
    save_file(tensors, target / "model.safetensors")
    settings, video = settings_of(config, whole_videos=False), FAMILIES["qwen2_5_vl"][2]
    return write_small_files(target, config, QWEN, settings, video)


def write_qwen3_5(target: Path) -> Path:
    """Write a Qwen3.5 of two periods with weights of its own, and a head for further tokens."""
    config = {
        "model_type": "qwen3_5", "image_token_id": 3, "video_token_id": 4,
        "vision_start_token_id": 5, "vision_end_token_id": 6,
        "text_config": {
            "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 24,
            "num_hidden_layers": 8, "num_key_value_heads": 2, "vocab_size": 100,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "full_attention_interval": 4,
            "rope_parameters": {"partial_rotary_factor": 0.25, "mrope_section": [1, 1, 1]},
        },
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": 48, "patch_size": 4, "num_position_embeddings": 36,
        },
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(qwen3_5.weight_table(qwen3_5.read_config(config)))
    tensors = {k: 0 * x if "norm" in k.split(".")[-2] else x for k, x in tensors.items()}
    tensors |= {"mtp.fc.weight": np.ones((48, 96), np.float32)}
    save_file(tensors, target / "model.safetensors")
    config["vision_config"] |= {"temporal_patch_size": 2, "spatial_merge_size": 2}
    settings, video = settings_of(config, whole_videos=True), FAMILIES["qwen3_5"][2]
    return write_small_files(target, config, QWEN, settings, video)


SMOLVLM = {
    "image": words.IMAGE, "around": words.AROUND, "whole": words.GLOBAL,
    "utterance": "<end_of_utterance>",
}  # fmt: skip


def write_smolvlm(target: Path) -> Path:
    """Write a SmolVLM2 with weights of its own; frames are 24 pixels wide or high, then squares."""
    config = {
        "model_type": "smolvlm", "image_token_id": 3, "around_token_id": 4, "whole_token_id": 5,
        "utterance_token_id": 6, "scale_factor": 2, "tie_word_embeddings": True,
        "text_config": {
            "model_type": "llama", "hidden_size": 48, "intermediate_size": 64, "head_dim": 16,
            "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2,
            "vocab_size": 100, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
        },
        "vision_config": {
            "model_type": "smolvlm_vision", "hidden_size": 32, "intermediate_size": 40,
            "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 24, "patch_size": 6,
        },
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(smolvlm.weight_table(smolvlm.read_config(config)))
    save_file(tensors, target / "model.safetensors")
    settings = {"image_mean": MEAN, "image_std": STD, "max_image_size": {"longest_edge": 24}}
    settings |= {"size": {"longest_edge": 96}}
    settings["video_sampling"] = {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 24}}
    return write_small_files(target, config, SMOLVLM, settings, "<video>")


MA2MBA = {
    "end": "<|endoftext|>", "video": "<video>", "system": "<|system|>", "user": "<|user|>",
    "assistant": "<|assistant|>",
}  # fmt: skip


def write_ma2mba(target: Path) -> Path:
    """Write a Video-Ma2mba with weights of its own; frames are 16 x 16 pixels, 4 tokens each."""
    config = {
        "model_type": "video_ma2mba", "end_token_id": 0, "video_token_id": 3,
        "system_token_id": 4, "user_token_id": 5, "assistant_token_id": 6,
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "mamba2", "hidden_size": 32, "num_hidden_layers": 3, "num_heads": 8,
            "head_dim": 8, "state_size": 8, "n_groups": 1, "vocab_size": 100,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 40,
            "num_attention_heads": 2, "num_hidden_layers": 3, "image_size": 16, "patch_size": 4,
        },
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(ma2mba.weight_table(ma2mba.read_config(config)))
    for name in ("encoder.layers.2.mlp.fc1.weight", "post_layernorm.weight"):  # which nobody reads
        tensors[f"vision_tower.{name}"] = np.zeros((2, 3), np.float32)
    save_file(tensors, target / "model.safetensors")
    settings = {"image_mean": MEAN, "image_std": STD}
    write_small_files(target, config, MA2MBA, settings, "")
    template = {"chat_template": ma2mba.TEMPLATE}
    (target / "chat_template.json").write_text(json.dumps(template))
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    return target


def ids_of(folder: Path, text: str) -> list[int]:
    """Token ids of a text by a directory's tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids
