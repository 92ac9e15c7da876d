"""A checkpoint directory like those on a hub, with random weights: code runs, answers mean nothing.

    directory = write_tiny("tiny-qwen")
    model = jm.load(directory, dtype="float32")

It is a Qwen2.5-VL of three layers with a vocabulary of a hundred words, for notebooks, examples and
first tries without a download.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxmem.models.hf.tensors import write_tensors
from jaxmem.models.hf.weights import Table
from jaxmem.models.qwen.qwen2_5_vl import read_config, weight_table

VOCABULARY = 100
MEDIA = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = ("<|im_start|>", "<|im_end|>")
WORDS = """
system user assistant You are a helpful What what Which is was are were the this that in on at of to
and there here it happening happened happens shown seen heard now then last first shape sound colour
video talk slide Describe detail about ? . , :
""".split()
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] if c['type'] == 'video' %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)


def write_tiny(directory: str | Path, seed: int = 0) -> Path:
    """Write the checkpoint and return its directory, which `jaxmem.load` takes.

    Args:
      directory: of the checkpoint; made if need be.
      seed: of the weights.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": _config(),
        "preprocessor_config.json": _settings(),
        "tokenizer.json": _tokenizer(),
        "chat_template.json": {"chat_template": TEMPLATE},
        "generation_config.json": {
            "eos_token_id": _ids()["<|im_end|>"],
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
        },
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, indent=1) + "\n")
    tensors = random_tensors(weight_table(read_config(_config())), seed)
    write_tensors(target / "model.safetensors", tensors)
    return target


def _config() -> dict[str, Any]:
    ids = _ids()
    return {
        "model_type": "qwen2_5_vl",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "hidden_act": "silu",
            "hidden_size": 48,
            "intermediate_size": 64,
            "max_position_embeddings": 2048,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
            "use_sliding_window": False,
            "vocab_size": VOCABULARY,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 4,
            "fullatt_block_indexes": [1, 3],
            "hidden_act": "silu",
            "hidden_size": 32,
            "in_channels": 3,
            "intermediate_size": 40,
            "num_heads": 2,
            "out_hidden_size": 48,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 16,
        },
    }


def _settings() -> dict[str, Any]:
    """Frames are made of one to ten cells of 2 x 2 patches."""
    return {
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 64,
        "max_pixels": 640,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }


def _ids() -> dict[str, int]:
    named = ["<unk>", *MEDIA, *CHAT, *WORDS]
    named += [f"w{i}" for i in range(len(named), VOCABULARY)]
    return {name: i for i, name in enumerate(named)}


def _tokenizer() -> dict[str, Any]:
    """Return a tokenizer of whole words and single signs, as the package `tokenizers` reads it."""
    ids = _ids()
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": ids[name], "content": name, "special": True} | plain for name in MEDIA + CHAT]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
    }


def random_tensors(table: Table, seed: int = 0) -> dict[str, np.ndarray]:
    """Return every tensor of a weight table by its stored name: norms of one, the others random.

    Args:
      table: of any family.
      seed: of the numbers.
    """
    draw, tensors = np.random.default_rng(seed), {}
    for path, weight in table.items():
        for name in weight.names:
            if name in tensors:  # the rows of a fused tensor are several entries
                continue
            if path.endswith(".scale"):
                value = np.ones(weight.shape)
            else:
                spread = 1.0 if "embedding" in path else np.prod(weight.shape[1:] or (64,)) ** -0.5
                value = spread * draw.standard_normal(weight.shape)
            tensors[name] = value.astype(np.float32)
    return tensors
