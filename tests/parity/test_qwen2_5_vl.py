"""Qwen2.5-VL against transformers: features, positions, hidden states, logits, tokens, streams."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from passes import (
    CHUNK,
    FEATURES,
    HIDDEN,
    LOGITS,
    Reference,
    after_video,
    bounds,
    close,
    greedy,
    in_chunks,
    one_pass,
)

from jaxmem.models.encoders.vision_parts import patchify, window_groups
from jaxmem.models.qwen import mrope
from jaxmem.models.qwen import qwen2_5_vl as family
from jaxmem.models.qwen.qwen2_5_vision import encode_vision

RULES = {"4.50": "position_ids_v4_50", "4.57": "position_ids_v4_57", "5.23": "position_ids"}
LOGIT_NAMES = {"4.50": "logits_v4_50_positions", "5.23": "logits"}


@pytest.fixture(scope="module")
def ref(golden):
    return Reference(golden / "hf" / "qwen2_5_vl", family)


@pytest.fixture(scope="module")
def encoded(ref):
    """Features of all pictures and of all videos, and the outputs of blocks that are known."""
    return ref.encoded(encode_vision)


@pytest.fixture(scope="module")
def features(encoded):
    return {name: tokens for name, (_, (tokens, _)) in encoded.items()}


def media_of(ref, row):
    """A row's pictures and videos, and where their features lie."""
    config = ref.config
    images, of_images = ref.grids_of(row, "image", config.image)
    videos, of_videos = ref.grids_of(row, "video", config.video)
    media = {"images": images, "videos": videos}
    if videos:
        numbers, _ = ref.numbers_of(row, "video", config.video)
        media["seconds"] = [float(ref["second_per_grid_ts"][i]) for i in numbers]
    return media, {"image": of_images, "video": of_videos}


def prompt(ref, features, row, rule="4.50"):
    media, where = media_of(ref, row)
    plan = family.prompt_plan(ref.config, ref.ids(row), rule=rule, **media)
    return plan, jnp.concatenate([x[where[name]] for name, x in features.items()])


def test_vision_features(ref, features):
    for name, found in features.items():
        close(found, ref[f"{name}_features"], FEATURES)


def test_vision_blocks(ref, encoded):
    config, (taps, (_, found)) = ref.config.vision, encoded["video"]
    assert taps
    cell = config.merge**2
    order = ref["video_window_index"][:, None] * cell + np.arange(cell)
    for tap, h in zip(taps, found, strict=True):
        close(h[order.reshape(-1)], ref[f"video_vis_block{tap}_out"], FEATURES)


def test_windows(ref):
    config = ref.config.vision
    side = config.window // (config.patch * config.merge)
    groups = window_groups(ref.grids("video_grid_thw"), config.merge, side)
    sizes = np.concatenate([[0], np.cumsum(groups.valid.sum(1))])
    np.testing.assert_array_equal(sizes, ref["video_cu_window_seqlens"])
    cells = groups.index[groups.valid][:: config.merge**2] // config.merge**2
    np.testing.assert_array_equal(cells, ref["video_window_index"])


def test_patches():
    """Cell by cell, and in a patch channel, picture, row, column: the plain loops."""
    patch, temporal, merge = 3, 2, 2
    pixels = np.random.default_rng(0).normal(size=(4, 12, 18, 3)).astype(np.float32)
    expected = []
    for frame in range(0, 4, temporal):
        for y, x in [(y, x) for y in range(0, 12, 6) for x in range(0, 18, 6)]:
            for r, c in [(y, x), (y, x + 3), (y + 3, x), (y + 3, x + 3)]:
                part = pixels[frame : frame + temporal, r : r + patch, c : c + patch]
                expected.append(part.transpose(3, 0, 1, 2).reshape(-1))
    found = patchify(jnp.asarray(pixels), patch=patch, temporal=temporal, merge=merge)
    np.testing.assert_array_equal(found, np.stack(expected))
    with pytest.raises(ValueError, match="multiples of 6"):
        patchify(jnp.asarray(pixels[:, :, :15]), patch=patch, temporal=temporal, merge=merge)


