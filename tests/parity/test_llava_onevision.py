"""LLaVA-OneVision against transformers: features, hidden states, logits, tokens, streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from passes import (
    CHUNK,
    FEATURES,
    HIDDEN,
    LOGITS,
    Reference,
    bounds,
    close,
    greedy,
    in_chunks,
    one_pass,
)

from jaxmem.decoder.decoder import linear
from jaxmem.models.encoders import siglip
from jaxmem.models.hf.prompt import fill
from jaxmem.models.llava import onevision as family
from jaxmem.models.llava import pictures


@pytest.fixture(scope="module")
def reference(golden):
    return Reference(golden / "hf" / "llava_onevision", family)


@pytest.fixture(scope="module")
def pixels(reference):
    """Frames of the one video, channels last."""
    return jnp.asarray(reference["pixel_values_videos"][0].transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def features(reference, pixels):
    run = jax.jit(lambda p, x: family.video_features(p, reference.config, x))
    return run(reference.params, pixels)


@pytest.fixture(scope="module")
def prompt(reference):
    return family.prompt_plan(reference.config, reference.ids(0))


def test_vision_tower(reference, pixels):
    config, params = reference.config.vision, reference.params["vision"]
    taps = range(config.stack.depth)
    run = jax.jit(lambda p, x: siglip.encode(p, config, x, taps=taps))
    out, tapped = run(params, pixels)
    for i, tap in enumerate(tapped):
        close(tap, reference[f"vis_layer{i}_out"], HIDDEN)
    close(siglip.final(params, config, out), reference["vision_tower_last"], FEATURES)


def test_projector_and_features(reference, pixels, features):
    projected = family.project(reference.params, reference.config, pixels)
    close(projected.reshape(len(pixels), -1, projected.shape[-1]), reference["projector_out"], 2e-5)
    close(features, reference["video_features"][0], FEATURES)
    assert len(features) == len(pixels) * reference.config.frame_tokens + 1


def test_positions(reference, prompt):
    np.testing.assert_array_equal(prompt.pos[:, 0], reference.at("position_ids", 0))
    assert prompt.advance.tolist() == [len(reference.ids(0))]


def test_hidden_states_and_logits(reference, prompt, features):
    decoder = reference.config.decoder
    inputs, outputs, out = one_pass(reference.params["decoder"], decoder, prompt, features)
    close(inputs[0], reference.at("lm0_in", 0), HIDDEN)
    for i, h in enumerate(outputs):
        close(h, reference.at(f"lm{i}_out", 0), HIDDEN)
    close(out, reference.at("logits", 0), LOGITS)


def test_streamed_in_chunks(reference, prompt, features):
    size = CHUNK
    decoder, params = reference.config.decoder, reference.params["decoder"]
    starts = bounds(len(prompt.ids), size)
    out, carry, _ = in_chunks(params, decoder, prompt, features, None, starts, size)
    close(out, reference.at("logits", 0), LOGITS)
    assert int(carry.clock) == len(prompt.ids) + len(starts) + 1


def test_streamed_frame_by_frame(reference, pixels, prompt):
    """The encoder sees one frame at a time and the newline comes with the text after the video."""
    config, decoder = reference.config, reference.config.decoder
    own = (np.asarray(prompt.place) >= 0).nonzero()[0]
    first, n = int(own[0]), config.frame_tokens
    starts = [first + i * n for i in range(len(pixels) + 1)]
    frames = [family.encode(reference.params, config, frame[None]) for frame in pixels]
    features = jnp.concatenate([*frames, reference.params["newline"][None]])
    size = max(np.diff([0, *starts, len(prompt.ids)]).tolist())
    params = reference.params["decoder"]
    out, _, _ = in_chunks(params, decoder, prompt, features, None, starts, size)
    close(out, reference.at("logits", 0), LOGITS)
    part = family.video_chunk(config, 2)
    offline = prompt.pos[first : first + 2 * n] - first
    np.testing.assert_array_equal(part.pos, offline)
    assert part.advance.tolist() == [2 * n] and part.place.tolist() == list(range(2 * n))


def test_greedy_tokens(reference, prompt, features):
    expected = reference["greedy_tokens"][0]
    decoder, params = reference.config.decoder, reference.params["decoder"]
    found = greedy(params, decoder, prompt, features, None, len(expected))
    np.testing.assert_array_equal(found, expected)


def test_positions_of_a_long_stream(reference):
    """Ten hours at one frame a second are exact int32 positions."""
    part = family.video_chunk(reference.config, 1)
    n, hours = reference.config.frame_tokens, 36_000
    assert part.pos.dtype == np.int32 and part.advance[0] == n
    assert int(part.advance[0]) * hours + int(part.pos[-1, 0]) == n * hours + n - 1 < 2**31
    assert 196 * hours < 2**31


def test_text_only_prompt(reference):
    ids = reference.ids(0)
    ids = ids[: int(np.flatnonzero(ids == reference.config.video)[0])]
    rows = fill(reference.params["decoder"], family.prompt_plan(reference.config, ids))
    close(rows.x, reference.at("lm0_in", 0)[: len(ids)], 1e-6)
    assert rows.deepstack is None


def numpy_picture(config, projected, newline, size, best):
    """The tiles of a picture put together by plain loops, without scaling down."""
    g, (rows, columns) = config.vision.grid, (b // config.vision.side for b in best)
    whole = np.zeros((rows * g, columns * g, projected.shape[-1]), np.float32)
    for r in range(rows):
        for c in range(columns):
            tile = projected[1 + r * columns + c]
            whole[r * g : (r + 1) * g, c * g : (c + 1) * g] = tile
    height, width = size
    if width / height > columns / rows:
        inside = int(round(height * columns * g / width, 7))
        skip = (rows * g - inside) // 2
        whole = whole[skip : rows * g - skip]
    else:
        inside = int(round(width * rows * g / height, 7))
        skip = (columns * g - inside) // 2
        whole = whole[:, skip : columns * g - skip]
    lines = [np.concatenate([line, newline[None]]) for line in whole]
    return np.concatenate([projected[0].reshape(g * g, -1), *lines])


@pytest.fixture(scope="module")
def tiled(reference):
    """The model with pictures of up to four tiles."""
    from dataclasses import replace

    side = reference.config.vision.side
    sizes = ((side, side), (side, 2 * side), (2 * side, side), (2 * side, 2 * side))
    return replace(reference.config, sizes=sizes, tiles=9)


@pytest.mark.parametrize("shape", [(1, 2), (1.2, 2.5), (3.5, 2), (2, 2)])
def test_pictures_in_tiles(reference, tiled, shape):
    """Pictures of so many tiles' height and width."""
    side = tiled.vision.side
    size = (round(shape[0] * side), round(shape[1] * side))
    best = pictures.best_size(tiled, size)
    count = 1 + best[0] * best[1] // side**2
    tiles = np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)
    projected = np.asarray(family.project(reference.params, tiled, jnp.asarray(tiles)))
    newline = np.asarray(reference.params["newline"])
    found = pictures.image_features(reference.params, tiled, jnp.asarray(tiles), size)
    close(found, numpy_picture(tiled, projected, newline, size, best), 1e-6)
    assert len(found) == pictures.image_tokens(tiled, size)


