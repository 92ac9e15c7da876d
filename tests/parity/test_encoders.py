"""The SigLIP and Whisper encoders against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from passes import FEATURES, HIDDEN, close

from jaxmem.models.encoders import siglip, whisper
from jaxmem.models.hf.checkpoint import load
from jaxmem.models.hf.config import read_json


def opened(folder, family):
    """Config, weights and arrays of a reference directory."""
    if not (folder / "reference.npz").exists():
        pytest.skip(f"no reference.npz in {folder}")
    config = family.read_config(read_json(folder))
    table = family.weight_table(config)
    params = load(folder, table, renames=family.RENAMES, ignore=family.IGNORE)
    with np.load(folder / "reference.npz") as file:
        return config, params, {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def vision(golden):
    return opened(golden / "hf" / "siglip_vision", siglip)


@pytest.fixture(scope="module")
def sound(golden):
    return opened(golden / "hf" / "whisper", whisper)


def pictures(array):
    """Channels last."""
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def test_siglip_layers_and_final_norm(vision):
    config, params, file = vision
    taps = range(config.stack.depth)
    run = jax.jit(lambda p, x: siglip.encode(p, config, x, taps=taps))
    out, tapped = run(params, pictures(file["pixel_values"]))
    for i, tap in enumerate(tapped):
        close(tap, file[f"layer{i}_out"], HIDDEN)
    close(siglip.final(params, config, out), file["last_hidden"], FEATURES)


def test_siglip_pooling_head(vision):
    config, params, file = vision
    close(
        siglip.pool(params, config, jnp.asarray(file["last_hidden"])), file["pooler_output"], 2e-5
    )


def test_siglip_interpolates_positions(vision):
    config, params, file = vision
    out, _ = siglip.encode(params, config, pictures(file["pixel_values_interp"]))
    close(siglip.final(params, config, out), file["last_hidden_interp"], FEATURES)


def test_siglip_pictures_are_independent(vision):
    config, params, file = vision
    both, _ = siglip.encode(params, config, pictures(file["pixel_values"]))
    one, _ = siglip.encode(params, config, pictures(file["pixel_values"])[1:])
    close(one[0], both[1], 1e-6)


def test_siglip_cuts_what_fills_no_patch(vision):
    config, params, file = vision
    pixels = pictures(file["pixel_values"])
    more = jnp.pad(pixels, ((0, 0), (0, config.patch - 1), (0, 1), (0, 0)), constant_values=9)
    close(siglip.encode(params, config, more)[0], siglip.encode(params, config, pixels)[0], 0)


def test_siglip_errors(vision):
    config, params, _ = vision
    with pytest.raises(ValueError, match=r"pictures must be \[n, height, width, 3\]"):
        siglip.encode(params, config, jnp.zeros((1, config.side, config.side, 4)))
    with pytest.raises(ValueError, match="expected one of siglip_vision_model"):
        siglip.read_config({"model_type": "clip_vision_model"})
    with pytest.raises(ValueError, match="config.json says 'relu'"):
        siglip.read_config({"model_type": "siglip_vision_model", "hidden_act": "relu"})
    bare = siglip.read_config({"model_type": "siglip_vision_model", "vision_use_head": False})
    assert (bare.side, bare.patch, bare.stack.depth, bare.stack.width) == (224, 16, 12, 768)
    with pytest.raises(ValueError, match="no pooling head"):
        siglip.pool(params, bare, jnp.zeros((1, 4, 768)))


def test_whisper_layers_and_output(sound):
    config, params, file = sound
    frames = jnp.asarray(file["input_features"].transpose(0, 2, 1))
    taps = range(config.stack.depth)
    run = jax.jit(lambda p, x: whisper.encode(p, config, x, taps=taps))
    out, tapped = run(params, frames)
    for i, tap in enumerate(tapped):
        close(tap, file[f"enc_layer{i}_out"], HIDDEN)
    close(out, file["last_hidden"], FEATURES)


def test_whisper_positions_are_sinusoids(sound):
    config, params, _ = sound
    half = config.stack.width // 2
    steps = np.log(1e4) * np.arange(half) / (half - 1)
    angle = np.arange(config.rows)[:, None] * np.exp(-steps)
    # The file's angles were computed in float32: the exponent, its power and the product are each
    # off by up to 2^-24 of themselves, the sine of them by 2^-24. No row count changes that.
    off = ((steps + 2) * angle + 1) * 2.0**-24
    expected = np.concatenate([np.sin(angle), np.cos(angle)], 1)
    assert params["positions"].shape == expected.shape
    assert (np.abs(params["positions"] - expected) <= np.concatenate([off, off], 1)).all()


def test_whisper_errors(sound):
    config, params, _ = sound
    with pytest.raises(ValueError, match="cut the sound into clips"):
        whisper.encode(params, config, jnp.zeros((1, 2 * config.rows + 2, config.mel_bins)))
    with pytest.raises(ValueError, match="expected one of whisper"):
        whisper.read_config({"model_type": "wav2vec2"})
    with pytest.raises(ValueError, match="has no num_mel_bins"):
        raw = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 1}
        raw |= {"model_type": "whisper", "encoder_ffn_dim": 8, "max_source_positions": 4}
        whisper.read_config(raw)
