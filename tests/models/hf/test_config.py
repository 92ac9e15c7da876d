"""Keys of config.json that every family reads alike: what is not of their kind is refused."""

import copy
import math

import pytest

from jaxmem.models.encoders import clip, siglip
from jaxmem.models.hf.chat import Uncoded
from jaxmem.models.hf.config import decoder_config, rope_theta
from jaxmem.models.hf.family import ANY_SIZE, Files
from jaxmem.models.hf.keys import flag, is_tied, number, token_ids, whole_numbers
from jaxmem.models.hf.published import published_config
from jaxmem.models.load import family_of

QWEN = tuple(f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end"))
OMNI = (
    *(f"{name}_token_index" for name in ("image", "video", "audio")),
    *(f"{name}_token_id" for name in ("vision_start", "vision_end", "audio_start", "audio_end")),
)
LLAVA = ("image_token_index", "video_token_index")
TOKENS = {
    "qwen2-vl:2b": QWEN, "qwen2.5-vl:3b": QWEN, "qwen3-vl:2b": QWEN, "qwen3.5:9b": QWEN,
    "qwen2.5-omni:3b": OMNI, "salmonn:3b": (*QWEN, "audio_token_id"),
    "salmonn:4b": (*QWEN, "audio_token_id"), "llava-onevision:0.5b": LLAVA,
    "smolvlm2:256m": ("image_token_id",), "ma2mba:370m": ("video_token_id",),
}  # fmt: skip
"""Keys of the tokens that a family reads."""
EVERY_TOKEN = [(name, key) for name, keys in TOKENS.items() for key in keys]
NO_DEFAULT = [pair for pair in EVERY_TOKEN if pair[1] != "audio_token_id"]
"""Of tokens that the embedding must have: that of sound in SALMONN is a mark and no more."""
NEXT = {
    "model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_newline_position": "grid", "hidden_size": 48, "intermediate_size": 64,
    "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
"""Of LLaVA-Video, of which no size is published here."""


def config_of(name):
    """A config.json of its own, and the part of it on the language model."""
    config = copy.deepcopy(NEXT if name == "next" else published_config(name))
    return config, config.get("text_config") or config


def read(config):
    family = family_of(config, "it").read(Files(config, ANY_SIZE, Uncoded()))
    return family.config


def refused(config, said, expected=""):
    """Reading says so, in one sentence."""
    with pytest.raises(ValueError) as caught:
        read(config)
    told = str(caught.value)
    assert told.startswith(said) and expected in told, told
    assert told.endswith(": use the config.json of the checkpoint.") and ". " not in told


@pytest.mark.parametrize(("name", "key"), EVERY_TOKEN)
def test_ids_of_tokens_are_those_of_the_vocabulary(name, key):
    config, text = config_of(name)
    vocab = text["vocab_size"]
    for wrong in (-1, vocab, "x", [1], True, 1.0):
        config[key] = wrong
        said = f"{key} is {wrong!r} in config.json, expected a token of the vocabulary, from 0 on "
        refused(config, f"{said}and below {vocab} (vocab_size)")
    for right in (0, vocab - 1):
        config[key] = right
        read(config)


@pytest.mark.parametrize(("name", "key"), NO_DEFAULT)
def test_a_default_beyond_the_vocabulary_is_no_token_either(name, key):
    config, text = config_of(name)
    text["vocab_size"] = 100
    config |= dict.fromkeys(TOKENS[name], 7)
    read(config)
    del config[key]
    with pytest.raises(ValueError, match=rf"^{key} is \d+ where config.json does not say, .* 100"):
        read(config)


def test_ids_that_a_family_does_not_use_may_be_anything():
    config, _ = config_of("qwen2.5-vl:3b")
    plain = read(config)
    assert read(config | {"pad_token_id": -1, "audio_token_id": "x"}) == plain
    video = read(config_of("next")[0] | {"image_token_index": -200})  # not a row of the embedding
    assert video.video == NEXT["vocab_size"] - 1


def test_names_of_tokens_that_are_older_or_newer():
    names, defaults = {"image": "image_token_index"}, {"image_token_index": 5}
    for config, want in (
        ({}, 5), ({"image_token_id": 3}, 3), ({"image_token_index": 2, "image_token_id": 3}, 2)
    ):  # fmt: skip
        assert token_ids(config, names, defaults, 10) == {"image": want}
    with pytest.raises(ValueError, match="^image_token_id is 10 in config.json"):
        token_ids({"image_token_id": 10}, names, defaults, 10)


FLAGS = [
    *(("", "tie_word_embeddings", name) for name in (*TOKENS, "next")),
    *(
        ("text_config", "tie_word_embeddings", name)
        for name in ("qwen3-vl:2b", "qwen3.5:9b", "llava-onevision:0.5b", "smolvlm2:256m")
    ),
    *(("text_config", key, "ma2mba:370m") for key in ("use_bias", "use_conv_bias")),
    *(("text_config", key, "qwen3-vl:2b") for key in ("attention_bias", "use_sliding_window")),
    ("", "use_sliding_window", "qwen2-vl:2b"),
    ("", "multimodal_projector_bias", "llava-onevision:0.5b"),
    ("vision_config", "vision_use_head", "llava-onevision:0.5b"),
]
"""Keys that mean yes or no: the part of config.json, the key, a model that has it."""


@pytest.mark.parametrize(("part", "key", "name"), FLAGS)
def test_what_is_neither_yes_nor_no_is_refused(part, key, name):
    config, _ = config_of(name)
    where = config[part] if part else config
    for wrong in ([], {}, [1], "false", "no", "", 0, 1):
        where[key] = wrong
        refused(config, f"{key} is {wrong!r} in ", "expected true or false")


def test_a_yes_or_no_that_is_not_there_is_the_default():
    for default in (True, False):
        assert flag({}, "key", default) is flag({"key": None}, "key", default) is default
        assert flag({"key": not default}, "key", default) is not default
    assert is_tied({"tie_word_embeddings": True}, {"tie_word_embeddings": False})
    assert not is_tied({}, {"tie_word_embeddings": None})
    with pytest.raises(ValueError, match=r"^tie_word_embeddings is \[\]"):
        is_tied({"tie_word_embeddings": True}, {"tie_word_embeddings": []})


THETAS = (0, -5, math.nan, math.inf, "x", True, [1])


@pytest.mark.parametrize("wrong", THETAS, ids=repr)
@pytest.mark.parametrize("name", ["qwen2-vl:2b", "qwen3-vl:2b", "qwen3.5:9b", "smolvlm2:256m"])
def test_rotary_bases_are_numbers_above_0(name, wrong):
    config, text = config_of(name)
    rope = text.pop("rope_scaling", None) or text.pop("rope_parameters", {})
    rest = {key: x for key, x in rope.items() if key != "rope_theta"}
    said = f"rope_theta is {wrong!r} in config.json, expected a number above 0"
    for newer, older in ((rest | {"rope_theta": wrong}, 1e4), (rest, wrong)):
        text |= {"rope_parameters": newer, "rope_theta": older}
        refused(config, said)


@pytest.mark.parametrize("wrong", [0, -0.25, 1.5, math.nan, "0.25", True, []], ids=repr)
def test_the_part_of_a_head_that_turns_is_above_0_and_at_most_1(wrong):
    config, text = config_of("qwen3.5:9b")
    key, sections = "partial_rotary_factor", {"mrope_section": [11, 11, 10]}
    said = f"{key} is {wrong!r} in config.json, expected a number above 0 and up to 1"
    text["rope_parameters"] = sections | {key: wrong}
    refused(config, said)
    text |= {"rope_parameters": sections, key: wrong}
    refused(config, said)
    text[key] = 0.25
    assert read(config) == read(config_of("qwen3.5:9b")[0])


@pytest.mark.parametrize("wrong", [5, "16", [16, "24", 24], [16.0, 24, 24], [-1, 40, 25]], ids=repr)
def test_sections_of_the_axes_are_whole_numbers(wrong):
    config, text = config_of("qwen2.5-vl:3b")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": wrong}
    refused(config, f"mrope_section is {wrong!r} in config.json, expected a list of whole numbers")


@pytest.mark.parametrize(
    ("key", "wrong", "expected"),
    [
        ("factor", "4", "a number from 0 on"),
        ("beta_fast", 0, "a number above 0"),
        ("attention_factor", math.nan, "a number above 0"),
        ("original_max_position_embeddings", "x", "a number above 0"),
        ("rope_theta", 1, "a number above 1"),
        ("truncate", "no", "true or false"),
    ],
)
def test_settings_of_yarn(key, wrong, expected):
    text = {**NEXT, "rope_scaling": {"type": "yarn", "factor": 4, key: wrong}}
    text["max_position_embeddings"] = 64
    with pytest.raises(ValueError, match=f"^{key} is {wrong!r} in .*, expected {expected}: use"):
        decoder_config(text, qkv_bias=True, qk_norm=False, tied=False)


VISION = {
    "qwen2-vl:2b": (
        *("embed_dim", "hidden_size", "num_heads", "patch_size", "spatial_merge_size"),
        *("temporal_patch_size", "in_chans"),
    ),
    "qwen2.5-vl:3b": (
        *("hidden_size", "num_heads", "patch_size", "window_size", "in_chans", "tokens_per_second"),
        *("out_hidden_size", "intermediate_size"),
    ),
    "qwen3-vl:2b": ("patch_size", "num_position_embeddings", "temporal_patch_size", "in_channels"),
    "qwen3.5:9b": ("patch_size", "num_position_embeddings", "spatial_merge_size"),
    "qwen2.5-omni:3b": ("patch_size", "window_size"),
    "llava-onevision:0.5b": ("image_size", "patch_size", "num_channels", "hidden_size"),
    "smolvlm2:256m": ("image_size", "patch_size", "num_attention_heads", "intermediate_size"),
    "ma2mba:370m": ("image_size", "patch_size", "num_channels", "num_attention_heads"),
}
"""Sizes of the encoders of pictures."""


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, x in VISION.items() for key in x])
def test_sizes_of_encoders_are_whole_numbers_from_1_on(name, key):
    config, _ = config_of(name)
    for wrong in (0, -2, True, "4", 2.5, [4]):
        config["vision_config"][key] = wrong
        refused(config, f"{key} is {wrong!r} in ", "expected a whole number from 1 on")


