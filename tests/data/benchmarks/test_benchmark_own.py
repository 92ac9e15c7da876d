"""A benchmark of the user's own: what is wrong with it is said before a video is watched."""

from dataclasses import replace

import pytest
from benchmark_files import dump

from jaxmem.data import benchmarks
from jaxmem.data.benchmarks import BENCHMARKS, Benchmark, Item, Video, reading, rules

MINE = """
from jaxmem.data.benchmarks import Benchmark, Item


def read(reading):
    for where, record in reading.records("a.json"):
        {inside}


BENCHMARK = Benchmark("mine", read, ("a.json",), "numbers"{more})
"""


def mine(folder, inside="pass", more=""):
    """Write a benchmark and its records, and read them."""
    dump(folder / "a.json", [{"ask": "Which?"}, {"ask": "What?"}])
    (folder / "mine.py").write_text(MINE.format(inside=inside, more=more))
    return benchmarks.read(str(folder / "mine.py"), folder)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rule": "rnaked"}, "rule of 'm' is 'rnaked', expected one of first_character,"),
        ({"average": "kind"}, "average of .* is 'kind', expected one of questions, kinds, groups"),
        ({"empty_counts": "no"}, "empty_counts of .* is 'no', expected True or False"),
        ({"files": "a.json"}, r"files of .* is 'a.json', expected a tuple of .*\(\"mine.json\",\)"),
        ({"files": ()}, r"files of .* is \(\)"),
        ({"files": ("/a.json",)}, "files of .* is "),
        ({"read": None}, "read of .* is None, expected a function"),
        ({"name": 3}, "name of 3 is 3, expected text"),
        ({"holds": None}, "holds of 'm' is None, expected text"),
    ],
)
def test_what_a_benchmark_cannot_be(more, message):
    given = {"name": "m", "read": print, "files": ("a.json",), "holds": "numbers"}
    with pytest.raises(ValueError, match=f"Benchmark.{message}"):
        Benchmark(**{**given, **more})


def test_a_rule_that_is_none_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"mine\.py, line 10: ValueError: .*rule of .* is 'x'"):
        mine(tmp_path, more=", rule='x'")


def test_every_rule_is_there():
    assert list(rules.RULES) == [*rules.READERS, "contains"]


GOOD = Item("i", Video("v", None), "Which?", 1, ("red", "blue"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ()}, r"options is \(\), expected 2 to 26, none of them empty \(a"),
        ({"options": ("red",), "right": 0}, "options is"),
        ({"options": ("red", " ")}, "options is"),
        ({"options": ("red", 3)}, "options is"),
        ({"options": "red"}, "options is 'red'"),
        ({"options": None}, "options is None"),
        ({"options": tuple(map(str, range(27)))}, "options is"),  # letters end at Z
        ({"right": 2}, "right is 2, expected a number from 0 to 1"),
        ({"right": "B"}, "right is 'B', expected a number from 0 to 1"),
        ({"right": True}, "right is True"),
        ({"form": "open"}, "form is 'open', expected one of options, count, yes_no, text, pro"),
        ({"form": "count", "right": "three"}, "right is 'three', expected a whole number"),
        ({"form": "yes_no", "right": "yes"}, "right is 'yes', expected Yes or No"),
        ({"form": "text", "right": 3}, "right is 3, expected text"),
        ({"form": "proactive", "right": "GOAL"}, "due is None, expected seconds"),
        ({"form": "proactive", "right": "", "due": 3.0}, "right is '', expected the words"),
        ({"id": 3}, "id is 3, expected text"),
        ({"question": None}, "question is None, expected text"),
        ({"kind": None}, "kind is None, expected text"),
        ({"group": 3}, "group is 3, expected text"),
        ({"video": "v.mp4"}, r"video is 'v.mp4', expected what reading.video\(name\) returns"),
        ({"asked_at": "6"}, "asked_at is '6', expected seconds of the video"),
        ({"asked_at": float("nan")}, "asked_at is nan"),
        ({"polls": ("1",)}, "polls is"),
        ({"evidence": (3,)}, r"evidence is \(3,\), expected two seconds"),
        ({"evidence": "0:10-0:20"}, "evidence is"),
        ({"labels": ("duration", "long")}, "labels is .* expected pairs"),
        ({"labels": (("duration", 3),)}, "labels is"),
        ({"record": {"video_id": "v"}}, "record is"),
    ],
)
def test_what_a_question_cannot_be_is_listed(change, message, tmp_path):
    found = reading.Reading(BENCHMARKS["avut"], tmp_path)
    for item in (replace(GOOD, **change), GOOD):
        with found.noting("here"):
            found.add(item)
    assert [item.id for item in found.found.items] == ["i"]
    (problem,) = found.found.problems
    assert (problem.where, problem.questions) == ("here", 1)
    with pytest.raises(reading.MalformedError, match=f"Item.{message}"):
        found.add(replace(GOOD, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"form": "count", "right": 3, "options": ()},
        {"form": "count", "right": "12"},
        {"form": "yes_no", "right": "No"},
        {"form": "text", "right": "", "record": (("points", [1]),)},
        {"form": "proactive", "right": "GOAL", "due": 3, "polls": (1, 2.0)},
        {"options": ["red", "blue"], "asked_at": 0, "evidence": (1, 2), "labels": (("a", ""),)},
    ],
)
def test_what_a_question_may_be(change, tmp_path):
    found = reading.Reading(BENCHMARKS["avut"], tmp_path)
    found.add(replace(GOOD, **change))
    assert len(found.found.items) == 1


def test_what_a_reader_raises_names_the_file_and_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"mine\.py, line 7: KeyError: 'asked'$"):
        mine(tmp_path, "record['asked']")
    with pytest.raises(ValueError, match=r"mine\.py, line 7: TypeError: .*missing"):
        mine(tmp_path, "reading.add(Item())")
    alone = "reading.add(Item('', reading.video('v'), record['ask'], 0))"
    with pytest.raises(ValueError, match=r"line 7: MalformedError: Item.options .*reading\.noting"):
        mine(tmp_path, alone)
    with pytest.raises(ValueError, match=r"holds no question of mine: .*record 1: Item.options is"):
        mine(tmp_path, f"\n        with reading.noting(where): {alone}")
    (tmp_path / "a.json").write_text("3")
    with pytest.raises(ValueError, match=r"mine\.py, line 6: ValueError: .*a\.json holds 3"):
        benchmarks.read(str(tmp_path / "mine.py"), tmp_path)


def test_what_one_of_ours_raises_stays(monkeypatch, tmp_path):
    """It is an error of ours, and to be seen as it is."""
    dump(tmp_path / "qa.json", [])

    def read(found):
        raise KeyError("x")

    broken = replace(BENCHMARKS["daily-omni"], read=read)
    monkeypatch.setattr(benchmarks, "named", lambda name: broken)
    with pytest.raises(KeyError):
        benchmarks.read("daily-omni", tmp_path)
