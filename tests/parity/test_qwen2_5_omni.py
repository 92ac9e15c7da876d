"""Qwen2.5-Omni's Thinker against transformers: features, positions, logits, tokens, streams."""

from dataclasses import replace
from fractions import Fraction
from functools import partial

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
    after_video_with_sound,
    bounds,
    close,
    greedy,
    in_chunks,
    one_pass,
)

from jaxmem.models.qwen import qwen2_5_omni as family
from jaxmem.models.qwen import qwen2_5_omni_layout as lay
from jaxmem.models.qwen.audio import encode_audio, token_count


@pytest.fixture(scope="module")
def ref(golden):
    return Reference(golden / "hf" / "qwen2_5_omni_thinker", family)


@pytest.fixture(scope="module")
def clips(ref):
    """Log-mel frames of every clip, without padding."""
    pairs = zip(ref["input_features"], ref["feature_attention_mask"], strict=True)
    return [mel.T[mask == 1] for mel, mask in pairs]


@pytest.fixture(scope="module")
def sound(ref, clips):
    """Features of all clips, and the outputs of the audio encoder's blocks."""
    config = ref.config.sound
    run = partial(encode_audio, config=config, taps=range(config.stack.depth))
    return jax.jit(run)(ref.params["audio"], clips=clips)


@pytest.fixture(scope="module")
def features(ref, sound):
    grids = ref.grids("video_grid_thw")
    run = jax.jit(partial(family.encode, config=ref.config, grids=grids))
    seen = run(ref.params, patches=ref["pixel_values_videos"])
    return seen, jnp.concatenate([seen, sound[0]])


def media_of(ref):
    return {
        "videos": ref.grids("video_grid_thw"),
        "seconds": [float(s) for s in ref["video_second_per_grid"]],
        "sounds": ref["audio_token_counts"].tolist(),
    }


def prompt(ref):
    return lay.prompt_plan(ref.config.layout, ref.ids(0), **media_of(ref))


def test_vision_features(ref, features):
    close(features[0], ref["video_features"], FEATURES)


def test_audio(ref, clips, sound):
    found, tapped = sound
    close(found, ref["audio_features"], FEATURES)
    for i, h in enumerate(tapped):
        close(h, ref[f"audio_layer{i}_out"], FEATURES)
    counts = [token_count(ref.config.sound, len(clip)) for clip in clips]
    np.testing.assert_array_equal(counts, ref["audio_token_counts"])


def longest(clips):
    return max(range(len(clips)), key=lambda i: len(clips[i]))


def test_windows_of_sound_come_one_by_one(ref, clips, sound):
    """A stream that encodes each window by itself gets the features of the whole clip."""
    config, at = ref.config.sound, longest(clips)
    # A token averages two rows: of an odd number, two windows are the least that ends with one.
    size = 2 * config.rows * (1 + config.rows % 2)
    clip, run = clips[at], jax.jit(lambda p, clips: encode_audio(p, config, clips)[0])
    if len(clip) <= 2 * size:
        clip = np.resize(clip, (2 * size + 4, config.mel_bins))
        whole = run(ref.params["audio"], [*clips[:at], clip, *clips[at + 1 :]])
    else:
        whole = sound[0]
    parts = [clip[start : start + size] for start in range(0, len(clip), size)]
    found = np.concatenate([run(ref.params["audio"], [part]) for part in parts[:-1]])
    assert len(parts) > 2
    before = sum(token_count(config, len(other)) for other in clips[:at])
    close(found, np.asarray(whole)[before : before + len(found)], FEATURES)


def test_positions(ref):
    pos, after = lay.positions(ref.config.layout, ref.ids(0), **media_of(ref))
    np.testing.assert_array_equal(pos.T, ref["position_ids"][:, 0])
    assert after == len(pos) + int(ref["rope_deltas"][0, 0])


