"""Ids of questions: what is stored of a run is found by them, whatever stood before a question."""

import json

import pytest
from benchmark_files import ABCD, LETTERED, dump, touch
from benchmark_layouts import LAYOUTS

from jaxmem.data import benchmarks
from jaxmem.data.benchmarks import BENCHMARKS, Item, Video, reading


def ids_of(name, folder):
    return [item.id for item in benchmarks.read(name, folder).items]


def put_before(path):
    """Write a record that cannot be read before all others of a file."""
    text = path.read_text()
    if path.suffix == ".jsonl":
        path.write_text(f'"junk"\n{text}')
    elif path.suffix == ".json":
        value = json.loads(text)
        dump(path, {"junk": 3, **value} if isinstance(value, dict) else ["junk", *value])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_records_before_a_question_leave_its_id(name, tmp_path):
    LAYOUTS[name](tmp_path)
    before = ids_of(name, tmp_path)
    for path in tmp_path.rglob("*.json*"):
        put_before(path)
    assert ids_of(name, tmp_path) == before and all(before)


def test_a_record_that_is_mended_leaves_the_ids_of_others(tmp_path):
    record = {"Type": "Event", "Question": "Which?", "Choice": LETTERED, "Answer": "D",
              "video_id": "d1", "video_duration": "30s"}  # fmt: skip
    others = [record, record | {"video_id": "d2"}]
    dump(tmp_path / "qa.json", [record | {"Answer": "Z"}, *others])
    damaged = ids_of("daily-omni", tmp_path)
    dump(tmp_path / "qa.json", [record, *others])
    first = "Videos/d1/d1_video.mp4.1"
    assert ids_of("daily-omni", tmp_path) == [first, *damaged]
    assert damaged == ["Videos/d1/d1_video.mp4.2", "Videos/d2/d2_video.mp4.1"]


def test_questions_of_streamingbench_are_numbered_by_video(tmp_path):
    asked = {"task_type": "Counting", "question": "Which?", "time_stamp": "00:00:09",
             "answer": "A", "options": ABCD}  # fmt: skip
    entries = lambda answer: [
        {"video_path": "a.mp4", "questions": [asked | {"answer": answer}, asked]},
        {"video_path": "b.mp4", "questions": [asked]},
        {"video_path": "a.mp4", "questions": [asked]},
    ]
    dump(tmp_path / "questions_real.json", entries("Z"))
    damaged = ids_of("streamingbench", tmp_path)
    assert damaged == ["a.mp4.2", "b.mp4.1", "a.mp4.3"]
    dump(tmp_path / "questions_real.json", entries("A"))
    assert ids_of("streamingbench", tmp_path) == ["a.mp4.1", *damaged]


def test_ids_are_unique_and_the_own_ones_are_kept(tmp_path):
    """Whatever they are: one that looks like a repeated one, too."""
    found = reading.Reading(BENCHMARKS["avut"], tmp_path)
    own = ["x", "y", "x", "x#2", "x#2", "x", "#", "x#", "#3", "x#2#1", "x:1", "x#\u0662", "x#2\n"]
    for one in own:
        found.add(Item(one, Video("v", None), "?", 0, ("a", "b")))
    ids = [item.id for item in found.found.items]
    assert ids[:6] == ["x", "y", "x#2", "x#2#1", "x#2#2", "x#3"]
    assert len(set(ids)) == len(ids)
    assert [reading.own_id(item) for item in found.found.items] == own


def test_a_question_without_an_id_is_named_by_its_video(tmp_path):
    found = reading.Reading(BENCHMARKS["avut"], tmp_path)
    for name in "vwv":
        found.add(Item("", Video(name, None, start=2.5), "?", 0, ("a", "b")))
    assert [item.id for item in found.found.items] == ["v@2.5.1", "w@2.5.1", "v@2.5.2"]
    asked = {"question": "Which?\n(A) x\n(B) y", "answer": "B", "question_type": ["er"], "uid": " "}
    touch(tmp_path, "k.mp4")
    (tmp_path / "a.meta.jsonl").write_text(json.dumps({"key": "k", "qa": [asked, asked]}))
    assert ids_of("lvbench", tmp_path) == ["k.1", "k.2"]
