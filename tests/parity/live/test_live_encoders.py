"""SigLIP, CLIP and Whisper encoders of random sizes against the installed transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import spread
from passes import FEATURES, HIDDEN, close

from jaxmem.models.encoders import clip, siglip, whisper
from jaxmem.models.hf.checkpoint import load
from jaxmem.models.hf.config import read_json

CLIP = 1e-5


def opened(family, folder):
    config = family.read_config(read_json(folder))
    table = family.weight_table(config)
    return config, load(folder, table, renames=family.RENAMES, ignore=family.IGNORE)


@pytest.mark.parametrize("seed", range(4))
def test_siglip(hf, tmp_path, seed):
    """Every block, the final norm, the pooling head, and pictures of another size."""
    rng, torch = np.random.default_rng(seed), hf.torch
    heads, patch = int(rng.integers(1, 5)), int(rng.integers(2, 6))
    side, head = patch * int(rng.integers(2, 7)) + int(rng.integers(patch)), bool(seed % 2)
    raw = hf.transformers.SiglipVisionConfig(
        hidden_size=4 * heads * int(rng.integers(1, 5)), intermediate_size=40,
        num_hidden_layers=int(rng.integers(1, 5)), num_attention_heads=heads,
        image_size=side, patch_size=patch, vision_use_head=head,
    )  # fmt: skip
    model = hf.transformers.SiglipVisionModel(raw).float().eval()
    spread(torch, model, seed)
    model.save_pretrained(tmp_path)
    config, params = opened(siglip, tmp_path)
    taps = range(config.stack.depth)
    run = jax.jit(lambda p, x: siglip.encode(p, config, x, taps=taps))
    sizes = [(side, side), (side + 2 * patch, side + patch), (patch * 2, patch * 5)]
    for height, width in sizes:
        pixels = rng.normal(size=(2, height, width, 3)).astype(np.float32)
        with torch.no_grad():
            out = model(
                torch.tensor(pixels.transpose(0, 3, 1, 2).copy()),
                output_hidden_states=True, interpolate_pos_encoding=(height, width) != sizes[0],
            )  # fmt: skip
        last, tapped = run(params, jnp.asarray(pixels))
        for mine, theirs in zip(tapped, out.hidden_states[1:], strict=True):
            close(mine, theirs.numpy(), HIDDEN)
        final = siglip.final(params, config, last)
        close(final, out.last_hidden_state.numpy(), FEATURES)
        if head:
            close(siglip.pool(params, config, final), out.pooler_output.numpy(), FEATURES)


@pytest.mark.parametrize("seed", range(4))
def test_clip(hf, tmp_path, seed):
    """Every block, with the class token; the last but one is what Video-Ma2mba reads."""
    rng, torch = np.random.default_rng(seed), hf.torch
    heads, patch = int(rng.integers(1, 5)), int(rng.integers(2, 6))
    raw = hf.transformers.CLIPVisionConfig(
        hidden_size=4 * heads * int(rng.integers(1, 5)), intermediate_size=40,
        num_hidden_layers=int(rng.integers(2, 5)), num_attention_heads=heads,
        image_size=patch * int(rng.integers(2, 7)) + int(rng.integers(patch)), patch_size=patch,
    )  # fmt: skip
    model = hf.transformers.CLIPVisionModel(raw).float().eval()
    spread(torch, model, seed)
    model.save_pretrained(tmp_path)
    config, params = opened(clip, tmp_path)
    pixels = rng.normal(size=(2, raw.image_size, raw.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        pictures = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
        out = model(pictures, output_hidden_states=True)
    taps = tuple(range(config.stack.depth))
    run = jax.jit(lambda p, x: clip.encode(p, config, x, taps=taps))
    last, tapped = run(params, jnp.asarray(pixels))
    for mine, theirs in zip(tapped, out.hidden_states[1:], strict=True):
        close(mine, theirs.numpy(), CLIP)
    close(last, out.last_hidden_state.numpy(), CLIP)


@pytest.mark.parametrize("seed", range(4))
def test_whisper(hf, tmp_path, seed):
    """Every block and the final norm; also an odd table of positions."""
    rng, torch = np.random.default_rng(seed), hf.torch
    heads = int(rng.integers(1, 5))
    raw = hf.transformers.WhisperConfig(
        d_model=4 * heads * int(rng.integers(1, 5)), encoder_layers=int(rng.integers(1, 5)),
        encoder_attention_heads=heads, encoder_ffn_dim=8 * int(rng.integers(2, 9)),
        num_mel_bins=int(rng.integers(5, 30)), max_source_positions=int(rng.integers(5, 60)),
        decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8, vocab_size=40,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    model = hf.transformers.WhisperModel(raw).float().eval()
    spread(torch, model, seed)
    model.save_pretrained(tmp_path)
    config, params = opened(whisper, tmp_path)
    mel = rng.normal(size=(2, 2 * config.rows, config.mel_bins)).astype(np.float32)
    with torch.no_grad():
        features = torch.tensor(mel.transpose(0, 2, 1).copy())
        out = model.encoder(features, output_hidden_states=True)
    taps = range(config.stack.depth)
    run = jax.jit(lambda p, x: whisper.encode(p, config, x, taps=taps))
    found, tapped = run(params, jnp.asarray(mel))
    # transformers reports the last block after the final norm.
    for mine, theirs in zip(tapped[:-1], out.hidden_states[1:-1], strict=True):
        close(mine, theirs.numpy(), HIDDEN)
    close(found, out.last_hidden_state.numpy(), FEATURES)
