"""The two layouts of video-SALMONN 2+: the released prompt, and plain loops."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from jaxmem.kv import TEXT
from jaxmem.models.hf.config import read_json
from jaxmem.models.salmonn import layout as lay
from jaxmem.models.salmonn.config import read_config


@pytest.fixture(scope="module")
def make(golden):
    """Configs of both bases with token ids and ticks of these tests."""

    def get(base):
        folder = golden / "hf" / base
        if not (folder / "config.json").exists():
            pytest.skip(f"no config.json in {folder}")
        raw = read_json(folder) | {"audio_config": {}, "audio_token_id": 4}
        raw |= {"vision_start_token_id": 1, "vision_end_token_id": 2, "video_token_id": 3}
        raw["vision_config"]["tokens_per_second"] = 7  # not used for positions
        return read_config(raw)

    return get


def test_the_worked_example(golden, make):
    """Tokens and positions of the prompt that OmniMem's released model was run on: exact."""
    path = golden / "omnimem" / "stream_decoder.npz"
    if not path.exists():
        pytest.skip(f"no {path.name} in the golden folder")
    with np.load(path) as file:
        ids, positions = file["input_ids_compact"][0], file["position_ids"].reshape(3, -1)
        frames, h, w = file["video_grid_thw"].reshape(-1).tolist()
        audio, visual = file["audio_mask"].reshape(-1), file["visual_mask"].reshape(-1)
        delta = int(file["rope_delta"].reshape(-1)[0])
    seen, heard = np.flatnonzero(visual), np.flatnonzero(audio)
    each = len(seen) // frames
    merge = round((h * w / each) ** 0.5)
    firsts = seen[::each]
    lasts = [
        max([*heard[heard < after], first + each - 1])
        for first, after in zip(firsts, [*firsts[1:], len(ids)], strict=True)
    ]
    opens, closes = firsts - 1, np.array(lasts) + 1
    made = make("qwen3_vl")
    base = replace(
        made.base, video=int(ids[seen[0]]), vision_start=int(ids[opens[0]]),
        vision_end=int(ids[closes[0]]),
    )  # fmt: skip
    config = replace(made, base=base, audio=int(ids[heard[0]]))
    # Words before the first frame are the prompt's, or its time stamp: text alike.
    begins = [opens[0], *(closes[:-1] + 1)]
    stamps = [ids[a:b].tolist() for a, b in zip(begins, opens, strict=True)]
    sounds = [int(((heard > a) & (heard < b)).sum()) for a, b in zip(opens, closes, strict=True)]
    ends, cells = lay.group_ends(0, frames, 1), (h // merge, w // merge)
    video = lay.timed_video(config, stamps, ends, sounds, cells)
    before, after = ids[: opens[0]].tolist(), ids[closes[-1] + 1 :].tolist()
    plan = lay.prompt_plan(config, before, video, after)
    np.testing.assert_array_equal(plan.ids, ids)
    np.testing.assert_array_equal(plan.pos.T, positions)
    np.testing.assert_array_equal(plan.modality, TEXT + visual + 2 * audio)
    assert plan.advance.tolist() == [len(ids) + delta] * 3
    assert plan.place[visual == 1].tolist() == list(range(visual.sum()))
    assert plan.place[audio == 1].tolist() == list(range(visual.sum(), (visual + audio).sum()))


def test_groups_and_what_is_left_of_the_sound(make):
    """Of 600 frames three share a stamp; the last group takes the rest of the padded sound."""
    config = make("qwen3_vl")
    assert lay.group_size(256) == 1 and lay.group_size(257) == 2
    assert lay.group_size(600) == 3 and lay.group_size(0) == 1
    ends = lay.group_ends(0, 5, 2)
    assert ends == [0, 2, 4, 5]
    sounds = lay.shares(config, ends, Fraction(2), 60)
    assert sounds == [8, 8, 44] and lay.shares(config, ends, Fraction(2)) == [8, 8, 4]
    video = lay.timed_video(config, [[9], [9, 9], [9]], ends, [8, 8, 4], (2, 3))
    ids, pos, at = [], [], 0
    for words, frames, heard in (([9], 2, 8), ([9, 9], 2, 8), ([9], 1, 4)):
        for token in (*words, 1):
            ids, pos, at = [*ids, token], [*pos, [at] * 3], at + 1
        for t in range(frames):
            for r in range(2):
                for c in range(3):
                    ids, pos = [*ids, 3], [*pos, [at + t, at + r, at + c]]
        at += 3
        for token in [4] * heard + [2]:
            ids, pos, at = [*ids, token], [*pos, [at] * 3], at + 1
    np.testing.assert_array_equal(video.ids, ids)
    np.testing.assert_array_equal(video.pos, pos)
    assert video.advance.tolist() == [at] * 3
    # 16 s under one stamp of seven words: 8 text, max(8, 9, 17), 32 of sound, 1.
    ends = lay.group_ends(0, 8, 8)
    sounds = lay.shares(config, ends, Fraction(2))
    wide = lay.timed_video(config, [[9] * 7], ends, sounds, (9, 17))
    assert wide.advance.tolist() == [58] * 3 and len(wide.ids) == 8 * 153 + 32 + 9


def test_sound_and_frames_on_one_clock(make):
    """The Qwen2.5-VL layout as a plain loop; chunks continue it; where text goes on."""
    config = make("qwen2_5_vl")
    for seconds, frames, cells in (
        (Fraction(2), 5, (2, 3)), (Fraction(2, 3), 7, (2, 3)), (Fraction(1), 2, (3, 40)),
    ):  # fmt: skip
        ids, pos, j = [], [], 0
        for i in range(frames):
            for r in range(cells[0]):
                for c in range(cells[1]):
                    ids, pos = [*ids, 3], [*pos, [int(i * seconds * 2), r, c]]
            while j + 1 <= (i + 1) * seconds * 2:
                ids, pos, j = [*ids, 4], [*pos, [j, 0, j]], j + 1
        ends = range(frames + 1)
        whole = lay.aligned_video(config, ends, lay.shares(config, ends, seconds), cells, seconds)
        np.testing.assert_array_equal(whole.ids, ids)
        np.testing.assert_array_equal(whole.pos, pos)
        parts, base = [], np.zeros(3, int)
        for first, stop in ((0, 1), (1, frames)):
            ends = range(first, stop + 1)
            sounds = lay.shares(config, ends, seconds)
            part = lay.aligned_video(config, ends, sounds, cells, seconds)
            parts.append(part.pos + base)
            base = base + part.advance
        np.testing.assert_array_equal(np.concatenate(parts), pos)
        shift = lay.text_after(config, frames, seconds)
        # Rows and columns of the last video reach further than its time; text does not follow them.
        assert np.max(base + shift) == max(time for time, *_ in pos) + 1
    assert cells[1] > max(time for time, *_ in pos) + 1
    assert lay.text_after(config, 0, seconds).tolist() == [0, 0, 0]


def test_text_after_ten_hours(make):
    config = make("qwen2_5_vl")
    for seconds in (Fraction(2), Fraction(2, 3), Fraction(1, 7)):
        frames = int(36_000 / seconds)
        part = lay.aligned_video(config, [frames - 1, frames], [1], (2, 3), seconds)
        shift = lay.text_after(config, frames, seconds)
        last = int((frames - 1) * seconds * 2)
        end, begin = int(frames * seconds * 2), last + part.advance[0]
        assert begin == end and shift.tolist() == [max(last + 1, end) - end, 0, 0]
        sound = part.pos[part.ids == 4][0] + [last, 0, 0]
        assert sound.tolist() == [int((frames - 1) * seconds * 2), 0, sound[0]]


def test_even_shares():
    """Of the release of 2025-07: the first ones have one more."""
    for frames, sounds in ((4, 60), (7, 60), (16, 60), (90, 60), (1, 120)):
        found = lay.even_shares(frames, sounds)
        assert sum(found) == sounds and len(found) == frames
        assert found == sorted(found, reverse=True) and found[0] - found[-1] <= 1


@pytest.mark.parametrize("frames, cells, sound", [(3, (2, 3), 9), (4, (1, 2), 40), (2, (3, 20), 4)])
def test_positions_of_the_released_generate(frames, cells, sound):
    """The first F h w tokens, of pictures or sound, as a grid of one frame a second; then text."""
    each = cells[0] * cells[1]
    heard = lay.even_shares(frames, sound)
    ids = np.array([t for count in heard for t in (*[3] * each, *[4] * count)], np.int32)
    pos = [[2 * i, r, c] for i in range(frames) for r in range(cells[0]) for c in range(cells[1])]
    after = max(2 * (frames - 1), cells[0] - 1, cells[1] - 1) + 1
    pos += [[after + i] * 3 for i in range(sound)]
    whole = lay.inferred_video(ids, 0, cells, frames)
    np.testing.assert_array_equal(whole.ids, ids)
    np.testing.assert_array_equal(whole.pos, pos)
    for cuts in ([each + heard[0]], [1, 2], [each * frames], range(1, len(ids))):
        parts, base = [], np.zeros(3, int)
        bounds = [0, *cuts, len(ids)]
        for first, stop in pairwise(bounds):
            part = lay.inferred_video(ids[first:stop], first, cells, frames)
            parts.append(part.pos + base)
            base = base + part.advance
            text = max(max(p) for p in pos[:stop]) + 1  # a question after so many tokens
            shift = lay.text_after_inferred(stop, cells, frames)
            assert (base + shift).max() == text
        np.testing.assert_array_equal(np.concatenate(parts), pos)
    assert lay.text_after_inferred(0, cells, frames).tolist() == [0, 0, 0]