@pytest.mark.parametrize("rule", RULES)
def test_positions(ref, rule):
    for row in range(ref.rows):
        media, _ = media_of(ref, row)
        pos, after = family.positions(ref.config, ref.ids(row), rule=rule, **media)
        np.testing.assert_array_equal(pos.T, ref[RULES[rule]][:, row, ref.real(row)])
        assert after == pos.max() + 1


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_stands_after_the_largest_position(ref, rule):
    """Where the ticks of a video are more than its cells and the text after it, too."""
    config, merge, (text,), frames = ref.config, ref.config.vision.merge, ref.free(), 9
    ids = [text, *[config.video] * frames, text]
    grid = (frames, merge, merge)
    pos, after = family.positions(config, ids, videos=[grid], seconds=[1.0], rule=rule)
    last = 1 + (frames - 1) * config.ticks_per_second
    assert pos[-2].tolist() == [last, 1, 1] and after == pos.max() + 1
    assert pos[-1].tolist() == [2 if rule == "5.23" else last + 1] * 3


@pytest.mark.parametrize("rule", LOGIT_NAMES)
def test_one_pass(ref, features, rule):
    config = ref.config.decoder
    for row in range(ref.rows):
        plan, mine = prompt(ref, features, row, rule)
        inputs, outputs, out = one_pass(ref.params["decoder"], config, plan, mine)
        close(out, ref.at(LOGIT_NAMES[rule], row), LOGITS)
        if rule != "5.23":
            continue
        close(inputs[0], ref.at("lm0_in", row), HIDDEN)
        for i, h in enumerate(outputs):
            close(h, ref.at(f"lm{i}_out", row), HIDDEN)


@pytest.mark.parametrize("rule", ["4.50", "5.23"])
def test_stream(ref, features, rule):
    """Chunks that cut frames anywhere, through `full` memory, give the logits of the one pass."""
    (plan, mine), size = prompt(ref, features, 0, rule), CHUNK
    starts = bounds(len(plan.ids), size)
    found, _, _ = in_chunks(
        ref.params["decoder"], ref.config.decoder, plan, mine, None, starts, size
    )
    close(found, ref.at(LOGIT_NAMES[rule], 0), LOGITS)


def test_greedy(ref, features):
    for row in range(ref.rows):
        plan, mine = prompt(ref, features, row, "5.23")
        assert plan.advance.tolist() == [len(plan.ids) + int(ref["rope_deltas"][row, 0])] * 3
        expected = ref["greedy_tokens"][row]
        found = greedy(ref.params["decoder"], ref.config.decoder, plan, mine, None, len(expected))
        np.testing.assert_array_equal(found, expected)


def stream_positions(config, frames, per_chunk, h, w, seconds, begin):
    """Positions of a video fed chunk by chunk, and of the text after it, from where it begins."""
    at, found = np.full(3, begin, np.int32), []
    for first in range(0, frames, per_chunk):
        count = min(per_chunk, frames - first)
        part = family.video_chunk(config, first, (count, h, w), seconds)
        assert part.pos.dtype == part.advance.dtype == np.int32
        found.append(at + part.pos)
        at = at + part.advance
    return np.concatenate(found), at + after_video(config, frames, h, w, seconds)


@pytest.mark.parametrize("frames", [1, 5, 12])
@pytest.mark.parametrize("seconds", [0.4, 1.0, Fraction(2, 3), Fraction(1, 10)])
def test_stream_has_the_positions_of_the_prompt(ref, frames, seconds):
    config, merge, (text,) = ref.config, ref.config.vision.merge, ref.free()
    h, w = 2 * merge, 6 * merge
    n = frames * 2 * 6
    ids = [text, text, config.vision_start, *[config.video] * n, config.vision_end, text]
    pos, _ = family.positions(config, ids, videos=[(frames, h, w)], seconds=[seconds])
    video, after = stream_positions(config, frames, 4, h, w, seconds, 3)
    np.testing.assert_array_equal(video, pos[3:-2])
    np.testing.assert_array_equal(after, pos[-2])