@pytest.mark.parametrize(
    ("name", "part", "key", "wrong"),
    [
        ("qwen2-vl:2b", "vision_config", "mlp_ratio", "4"),
        ("qwen2.5-vl:3b", "vision_config", "fullatt_block_indexes", 7),
        ("qwen2.5-vl:3b", "vision_config", "fullatt_block_indexes", ["7"]),
        ("qwen3-vl:2b", "vision_config", "deepstack_visual_indexes", "x"),
        ("llava-onevision:0.5b", "vision_config", "layer_norm_eps", "1e-6"),
        ("ma2mba:370m", "vision_config", "layer_norm_eps", -1),
        ("qwen2.5-omni:3b", "audio_config", "num_mel_bins", True),
        ("qwen2.5-omni:3b", "audio_config", "encoder_attention_heads", 0),
        ("salmonn:3b", "audio_config", "d_model", "1280"),
        ("salmonn:3b", "audio_config", "second_per_window", "0.5"),
        ("qwen2.5-omni:3b", None, "position_id_per_seconds", "25"),
        ("qwen2.5-omni:3b", None, "seconds_per_chunk", 0),
        ("smolvlm2:256m", None, "scale_factor", 0),
        ("qwen3-vl:2b", "text_config", "head_dim", 0),
    ],
)
def test_other_numbers(name, part, key, wrong):
    config, _ = config_of(name)
    (config[part] if part else config)[key] = wrong
    refused(config, f"{key} is {wrong!r} in ")


