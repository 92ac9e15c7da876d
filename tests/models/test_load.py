"""Checkpoints whose config.json says less, or something else, than their weights: as transformers.

`tests/parity` holds the families against reference outputs.
"""

import json
import math
import re

import numpy as np
import pytest
from checkpoints import write_checkpoint, write_qwen2_vl, write_smolvlm
from safetensors.numpy import load_file, save_file

import jaxmem as jm
from jaxmem.models.hf.published import published_config
from jaxmem.models.qwen.tiny_checkpoint import write_tiny

HEADS = {"llava_onevision": "language_model.lm_head.weight"}
TABLES = {
    "llava_onevision": "language_model.model.embed_tokens.weight",
    "qwen3_vl": "model.language_model.embed_tokens.weight",
}


def flagged(config, where):
    """Set `tie_word_embeddings` at the root or in the text part, and say no at the other."""
    inner = config.get("thinker_config", config)
    inner["tie_word_embeddings"] = where == "root"
    inner["text_config"]["tie_word_embeddings"] = where == "text"
    return config


@pytest.mark.parametrize("where", ["root", "text"])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni"])
def test_a_stored_output_matrix_is_used_whatever_the_flag_says(golden, tmp_path, family, where):
    folder = write_checkpoint(golden, family, tmp_path)
    config = flagged(json.loads((folder / "config.json").read_text()), where)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        name.removeprefix("thinker."): x
        for name, x in load_file(folder / "model.safetensors").items()
    }
    name = HEADS.get(family, "lm_head.weight")
    table = TABLES.get(family, "model.embed_tokens.weight")
    own = weights[table][::-1].copy()
    # Of Qwen2.5-Omni only the root's flag counts: without it and without a matrix it is not whole.
    says = family != "qwen2_5_omni" or where == "root"
    for head in (own, weights[table], None):
        stored = {k: v for k, v in weights.items() if k != name}
        stored |= {} if head is None else {name: head}
        save_file(stored, folder / "model.safetensors")
        if head is None and not says:
            with pytest.raises(ValueError, match="lm_head.weight: missing"):
                jm.load(folder, dtype="float32")
            continue
        decoder = jm.load(folder, dtype="float32").params["decoder"]
        if head is own or not says:
            np.testing.assert_array_equal(decoder["head"]["kernel"], head.T)
        elif family == "llava_onevision":  # a copy without the newline's row
            np.testing.assert_array_equal(decoder["head"]["kernel"], weights[table].T)
        else:
            assert "head" not in decoder


@pytest.mark.parametrize("where", ["root", "text"])
@pytest.mark.parametrize(
    ("write", "table"),
    [
        (write_qwen2_vl, "model.embed_tokens.weight"),
        (write_smolvlm, "model.text_model.embed_tokens.weight"),
    ],
)
def test_a_tied_family_takes_a_stored_output_matrix_too(tmp_path, write, table, where):
    folder = write(tmp_path)
    config = flagged(json.loads((folder / "config.json").read_text()), where)
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    assert "head" not in jm.load(folder, dtype="float32").params["decoder"]
    save_file(weights | {"lm_head.weight": weights[table]}, folder / "model.safetensors")
    assert "head" not in jm.load(folder, dtype="float32").params["decoder"]
    own = weights[table][::-1].copy()
    save_file(weights | {"lm_head.weight": own}, folder / "model.safetensors")
    found = jm.load(folder, dtype="float32").params["decoder"]["head"]["kernel"]
    np.testing.assert_array_equal(found, own.T)