@pytest.mark.parametrize("seconds", [Fraction(1), Fraction(2, 3), Fraction(1001, 15000)])
def test_ten_hours(ref, seconds):
    """Nothing drifts: the last chunk of ten hours stands where exact arithmetic puts it."""
    config, frames = ref.config, int(36_000 / seconds)
    h, w = config.vision.merge, 2 * config.vision.merge
    video, text = stream_positions(config, frames, 1024, h, w, seconds, 3)
    n = 2
    for frame in (0, 1, frames // 2, frames - 2, frames - 1):
        tick = int(frame * seconds * config.ticks_per_second)
        np.testing.assert_array_equal(video[n * frame : n * frame + n, 0], 3 + tick)
        np.testing.assert_array_equal(video[n * frame : n * frame + n, 1:], [[3, 3], [3, 4]])
    last = int((frames - 1) * seconds * config.ticks_per_second)
    np.testing.assert_array_equal(text, 3 + last + 1)
    assert np.all(np.diff(video[::n, 0]) >= 0)
    (word,) = ref.free()
    ids = [word, word, word, *[config.video] * (n * frames), word]
    whole, _ = family.positions(config, ids, videos=[(frames, h, w)], seconds=[seconds])
    np.testing.assert_array_equal(whole[3:-1], video)
    np.testing.assert_array_equal(whole[-1], text)


def test_released_arithmetic_stays_within_a_tick():
    """Float seconds are multiplied, not summed: ten hours are one tick off at most."""
    frames = np.arange(540_000)
    exact = mrope.ticks(frames, Fraction(1, 15), 2)
    assert np.abs(mrope.ticks(frames, 1 / 15, 2) - exact).max() <= 1


def test_config_of_the_release(ref):
    """The flat config.json of the first release says the same as the nested one."""
    text = dict(ref.raw["text_config"])
    rope = text.pop("rope_parameters")
    flat = {k: v for k, v in ref.raw.items() if k != "text_config"} | text
    flat["model_type"] = ref.raw["model_type"]
    flat["rope_theta"] = rope["rope_theta"]
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    vision = dict(flat["vision_config"])
    vision["in_chans"] = vision.pop("in_channels", 3)
    flat["vision_config"] = vision
    assert family.read_config(flat) == ref.config


def test_errors(ref):
    config, vision = ref.config, ref.config.vision
    side, (text,) = 2 * vision.merge, ref.free()
    grid, numbers = (1, side, side), vision.channels * vision.temporal * vision.patch**2
    with pytest.raises(ValueError, match="model_type 'llama'"):
        family.read_config({"model_type": "llama"})
    with pytest.raises(ValueError, match="rule must be"):
        family.positions(config, [1], rule="4.51")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="used up"):
        family.positions(config, [config.image])
    with pytest.raises(ValueError, match="prompt and grids do not fit"):
        family.positions(config, [config.image] * 3, images=[grid])
    with pytest.raises(ValueError, match="without placeholders"):
        family.positions(config, [text], images=[grid])
    with pytest.raises(ValueError, match=f"cells of {vision.merge} x {vision.merge}"):
        family.positions(config, [config.image], images=[(1, side - 1, side)])
    more = side**2 + vision.merge**2
    with pytest.raises(ValueError, match=f"cover {side**2} patches, but {more} came"):
        encode_vision(ref.params["vision"], vision, jnp.zeros((more, numbers)), [grid])
    with pytest.raises(ValueError, match="does not fit int32"):
        family.video_chunk(config, 0, (2, vision.merge, vision.merge), Fraction(2**31))