def test_the_block_of_an_encoder_that_is_read_is_a_number():
    config, _ = config_of("llava-onevision:0.5b")
    with pytest.raises(ValueError, match="^vision_feature_layer is True in config.json"):
        read(config | {"vision_feature_layer": True})


@pytest.mark.parametrize("wrong", [0, "x", math.inf], ids=repr)
def test_the_rotary_base_of_an_encoder(wrong):
    config, _ = config_of("qwen3-vl:2b")
    config["vision_config"]["rope_parameters"] = {"rope_theta": wrong}
    refused(config, f"rope_theta is {wrong!r} in vision_config, expected a number above 0")


@pytest.mark.parametrize("encoder", [clip, siglip])
def test_a_patch_is_no_larger_than_its_picture(encoder):
    config = {"model_type": encoder.MODEL_TYPES[0], "image_size": 16, "patch_size": 17}
    with pytest.raises(ValueError, match=r"^patch_size is 17 in .*, expected at most .*\(16\)"):
        encoder.read_config(config)
    assert encoder.read_config(config | {"patch_size": 16}).grid == 1


def test_numbers():
    assert number({"a": 0}, "a") == 0 and number({"a": 1}, "a", above=0, most=1) == 1
    assert whole_numbers({"a": [0, 3]}, "a") == (0, 3)
    assert rope_theta({}) == 1e4 and rope_theta({"rope_theta": 1}) == 1
    with pytest.raises(ValueError, match="^a is None in b, expected a number from 0 on: use"):
        number({}, "a", "b")