def decoder_of(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return jm.load(folder, abstract=True).decoder


ROPES = {
    "qwen2-vl:2b": (1e6, [16, 24, 24], False),
    "qwen2.5-vl:3b": (1e6, [16, 24, 24], False),
    "qwen2.5-omni:3b": (1e6, [16, 24, 24], False),
    "qwen3-vl:2b": (5e5, [24, 20, 20], True),
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_settings_that_are_not_written_are_the_familys(tmp_path, name):
    theta, sections, interleaved = ROPES[name]
    config = published_config(name)
    text = config.get("text_config") or config
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        text.pop(key, None)
    bare = decoder_of(tmp_path, config)
    text["rope_parameters"] = {"rope_type": "default", "mrope_interleaved": not interleaved}
    assert decoder_of(tmp_path, config) == bare  # nobody looks at that key
    text["rope_parameters"] |= {"rope_theta": theta, "mrope_section": sections}
    assert decoder_of(tmp_path, config) == bare
    text["rope_parameters"] |= {"rope_theta": 2 * theta}
    assert decoder_of(tmp_path, config) != bare


def test_other_keys_that_are_not_written(tmp_path):
    config = published_config("qwen2.5-vl:3b")
    written = jm.load("qwen2.5-vl:3b", abstract=True).encode.of.config
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        config.pop(key, None)
    for key in ("tokens_per_second", "window_size", "fullatt_block_indexes", "patch_size"):
        config["vision_config"].pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = jm.load(tmp_path, abstract=True).encode.of.config
    assert found.ticks_per_second == 4 and written.ticks_per_second == 2
    assert found.vision == written.vision
    assert (found.video, found.vision_start) == (written.video, written.vision_start)
    config = published_config("qwen3-vl:4b")
    config["text_config"].pop("head_dim")  # 2,560 / 32 would be 80
    assert decoder_of(tmp_path, config).head_dim == 128


@pytest.mark.parametrize(
    "key, value", [("text_config", [1]), ("vision_config", "x"), ("rope_scaling", 3)]
)
def test_a_config_of_other_kinds_is_refused_in_words(tmp_path, key, value):
    folder = write_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (config["text_config"] if key == "rope_scaling" else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"^{key} is .* in config.json, expected a JSON object: "):
        jm.load(folder)


def test_what_no_check_foresees_is_refused_in_words(tmp_path, monkeypatch):
    """From Python as on the command line: both go through `load`."""

    def fails(directory):
        raise KeyError("x")

    monkeypatch.setattr("jaxmem.models.hf.family.read_sampling", fails)
    with pytest.raises(ValueError, match="hold something else than expected .* again"):
        jm.load(write_tiny(tmp_path))


@pytest.mark.parametrize("wrong", ["x", [True], -1, 0, 2.5, math.inf], ids=repr)
def test_the_largest_position_is_a_whole_number(tmp_path, wrong):
    """Refused before anything large is read."""
    folder = write_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = wrong
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="^max_position_embeddings is .*whole number from 1 on: "):
        jm.load(folder)


@pytest.mark.parametrize(
    "part, key", [("text_config", "num_hidden_layers"), ("vision_config", "depth")]
)
@pytest.mark.parametrize("layers", [10**9, -1, "many", [3]])
def test_layers_beyond_any_model_are_refused_before_their_tensors_are_listed(
    tmp_path, part, key, layers
):
    folder = write_tiny(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config[part][key] = layers
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{key}.*expected at most 10,000"):
        jm.load(folder)


@pytest.mark.parametrize("fps", [0, -1, 1e-9, 1e5, float("nan"), float("inf")])
def test_rates_of_no_stream_are_refused(tmp_path, fps):
    with pytest.raises(ValueError, match=r"fps must be between 0\.001 and 1000, got"):
        jm.load(write_tiny(tmp_path / "tiny"), fps=fps)


def test_the_folder_of_a_trained_model_names_its_file(tmp_path):
    """What `train --out` wrote is no checkpoint of save_pretrained; the file in it is loaded."""
    with pytest.raises(ValueError, match=r"no config\.json in .* safetensors files\.$"):
        jm.load(tmp_path)
    file = tmp_path / "tiny-mamba2.safetensors"
    file.touch()
    with pytest.raises(ValueError, match=f"give the file itself, {re.escape(str(file))}"):
        jm.load(tmp_path)
