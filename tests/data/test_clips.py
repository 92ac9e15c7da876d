"""Clips of question files: real videos, order, hosts, resuming, and what cannot be read."""

import json
import sys
from functools import partial

import numpy as np
import pytest

import jaxmem as jm
from jaxmem.data.clips import Clips
from jaxmem.data.question_files import QuestionFiles
from jaxmem.data.world.files import write_video
from jaxmem.data.world.world import split_seed, world
from jaxmem.feeding import open_for

pytest.importorskip("grain")
COUNT, SECONDS = 7, 3


@pytest.fixture(scope="module")
def opened():
    return partial(open_for, jm.load("tiny", abstract=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos v0 to v6 of three seconds, v1 in another container."""
    found = tmp_path_factory.mktemp("videos")
    for i in range(COUNT):
        stream = world(split_seed("train", i), SECONDS, "easy")
        write_video(found / f"v{i}{'.mkv' if i == 1 else '.mp4'}", stream, fps=2, scale=1)
    return found


def questions(path, *changes, count=COUNT, folder=None):
    """A record for each video, with changes by number."""
    records = [{"video_id": f"v{i}", "q": f"Which {i}?", "a": f"{i}"} for i in range(count)]
    for number, change in changes:
        records[number] |= change
    path.write_text(json.dumps(records))
    return QuestionFiles([path], folder)


@pytest.fixture
def records(folder, tmp_path):
    return questions(tmp_path / "all.json", folder=folder)


def names(clips):
    return [clip.record.video.name for clip in clips]


def test_a_clip_is_a_decoded_video_and_its_questions(records, opened):
    with Clips(records, opened, seed=0, epochs=1, host=0, hosts=1) as clips:
        found = {clip.record.video.name: clip for clip in clips}
    assert sorted(found) == [f"v{i}" for i in range(COUNT)] and not clips.skipped
    for i, name in enumerate(sorted(found)):
        with opened(records[i].video.with_suffix(".mkv" if i == 1 else ".mp4")) as reader:
            expected = list(reader)
        pieces = found[name].pieces
        assert len(pieces) == len(expected) == SECONDS
        for one, other in zip(pieces, expected, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.samples, other.samples)
        assert found[name].record.asked[0].question == f"Which {i}?"
    session = jm.Session(jm.load("tiny"), jm.Recent(40)).watch(found["v2"].pieces)
    assert session.seconds == SECONDS


def test_what_is_watched_has_a_start_an_end_and_a_length(folder, opened, tmp_path):
    changes = (0, {"start": 1}), (1, {"end": 2}), (2, {"start": 1, "end": 1.5})
    records = questions(tmp_path / "all.json", *changes, count=3, folder=folder)
    with Clips(records, opened, seed=0, epochs=1, host=0, hosts=1, longest=1.5) as clips:
        found = {clip.record.video.name: clip.pieces for clip in clips}
    starts = {name: [piece.start for piece in pieces] for name, pieces in found.items()}
    assert starts == {"v0": [1.0, 2.0], "v1": [0.0, 1.0], "v2": [1.0]}
    ends = {name: pieces[-1].valid_seconds for name, pieces in found.items()}
    assert ends == {"v0": 0.5, "v1": 0.5, "v2": 0.5}


def test_the_seed_is_the_order_and_every_epoch_has_its_own(records, opened):
    def order(seed, epochs=2, **more):
        options = {"epochs": epochs, "host": 0, "hosts": 1} | more
        with Clips(records, opened, seed=seed, **options) as clips:
            return names(clips)

    first = order(3)
    assert order(3, threads=1, ahead=1) == first != order(4)
    one, two = first[:COUNT], first[COUNT:]
    assert sorted(one) == sorted(two) and one != two != sorted(two)


def test_hosts_have_equally_many_and_nothing_twice(records, opened):
    each = []
    for host in range(3):
        with Clips(records, opened, seed=1, epochs=2, host=host, hosts=3) as clips:
            each.append(names(clips))
    assert [len(found) for found in each] == [4, 4, 4]
    epochs = [[name for found in each for name in found[at : at + 2]] for at in (0, 2)]
    assert all(len(set(found)) == 6 for found in epochs) and epochs[0] != epochs[1]


def test_clips_go_on_where_they_were(records, opened, tmp_path):
    options = {"seed": 5, "host": 1, "hosts": 2}
    with Clips(records, opened, **options) as clips:
        for _ in range(4):
            next(clips)
        text = json.dumps(clips.state())
        expected = [next(clips).record for _ in range(5)]  # into the third epoch
    with Clips(records, opened, **options) as again:
        again.restore(json.loads(text))
        assert [next(again).record for _ in range(5)] == expected
        assert again.skipped == clips.skipped == {}
    other = Clips(records, opened, seed=6, host=0, hosts=2)
    with pytest.raises(ValueError, match="had seed 5, here 6, host 1, here 0: give the same"):
        other.restore(json.loads(text))
    fewer = Clips(questions(tmp_path / "fewer.json", count=5), opened, **options)
    with pytest.raises(ValueError, match="clips that are to go on had records '"):
        fewer.restore(json.loads(text))


def test_what_cannot_be_read_is_skipped_counted_and_listed(folder, opened, tmp_path):
    whole = (folder / "v2.mp4").read_bytes()
    (tmp_path / "v0.mp4").write_bytes(b"no video")
    (tmp_path / "v1.mp4").write_bytes(whole[: len(whole) // 2])
    mkv = (folder / "v1.mkv").read_bytes()
    (tmp_path / "v2.mkv").write_bytes(mkv[: len(mkv) // 3])
    for i in (4, 5, 6):
        (tmp_path / f"v{i}.mp4").write_bytes(whole)
    late = (4, {"time": 8}), (5, {"time": 3.9}), (6, {"start": 20})
    records = questions(tmp_path / "all.json", *late)
    reasons = {
        "v0": "v0.mp4", "v1": "damaged at", "v2": "damaged at", "v3": "there is no file",
        "v4": "ends at 3 s, before a question at 8 s", "v6": "ends at 0 s",
    }  # fmt: skip
    with Clips(records, opened, seed=0, epochs=2, host=0, hosts=1) as clips:
        assert names(clips) == ["v5", "v5"]  # a second late is within rounding
        state = json.loads(json.dumps(clips.state()))
    assert len(clips.skipped) == len(reasons)
    for i, words in ((int(name[1]), words) for name, words in reasons.items()):
        where, video, reason = clips.skipped[records[i].where]
        assert where.endswith(f"all.json:1, record {i + 1}") and video == str(tmp_path / f"v{i}")
        assert words in reason
    with Clips(records, opened, seed=0, epochs=2, host=0, hosts=1) as again:
        again.restore(state)
        assert list(again) == [] and again.skipped == clips.skipped


def test_a_folder_without_videos_ends(opened, tmp_path):
    records = questions(tmp_path / "all.json", folder=tmp_path / "elsewhere")
    clips = Clips(records, opened, seed=0, host=0, hosts=1)
    with clips, pytest.raises(ValueError, match="none of 7 videos in turn can be read") as caught:
        next(clips)
    assert str(caught.value).count("there is no file") == COUNT


def test_what_makes_no_sense(records, opened, monkeypatch):
    for host, hosts in ((2, 2), (-1, 1), (0, 8)):
        with pytest.raises(ValueError, match=rf"host {host} of {hosts} with 7 record\(s\)"):
            Clips(records, opened, seed=0, host=host, hosts=hosts)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match=r"package grain: pip install 'jaxmem\[train\]'"):
        Clips(records, opened, seed=0)