PARTS = {
    "qwen2-vl:2b": ("vision_config", "rope_scaling"),
    "qwen2.5-vl:3b": ("vision_config", "text_config"),
    "qwen3-vl:2b": ("text_config", "vision_config"),
    "qwen3.5:9b": ("text_config", "vision_config"),
    "qwen2.5-omni:3b": ("thinker_config", "text_config", "vision_config", "audio_config"),
    "salmonn:3b": ("audio_config", "qformer_config"),
    "llava-onevision:0.5b": ("text_config", "vision_config"),
    "smolvlm2:256m": ("text_config", "vision_config"),
    "ma2mba:370m": ("text_config", "vision_config"),
    "next": ("rope_scaling",),
}
"""Parts of a config.json that are objects."""


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, x in PARTS.items() for key in x])
def test_parts_are_objects(name, key):
    config, _ = config_of(name)
    for wrong in ("x", [1], 3, True):
        (config["audio_config"] if key == "qformer_config" else config)[key] = wrong
        refused(config, f"{key} is {wrong!r} in ", "expected a JSON object")


@pytest.mark.parametrize("wrong", ["x", [3], [[384]], [[384, "384"]], [[0, 384]], 384], ids=repr)
def test_sizes_of_tiled_pictures_are_pairs(wrong):
    config, _ = config_of("llava-onevision:0.5b")
    refused(config | {"image_grid_pinpoints": wrong}, f"image_grid_pinpoints is {wrong!r} in ")
    sizes = read(config | {"image_grid_pinpoints": [[384, 768], [384, 384]]}).sizes
    assert sizes == ((384, 768), (384, 384))


def test_names_are_texts():
    config, _ = config_of("llava-onevision:0.5b")
    for wrong in (9, ["anyres_max_9"], "anyres_max_0"):
        with pytest.raises(ValueError, match="^vision_aspect_ratio is .*, supported is 'anyres"):
            read(config | {"vision_aspect_ratio": wrong})
    with pytest.raises(ValueError, match=r"^mm_vision_tower is \['x'\] in config.json, known are"):
        read(config_of("next")[0] | {"mm_vision_tower": ["x"]})