def test_layout(ref):
    """The tokens of the video with sound are those of the official processor."""
    layout, ids, media = ref.config.layout, ref.ids(0), media_of(ref)
    starts = np.flatnonzero((ids[:-1] == layout.vision_start) & (ids[1:] == layout.audio_start))
    assert len(starts)
    for start in starts.tolist():
        clip = int((ids[:start] == layout.audio_start).sum())
        tokens, ends = int((ids[:start] == layout.video).sum()), [0]
        for frames, h, w in media["videos"]:
            ends.append(ends[-1] + frames * h * w // layout.merge**2)
        video = ends.index(tokens)
        found = lay.mixed_ids(
            layout, media["videos"][video], media["seconds"][video], media["sounds"][clip]
        )
        np.testing.assert_array_equal(found, ids[start : start + len(found)])


def test_one_pass(ref, features):
    decoder = ref.params["decoder"]
    inputs, outputs, out = one_pass(decoder, ref.config.decoder, prompt(ref), features[1])
    close(inputs[0], ref.at("lm0_in", 0), HIDDEN)
    for i, h in enumerate(outputs):
        close(h, ref.at(f"lm{i}_out", 0), HIDDEN)
    close(out, ref.at("logits", 0), LOGITS)


def test_stream(ref, features):
    """Chunks that cut frames anywhere, through `full` memory, give the logits of the one pass."""
    plan, size = prompt(ref), CHUNK
    starts = bounds(len(plan.ids), size)
    found, _, _ = in_chunks(
        ref.params["decoder"], ref.config.decoder, plan, features[1], None, starts, size
    )
    close(found, ref.at("logits", 0), LOGITS)


def test_greedy(ref, features):
    expected = ref["greedy_tokens"][0]
    found = greedy(
        ref.params["decoder"], ref.config.decoder, prompt(ref), features[1], None, len(expected)
    )
    np.testing.assert_array_equal(found, expected)


def turns_of(times, every):
    """The released loop."""
    found, start, chunk = [], 0, 1
    for i, time in enumerate(times):
        if time >= chunk * every:
            found.append((start, i))
            start, chunk = i, chunk + 1
    return [*found, (start, len(times))]


@pytest.mark.parametrize("step", [1, 4, 10, 23, 61])
def test_turns(step):
    """Also where a frame jumps over one or several boundaries."""
    times = np.repeat(np.arange(9) * step, 4)
    found = [(s.start, s.stop) for s in lay.turns_of(times, 10)]
    assert found == turns_of(times, 10)


def five_ticks(ref):
    """The layout with 5 ticks a second and chunks of 2 s."""
    return replace(ref.config.layout, ticks_per_second=5, chunk_ticks=10)


def stream(layout, chunks, grid, seconds, sounds, begin):
    """Ids and positions of a video with sound fed chunk by chunk, and of the token after it."""
    at, ids, pos, left = np.full(3, begin, np.int32), [], [], sounds
    frames, rows, columns = grid
    for chunk in range(chunks):
        count = min(left, layout.chunk_ticks)
        part = lay.video_chunk(layout, chunk, rows, columns, seconds, count, end=frames)
        assert part.pos.dtype == part.advance.dtype == np.int32
        ids.append(part.ids)
        pos.append(at + part.pos)
        at, left = at + part.advance, left - count
    after = at + after_video_with_sound(layout, chunks, grid, seconds, sounds)
    return np.concatenate(ids), np.concatenate(pos), after


@pytest.mark.parametrize(
    "seconds, frames, sounds",
    [
        (1.0, 6, 30),
        (1.0, 6, 23),
        (1.0, 5, 22),
        (Fraction(2, 3), 8, 25),
        (Fraction(4, 5), 5, 17),
        (0.5, 8, 20),
    ],
)
def test_stream_has_the_positions_of_the_prompt(ref, seconds, frames, sounds):
    layout, (text,) = five_ticks(ref), ref.free()
    grid = (frames, 2 * layout.merge, 3 * layout.merge)
    chunks = -(-sounds // layout.chunk_ticks)
    whole = lay.mixed_ids(layout, grid, seconds, sounds)
    pos, _ = lay.positions(
        layout, [text, *whole], videos=[grid], seconds=[seconds], sounds=[sounds]
    )
    ids, found, after = stream(layout, chunks, grid, seconds, sounds, 2)
    np.testing.assert_array_equal(ids, whole[2:-2])
    np.testing.assert_array_equal(found, pos[3:-2])
    np.testing.assert_array_equal(after, pos[-2])


@pytest.mark.parametrize(
    "seconds", [pytest.param(Fraction(1), marks=pytest.mark.slow), Fraction(2, 3)]
)
def test_ten_hours(ref, seconds):
    """Chunks of ten hours stand where one prompt over all of it would stand, in int32."""
    layout = replace(ref.config.layout, ticks_per_second=25, chunk_ticks=50)
    grid, (text,) = (int(36_000 / seconds), layout.merge, 2 * layout.merge), ref.free()
    sounds = 900_000
    ids, found, after = stream(layout, 18_000, grid, seconds, sounds, 2)
    whole = lay.mixed_ids(layout, grid, seconds, sounds)
    np.testing.assert_array_equal(ids, whole[2:-2])
    pos, _ = lay.positions(
        layout, [text, *whole], videos=[grid], seconds=[seconds], sounds=[sounds]
    )
    np.testing.assert_array_equal(found, pos[3:-2])
    np.testing.assert_array_equal(after, pos[-2])
    assert after[0] == 2 + 900_000


def test_prompts_without_turns(ref):
    """Sound alone counts like text, a silent video by its clock, a picture has no clock."""
    layout, (text,) = replace(five_ticks(ref), merge=2), ref.free()
    heard, seen, shown = [layout.audio] * 3, [layout.video] * 4, [layout.image] * 2
    ids = [text, layout.audio_start, *heard, layout.audio_end, *seen, text, *shown, text]
    media = {"images": [(1, 2, 4)], "videos": [(2, 2, 4)], "seconds": [2.0], "sounds": [3]}
    pos, after = lay.positions(layout, ids, **media)
    clock = [0, 1, 2, 3, 4, 5, 6, 6, 16, 16, 17, 18, 18, 20]
    np.testing.assert_array_equal(pos[:, 0], clock)
    np.testing.assert_array_equal(pos[6:10, 2], [6, 7, 6, 7])
    assert after == 21
    plan = lay.prompt_plan(layout, ids, **media)
    np.testing.assert_array_equal(plan.place, [-1, -1, 6, 7, 8, -1, 2, 3, 4, 5, -1, 0, 1, -1])


def test_released_config(ref):
    """The released file holds the Thinker's config under `thinker_config`."""
    whole = {"model_type": "qwen2_5_omni", "thinker_config": ref.raw, "talker_config": {}}
    assert family.read_config(whole) == ref.config


def test_errors(ref):
    layout, start, (text,) = five_ticks(ref), [ref.config.layout.vision_start], ref.free()
    side, bins = layout.merge, ref.config.sound.mel_bins
    with pytest.raises(ValueError, match="model_type 'qwen2_5_vl'"):
        family.read_config({"model_type": "qwen2_5_vl"})
    with pytest.raises(ValueError, match="none is left"):
        lay.positions(layout, [*start, layout.audio_start])
    with pytest.raises(ValueError, match="build them with `mixed_ids`"):
        ids = [*start, layout.audio_start, text]
        lay.positions(layout, ids, videos=[(1, side, side)], sounds=[4])
    with pytest.raises(ValueError, match="0 videos and 1 clips are not in the prompt"):
        lay.positions(layout, [text], sounds=[4])
    with pytest.raises(ValueError, match="no frame lies in chunk 1"):
        lay.frames_of(layout, 1, 10.0)
    with pytest.raises(ValueError, match="at most 10 tokens of sound, got 11"):
        lay.video_chunk(layout, 0, side, side, 1.0, 11)
    with pytest.raises(ValueError, match=rf"at least 3, {bins}\], got \(2, {bins}\)"):
        encode_audio(ref.params["audio"], ref.config.sound, [jnp.zeros((2, bins))])
