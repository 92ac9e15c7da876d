"""Qwen3-VL against transformers: features, positions, hidden states, logits, tokens, streams."""

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
    bounds,
    close,
    greedy,
    in_chunks,
    one_pass,
)

from jaxmem.models.qwen import qwen3_vl as family
from jaxmem.models.qwen.qwen3_vision import corners, embed_patches, encode_vision


@pytest.fixture(scope="module")
def ref(golden):
    return Reference(golden / "hf" / "qwen3_vl", family)


@pytest.fixture(scope="module")
def encoded(ref):
    """What the encoder makes of all pictures and of all videos."""
    return ref.encoded(encode_vision)


def prompt(ref, encoded, row):
    """A row's plan, features and DeepStack features."""
    media, tokens, deep = {}, [], []
    for name, token in (("image", ref.config.image), ("video", ref.config.video)):
        media[f"{name}s"], mine = ref.grids_of(row, name, token)
        if name in encoded:
            tokens.append(encoded[name][1].tokens[mine])
            deep.append(encoded[name][1].deep[:, mine])
    plan = family.prompt_plan(ref.config, ref.ids(row), **media)
    return plan, jnp.concatenate(tokens), jnp.concatenate(deep, axis=1)


def test_vision(ref, encoded):
    for name, (taps, found) in encoded.items():
        close(found.tokens, ref[f"{name}_features"], FEATURES)
        for i, deep in enumerate(found.deep):
            close(deep, ref[f"{name}_deepstack{i}"], FEATURES)
        for tap, h in zip(taps, found.tapped, strict=True):
            close(h, ref[f"{name}_vis_block{tap}_out"], FEATURES)
    h = embed_patches(ref.params["vision"], ref["pixel_values_videos"])
    close(h, ref["video_vis_patch_embed0_out"], FEATURES)


def test_corners_and_borders(ref):
    """Corners of a frame are corners of the square; weights are those of a plain loop."""
    config = ref.config.vision
    side, merge = config.side, config.merge
    rows, columns, cell = 2 * merge, 3 * merge, range(merge)
    at = corners(config, [(1, rows, columns)])
    corner = [(y, x) for y in range(0, rows, merge) for x in range(0, columns, merge)]
    order = [(y + r, x + c) for y, x in corner for r in cell for c in cell]
    for n, (r, c) in enumerate(order):
        y, x = r * (side - 1) / (rows - 1), c * (side - 1) / (columns - 1)
        dense = np.zeros(side**2)
        np.add.at(dense, at.index[:, n], at.weight[:, n])
        for i in range(side):
            for j in range(side):
                expected = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
                assert dense[i * side + j] == pytest.approx(expected, abs=1e-6)
    one = corners(config, [(1, merge, merge)])
    assert [int(one.index[0, i]) for i in (0, merge**2 - 1)] == [0, side**2 - 1]


def test_positions(ref):
    for row in range(ref.rows):
        images, _ = ref.grids_of(row, "image", ref.config.image)
        videos, _ = ref.grids_of(row, "video", ref.config.video)
        pos, after = family.positions(ref.config, ref.ids(row), images=images, videos=videos)
        np.testing.assert_array_equal(pos.T, ref["position_ids"][:, row, ref.real(row)])
        assert after == len(pos) + int(ref["rope_deltas"][row, 0])


def test_one_pass(ref, encoded):
    for row in range(ref.rows):
        plan, tokens, deep = prompt(ref, encoded, row)
        decoder = ref.params["decoder"]
        inputs, outputs, out = one_pass(decoder, ref.config.decoder, plan, tokens, deep)
        close(out, ref.at("logits", row), LOGITS)
        for i, (before, after) in enumerate(zip(inputs, outputs, strict=True)):
            close(before, ref.at(f"lm{i}_in", row), HIDDEN)
            close(after, ref.at(f"lm{i}_out", row), HIDDEN)


def test_stream(ref, encoded):
    """Chunks that cut frames anywhere, through `full` memory, give the logits of the one pass."""
    (plan, tokens, deep), size = prompt(ref, encoded, 0), CHUNK
    starts = bounds(len(plan.ids), size)
    found, _, _ = in_chunks(
        ref.params["decoder"], ref.config.decoder, plan, tokens, deep, starts, size
    )
    close(found, ref.at("logits", 0), LOGITS)


def test_greedy(ref, encoded):
    for row in range(ref.rows):
        plan, tokens, deep = prompt(ref, encoded, row)
        expected = ref["greedy_tokens"][row]
        found = greedy(ref.params["decoder"], ref.config.decoder, plan, tokens, deep, len(expected))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "frame, fps, text",
    [(0, 2, "<0.2 seconds>"), (1, 2, "<1.2 seconds>"), (3, Fraction(4), "<1.6 seconds>"),
     (36_000, Fraction(2), "<36000.2 seconds>"), (7, 1.0, "<14.5 seconds>")],
)  # fmt: skip
def test_stamps(frame, fps, text):
    assert family.stamp(frame, 2, fps) == text


def test_ten_hours(ref):
    """Chunks of ten hours stand where one prompt over all of it would stand, in int32."""
    config, frames, per_chunk = ref.config, 36_000, 450
    grid, signs = (config.vision.merge, 2 * config.vision.merge), "<>. 0123456789second"
    text, *free = ref.free(len(signs) + 1)
    letters = dict(zip(signs, free, strict=True))
    words = [[letters[c] for c in family.stamp(i, 2, Fraction(2))] for i in range(frames)]
    at, found, ids, size = np.full(3, 7, np.int32), [], [text] * 7, 450 * 21
    for first in range(0, frames, per_chunk):
        stamps = words[first : first + per_chunk]
        part = family.video_chunk(config, stamps, (per_chunk, *grid), size)
        assert part.pos.dtype == part.advance.dtype == np.int32
        real = part.modality != 0
        assert np.all(real[: real.sum()])
        found.append(at + part.pos[real])
        ids += part.ids[real].tolist()
        at = at + part.advance
    whole, after = family.positions(config, [*ids, text], videos=[(frames, *grid)])
    np.testing.assert_array_equal(np.concatenate(found), whole[7:-1])
    np.testing.assert_array_equal(at, whole[-1])
    # Every frame takes its words, two tokens around it and max(1, 2).
    assert after == 7 + sum(len(w) for w in words) + 4 * frames + 1


def test_errors(ref):
    config, merge, (text,) = ref.config, ref.config.vision.merge, ref.free()
    with pytest.raises(ValueError, match="model_type 'qwen2_vl'"):
        family.read_config({"model_type": "qwen2_vl"})
    with pytest.raises(ValueError, match="has no vision_config"):
        family.read_config({k: v for k, v in ref.raw.items() if k != "vision_config"})
    with pytest.raises(ValueError, match="no square"):
        family.read_vision({**ref.raw["vision_config"], "num_position_embeddings": 35})
    with pytest.raises(ValueError, match="2 frames came with 1 time stamps"):
        family.video_chunk(config, [[text]], (2, merge, merge), 10)
    with pytest.raises(ValueError, match="4 rows do not fit a chunk of 3"):
        family.video_chunk(config, [[text]], (1, merge, merge), 3)