def test_choice_of_tiles(reference, tiled):
    side, grid = tiled.vision.side, tiled.vision.grid
    assert pictures.best_size(tiled, (side, 2 * side)) == (side, 2 * side)
    assert pictures.best_size(tiled, (side // 2, side // 2)) == (side, side)
    assert pictures.best_size(tiled, (9 * side, 4 * side)) == (2 * side, side)
    one, tall = jnp.zeros((1, side, side, 3)), (5 * side, side)
    found = pictures.image_features(reference.params, tiled, one, tall)
    assert len(found) == pictures.image_tokens(tiled, tall, tiled=False) == grid**2 + 1
    with pytest.raises(ValueError, match=r"has 1 \+ 1 x 2 tiles, got 4"):
        four = jnp.zeros((4, side, side, 3))
        pictures.image_features(reference.params, tiled, four, (side, 2 * side))


def test_config_errors(reference):
    raw = reference.raw
    wrong = {
        "model_type": ("llava", "expected one of llava_onevision"),
        "vision_feature_select_strategy": ("default", "implemented is 'full' only"),
        "projector_hidden_act": ("relu", "implemented is 'gelu' only"),
        "vision_aspect_ratio": ("pad", "supported is 'anyres_max_9'"),
        "vision_feature_layer": ([-1, -2], r"vision_feature_layer is \[-1, -2\]"),
        "text_config": (None, "has no text_config"),
    }
    for key, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=message):
            family.read_config({**raw, key: value})
    text = {**raw["text_config"], "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6}}
    with pytest.raises(ValueError, match="rotary frequencies of type 'longrope'"):
        family.read_config({**raw, "text_config": text})
    text = {**raw["text_config"], "use_sliding_window": True, "max_window_layers": 1}
    text.pop("layer_types", None)
    with pytest.raises(ValueError, match=r"'sliding_attention' .*\(use_sliding_window\)"):
        family.read_config({**raw, "text_config": text})
    depth = reference.config.vision.stack.depth
    assert family.read_config({**raw, "vision_feature_layer": -2}).layer == depth - 2
    assert family.read_config({**raw, "vision_feature_layer": 1}).layer == 0


def test_earlier_vision_layer(reference, pixels):
    """A feature layer before the last is that block's output."""
    config = family.read_config({**reference.raw, "vision_feature_layer": -2})
    found = family.project(reference.params, config, pixels)
    weights, depth = reference.params["projector"], config.vision.stack.depth
    x = linear(reference[f"vis_layer{depth - 2}_out"], weights["fc1"])
    x = linear(jax.nn.gelu(x, approximate=False), weights["fc2"])
    close(found.reshape(x.shape), x, FEATURES)
