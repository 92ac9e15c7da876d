"""The tensors of published checkpoints by shapes alone: names, how many, bytes, and two layouts.

Numbers were computed with transformers 5.24 from the published config.json files, and agree with
the published sizes of files; those of Qwen2-VL and SmolVLM2 from their sizes as publicly described,
that of Qwen3.5 from transformers' defaults, not compared with files.
"""

import copy
import math
import re
from pathlib import Path

import pytest

from jaxmem.models.hf.chat import Uncoded
from jaxmem.models.hf.checkpoint import match
from jaxmem.models.hf.family import ANY_SIZE, Files
from jaxmem.models.hf.published import names as published_names
from jaxmem.models.hf.published import published_config
from jaxmem.models.hf.quantized import Stored
from jaxmem.models.load import family_of

# Tensors, and their bytes in bfloat16.
PUBLISHED = {
    "qwen2-vl:2b": (729, 4_417_971_200),
    "qwen2-vl:7b": (730, 16_582_751_232),
    "qwen2-vl:72b": (1_354, 146_811_120_640),
    "qwen2.5-vl:3b": (824, 7_509_245_952),
    "qwen2.5-vl:7b": (729, 16_584_333_312),
    "qwen2.5-vl:32b": (1_161, 66_905_436_672),
    "qwen2.5-vl:72b": (1_353, 146_821_554_688),
    "qwen3-vl:2b": (625, 4_255_064_064),
    "qwen3-vl:4b": (713, 8_875_631_616),
    "qwen3-vl:8b": (750, 17_534_247_392),
    "qwen3.5:9b": (760, 18_819_627_488),
    "llava-onevision:0.5b": (716, 1_787_351_104),
    "llava-onevision:7b": (765, 16_059_780_160),
    "smolvlm2:256m": (471, 512_969_856),
    "smolvlm2:500m": (489, 1_014_964_608),
    "smolvlm2:2.2b": (657, 4_493_569_760),
    "qwen2.5-omni:7b": (1_346, 17_863_627_776),
    "qwen2.5-omni:3b": (1_442, 9_406_928_896),
}
# What names begin with: in the weight table, in files of the releases (older ones first), and in
# the memory of transformers 5.
QWEN = (
    ("visual.", "visual.", "model.visual."),
    ("model.", "model.", "model.language_model."),
    ("lm_head.", "lm_head.", "lm_head."),
)
LAYOUTS = {
    "qwen2-vl": QWEN,
    "qwen2.5-vl": QWEN,
    "smolvlm2": (("model.", "model."), ("lm_head.", "lm_head.")),
    "qwen3-vl": (("model.", "model.", "model."), ("lm_head.", "lm_head.", "lm_head.")),
    "qwen3.5": (("model.", "model.", "model."), ("lm_head.", "lm_head.", "lm_head.")),
    "llava-onevision": (
        ("vision_tower.", "vision_tower.vision_model.", "vision_tower.", "model.vision_tower."),
        ("language_model.model.",) * 3 + ("model.language_model.",),
        ("language_model.lm_head.",) * 3 + ("lm_head.",),
        ("multi_modal_projector.",) * 3 + ("model.multi_modal_projector.",),
        ("image_newline",) * 3 + ("model.image_newline",),
    ),
    "qwen2.5-omni": (
        ("visual.", "thinker.visual.", "model.visual."),
        ("audio_tower.", "thinker.audio_tower.", "model.audio_tower."),
        ("model.", "thinker.model.", "model.language_model."),
        ("lm_head.", "thinker.lm_head.", "lm_head."),
    ),
}


NOT_READ = {"qwen2.5-omni": "audio_tower.audio_bos_eos_token.weight"}
"""A matrix of two rows that the released code does not use."""


LLAVA_VIDEO = {
    "model_type": "llava_qwen", "mm_newline_position": "grid", "hidden_size": 896,
    "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 152_000,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
}  # fmt: skip
"""The one family that is not among the published shapes."""
NOT_THERE = {"qwen3.5": "mamba", "ma2mba": "full_attention"}
"""A kind of layer that a family does not have; of others it is a state in place of attention."""


def config_of(name):
    """Return a config.json, and the part of it that has the layers."""
    config = LLAVA_VIDEO if name == "llava-video" else published_config(name)
    config = copy.deepcopy(config)
    return config, config if "num_hidden_layers" in config else config["text_config"]


def decoder_of(config):
    return family_of(config, "here").read(Files(config, ANY_SIZE, Uncoded())).decoder


@pytest.mark.parametrize("name", [*published_names(), "llava-video"])
def test_kinds_of_layers_that_a_family_does_not_have_are_refused(name):
    config, text = config_of(name)
    decoder, layers = decoder_of(config), text["num_hidden_layers"]
    words = ["linear_attention" if kind else "full_attention" for kind in decoder.kinds]
    text["layer_types"] = words  # as newer transformers write it
    assert decoder_of(config) == decoder
    other = NOT_THERE.get(name.partition(":")[0], "linear_attention")
    for kind in (other, "sliding_attention"):
        text["layer_types"] = [words[0], kind, *words[2:]]
        said = f"layer 2 of {layers} is '{kind}' in config.json (layer_types); the kind"
        with pytest.raises(ValueError, match=re.escape(said)):
            decoder_of(config)
    for wrong in (5, words[1:]):
        text["layer_types"] = wrong
        with pytest.raises(ValueError, match="^layer_types (is 5|names .* layers)"):
            decoder_of(config)


@pytest.mark.parametrize(
    ("more", "slides"),
    [
        ({"max_window_layers": 24}, None),
        ({"max_window_layers": 20}, 21),
        ({"max_window_layers": 20, "layer_types": 24 * ["full_attention"]}, None),
        ({"max_window_layers": 20, "use_sliding_window": False}, None),
        ({}, 1),
    ],
)
def test_windows_are_refused_where_a_layer_would_have_one(more, slides):
    """As transformers fills `layer_types`: from `max_window_layers` on."""
    config, text = config_of("llava-onevision:0.5b")
    full = decoder_of(config)
    text |= {"use_sliding_window": True, "sliding_window": 4096, **more}
    if slides is None:
        assert decoder_of(config) == full
        return
    said = f"layer {slides} of 24 is 'sliding_attention' in config.json (use_sliding_window)"
    with pytest.raises(ValueError, match=re.escape(said)):
        decoder_of(config)


def names_of(name):
    """Return the tensors of a published model, and what is read of them."""
    config = published_config(name)
    family = family_of(config, name).read(Files(config, ANY_SIZE, Uncoded()))
    table = family.names.table
    return {x: weight.shape for weight in table.values() for x in weight.names}, family.names


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_of_published_checkpoints(name):
    shapes, names = names_of(name)
    family = name.partition(":")[0]
    table, layouts = names.table, LAYOUTS[family]
    every = dict(shapes)
    if family in NOT_READ:
        every[NOT_READ[family]] = (2, table["decoder.norm.scale"].shape[0])
    assert (len(every), 2 * sum(map(math.prod, every.values()))) == PUBLISHED[name]
    more = {"renames": names.renames, "ignore": names.ignore}
    for layout in range(1, len(layouts[0])):
        stored = []
        for key, shape in every.items():
            mine = max((x for x in layouts if key.startswith(x[0])), key=lambda x: len(x[0]))
            stored.append(Stored(Path(), mine[layout] + key.removeprefix(mine[0]), shape, "BF16"))
        found = match(stored, table, **more)
        assert {key: item.shape for key, item in found.items()} == shapes
        with pytest.raises(ValueError, match=r"1 tensor\(s\) differ"):
            match(stored[1:], table, **more)
