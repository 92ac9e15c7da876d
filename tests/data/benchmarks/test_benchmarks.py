"""Every benchmark in the table, read from files in its own layout; traps, wrong folders, rules."""

import itertools
import json
import re

import pytest
from benchmark_files import ABCD, LETTERED, WITHIN, dump, parquet, touch, write_rows
from benchmark_layouts import LAYOUTS

from jaxmem.data import benchmarks
from jaxmem.data.benchmarks import BENCHMARKS, Item, Video, reading, rules, streamingbench
from jaxmem.data.benchmarks.prompts import asked, poll, template_of
from jaxmem.experiments.evaluate.benchmark_config import by_video


@pytest.mark.parametrize("name", BENCHMARKS)
def test_is_read_as_it_lies(name, tmp_path):
    expected = LAYOUTS[name](tmp_path)
    found = benchmarks.read(name, tmp_path)
    items = found.items
    facts = [(x.kind, x.asked_at, x.right, len(x.options), x.form) for x in items]
    assert facts == expected.items
    assert all("A." not in option for item in items for option in item.options)
    assert len({item.id for item in items}) == len(items)
    places = [one.path and str(one.path.relative_to(tmp_path)) for one in (x.video for x in items)]
    assert places == expected.videos
    streams = [(one.start, one.fps) for one in (item.video for item in items)]
    assert streams == (expected.streams or [(0, None)] * len(items))
    if expected.labels:
        assert list(items[0].labels) == expected.labels
    if expected.evidence:
        assert [item.evidence for item in items] == expected.evidence
    if expected.groups:
        assert {item.group for item in items} == expected.groups
    for got, parts in ((found.problems, expected.problems), (found.mended, expected.mended)):
        assert len(got) == len(parts), got
        assert all(part in one.reason for one, part in zip(got, parts, strict=True)), got
        assert all(".json" in one.where or ".parquet" in one.where for one in got)
    assert all(one.questions == 1 for one in found.problems)


JUNK = (None, 3.5, -1, "junk", [], {}, [3], [{}], {"x": []}, True)


def damaged(value, junk):
    """Every copy of a JSON value in which one entry is `junk()`, to any depth."""
    keys = range(len(value)) if isinstance(value, list) else list(value)
    for key in keys:
        for other in junk():
            copy = list(value) if isinstance(value, list) else dict(value)
            copy[key] = other
            yield copy
        if isinstance(value[key], list | dict):
            for inside in damaged(value[key], junk):
                copy = list(value) if isinstance(value, list) else dict(value)
                copy[key] = inside
                yield copy


def store_json(path, value):
    path.write_text(json.dumps(value))
    return True


def store_lines(path, value):
    path.write_text("".join(f"{json.dumps(one)}\n" for one in value))
    return True


def store_table(path, value):
    """Write a row twice, so that its columns have one type; what no column can be is no table."""
    arrow = pytest.importorskip("pyarrow")
    try:
        parquet(path, [value] * 2)
    except arrow.ArrowException:
        return False
    return True


STORED = {
    ".json": (lambda path: json.loads(path.read_text()), store_json),
    ".jsonl": (reading.records_of, store_lines),
    ".parquet": (lambda path: reading.records_of(path)[0], store_table),
}
"""What reads and writes a file of each kind."""


@pytest.mark.parametrize("all_junk", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_damaged_is_a_problem_and_no_crash(name, all_junk, tmp_path):
    """Whatever is junk in a file: every question is there or counted, or the file is refused."""
    LAYOUTS[name](tmp_path)
    whole, one, tried = benchmarks.read(name, tmp_path), itertools.cycle(JUNK), 0
    junk = lambda: JUNK if all_junk else (next(one),)
    for path in sorted(x for x in tmp_path.rglob("*") if x.suffix in STORED):
        kept = path.read_bytes()
        load, store = STORED[path.suffix]
        for value in damaged(load(path), junk):
            if not store(path, value):
                continue
            tried += 1
            try:
                found = benchmarks.read(name, tmp_path)
            except ValueError as error:
                assert len(str(error)) > 20
                continue
            cost = sum(one.questions for one in found.problems)
            if name not in ("egoschema", "worldsense"):  # private answers; tasks are what counts
                assert len(found.items) + cost >= len(whole.items), value
        path.write_bytes(kept)
    assert tried > 5


def test_every_benchmark_has_a_layout_and_rules_that_exist():
    assert list(LAYOUTS) == list(BENCHMARKS)
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.rule in rules.RULES
    with pytest.raises(ValueError, match="unknown benchmark 'x': use streamingbench, ovo"):
        benchmarks.read("x", ".")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_folder_of_another_benchmark_is_refused(name, tmp_path):
    other = "video-mme" if name == "worldsense" else "worldsense"
    LAYOUTS[other](tmp_path)
    with pytest.raises(ValueError, match=f"{name}: expected .*: {BENCHMARKS[name].holds[:6]}"):
        benchmarks.read(name, tmp_path)


def test_what_is_no_copy_says_why(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        benchmarks.read("avut", tmp_path / "absent")
    with pytest.raises(ValueError, match="is no folder"):
        benchmarks.read("avut", tmp_path, tmp_path / "absent")
    with pytest.raises(ValueError, match="it is empty"):
        benchmarks.read("avut", tmp_path)
    LAYOUTS["ovo-bench"](tmp_path)
    with pytest.raises(ValueError, match="It may be a copy of ovo-bench"):
        benchmarks.read("avut", tmp_path)
    (tmp_path / "ovo_bench_new.json").write_text('[{"id"')
    with pytest.raises(ValueError, match=r"ovo_bench_new\.json is damaged: .*Download it again"):
        benchmarks.read("ovo-bench", tmp_path)
    (tmp_path / "ovo_bench_new.json").write_text("[]")
    with pytest.raises(ValueError, match="its files are empty"):
        benchmarks.read("ovo-bench", tmp_path)
    dump(tmp_path / "questions.json", [{"q_uid": "u"}])
    with pytest.raises(ValueError, match="no subset_answers"):
        benchmarks.read("egoschema", tmp_path)


def test_other_files_of_streamingbench(tmp_path):
    """The hub's CSV, each part with its own video; spoken questions where no written ones are."""
    touch(tmp_path, *(f"sample_3_{part}.mp4" for part in ("real", "omni", "sqa")))
    row = {"question_id": "Real-Time_sample_3_1", "task_type": "Counting", "question": "Which?",
           "time_stamp": "00:01:30", "answer": "B", "options": str(LETTERED)}  # fmt: skip
    kinds = ("Scene Understanding", "Anomaly Context Understanding")
    rows = [row, *(row | {"task_type": kind} for kind in kinds)]
    rows += [row | {"task_type": "Sequential Question Answering"}] * 2
    rows += [row | {"task_type": "Proactive Output"}, row | {"time_stamp": "0:01:30"}]
    write_rows(tmp_path / "real.csv", [*rows, row | {"question_id": "x"}])
    found = benchmarks.read("streamingbench", tmp_path)
    assert [item.asked_at for item in found.items] == [90] * 5
    places = [item.video.path.name for item in found.items]
    assert places == [f"sample_3_{part}.mp4" for part in ("real", "omni", "omni", "sqa", "sqa")]
    groups = ["Real-time", "Omni-source", "Contextual", "Contextual", "Contextual"]
    assert [item.group for item in found.items] == groups
    told = [item.question.startswith("Asked before") for item in found.items]
    assert told == [False, False, False, False, True]
    reasons = [one.reason for one in found.problems]
    assert len(reasons) == 3 and "ground_truth_time_stamp" in reasons[0], reasons
    question = {"task_type": "Counting", "question": "Which?", "time_stamp": "00:00:09",
                "answer": "A", "options": ABCD, "time": "[0:0:0 - 0:0:20]"}  # fmt: skip
    entry = {"video_path": "sample_3_real.mp4", "audio_path": "a.wav", "questions": [question]}
    dump(tmp_path / "questions_real_stream.json", [entry])
    found = benchmarks.read("streamingbench", tmp_path)  # the table has the same questions
    assert [item.asked_at for item in found.items] == [9]


MINUTE = "[0:0:0 - 0:1:0]"


@pytest.mark.parametrize(
    ("text", "window", "seconds"),
    [
        ("00:00:30", MINUTE, 30),
        ("00:01:02", MINUTE, 62),  # a little outside is outside, and no other time
        ("00:13:02", "[0:12:0 - 0:13:0]", 782),
        ("00:05:35", "[0:5:0 - 0:5:30]", 335),
        ("00:12450", "[0:12:0 - 0:13:0]", 765),
        ("05:11:00", "[0:5:0 - 0:6:10]", 311),
        ("05:11:00", "", 18_660),
        ("00:24", MINUTE, 24),
        ("00:24", "", 24),
        ("00:24", "[0:5:0 - 0:6:10]", 24),
        ("00:00:30.0", "", 30),
    ],
)
def test_time_stamps_of_streamingbench(text, window, seconds, tmp_path):
    found = reading.Reading(BENCHMARKS["streamingbench"], tmp_path)
    assert streamingbench.stamp(found, "here", text, streamingbench.window_of(window)) == seconds
    plain = sum(int(x) * 60**i for i, x in enumerate(reversed(re.findall(r"\d+", text[:8]))))
    assert len(found.found.mended) == (text == "00:24" or seconds != plain)


def test_questions_that_copies_hold_twice_are_read_once(tmp_path):
    """The layouts have them; here is what is read where the second copy is alone."""
    LAYOUTS["mlvu"](tmp_path / "mlvu")
    items = benchmarks.read("mlvu", tmp_path / "mlvu").items
    assert [len(x) for x in by_video(items).values()] == [1, 1, 1]  # two tasks have a p.mp4
    touch(tmp_path, "copy/1_plotQA/p.mp4", "copy/4_count/p.mp4")
    copied = {"video_name": "p.mp4", "question": WITHIN, "answer": "D", "task_type": "count"}
    dump(tmp_path / "copy" / "mlvu_dev.json", [copied])
    (item,) = benchmarks.read("mlvu", tmp_path / "copy").items
    assert item.right == 3 and item.video.path == tmp_path / "copy/4_count/p.mp4"
    LAYOUTS["longvideobench"](tmp_path / "lvb")
    (tmp_path / "lvb" / "lvb_val.json").unlink()
    (item,) = benchmarks.read("longvideobench", tmp_path / "lvb").items
    assert item.options == tuple(ABCD[:3]) and item.right == 1


def test_tables_and_the_same_as_json_are_read_once(tmp_path):
    for name, file in (("video-mme", "videomme.json"), ("timescope", "timescope.json")):
        folder = tmp_path / name
        LAYOUTS[name](folder)
        (row, *_) = reading.records_of(folder / "test.parquet")
        dump(folder / file, [row, row])
        assert len(benchmarks.read(name, folder).items) == 1
        (folder / "test.parquet").unlink()
        assert len(benchmarks.read(name, folder).items) == 2
    LAYOUTS["rvs-ego"](tmp_path / "rvs")
    whole = (tmp_path / "rvs" / "rvs_ego.json").read_text()
    (tmp_path / "rvs" / "ego").mkdir()
    (tmp_path / "rvs" / "ego" / "ego4d.json").write_text(whole)
    assert len(benchmarks.read("rvs-ego", tmp_path / "rvs").items) == 2
    dump(tmp_path / "rvs" / "rvs_ego.json", {"c1": {"video": "v1", "start": 1, "end": 2}})
    assert len(benchmarks.read("rvs-ego", tmp_path / "rvs").items) == 2  # that is of VStream-QA


def test_the_table_of_egoschema(tmp_path):
    touch(tmp_path, "u1.mp4")
    row = {"video_idx": "u1", "question": "Why?", "option": [f"{x}. y{x}" for x in "ABCDE"]}
    parquet(tmp_path / "subset.parquet", [row | {"answer": "3"}, row | {"answer": None}])
    found = benchmarks.read("egoschema", tmp_path)
    assert [(x.right, x.options[3]) for x in found.items] == [(3, "yD")] and not found.problems


def test_what_a_judge_reads(tmp_path):
    record = {"video": "s.mp4", "question": "What?", "answer": "All.", "question_type": "subPlot"}
    dump(tmp_path / "8_sub_scene.json", [record | {"scoring_points": ["a", "b"]}])
    (item,) = benchmarks.read("mlvu", tmp_path).items
    assert dict(item.record) == {"video_name": "s.mp4", "scoring_points": ["a", "b"]}
    LAYOUTS["vstream-qa"](tmp_path / "vstream")
    items = benchmarks.read("vstream-qa", tmp_path / "vstream").items
    assert [reading.own_id(item) for item in items] == ["1", "2"]
    assert [dict(item.record) for item in items] == [{"video_id": "own"}, {"video_id": "c1"}]


def test_proactive_and_sequential_questions(tmp_path):
    LAYOUTS["streamingbench"](tmp_path)
    items = benchmarks.read("streamingbench", tmp_path).items
    waiting = items[-1]
    assert waiting.polls == (4, 5, 6, 7, 8, 9) and waiting.due == 5  # stamp + 1 to truth + 4
    assert 'output "GOAL" now' in poll(waiting)
    assert items[8].question == (
        "Asked before:\nQuestion: Which shape?\nAnswer: square\n\nWhich shape?"
    )


def test_videos_are_found_by_path_name_or_id(tmp_path):
    touch(tmp_path, "a/x/v.mp4", "b/v.mp4", "c/w.webm", "c/w.wav", "d.1.mp4", "shown/0001.jpg")
    find = reading.Folder(tmp_path).find
    named = lambda name: (path := find(name)) and str(path.relative_to(tmp_path))
    assert named("./data/x/v.mp4") == "a/x/v.mp4" and named("b/v") == "b/v.mp4"
    assert named("v.mp4") is None  # two of them
    assert named("w") == "c/w.webm" and named("w.mp4") == "c/w.webm"
    assert named("d.1") == "d.1.mp4" and named("shown") == "shown" and named("absent") is None
    assert named("") is None


def test_a_folder_named_as_its_video_does_not_hide_it(tmp_path):
    touch(tmp_path, "abc/abc.mp4", "videos/d/d.mp4", "e/notes.txt", "f/1.JPG", "g.mp4/g.mp4")
    find = reading.Folder(tmp_path).find
    named = lambda name: (path := find(name)) and str(path.relative_to(tmp_path))
    assert named("abc") == "abc/abc.mp4" and named("videos/d") == "videos/d/d.mp4"
    assert named("e") is None and named("f") == "f" and named("g.mp4") == "g.mp4/g.mp4"


OPTIONS = ("red", "a blue ball", "blue", "green")
READ = [  # reply, then the number that each rule reads of four options
    # first, before ")", prefix, ranked, safe
    ("B", 1, 1, 1, 1, 1),
    ("(C) blue", None, 2, 2, 2, 2),
    ("The best answer is D.", None, None, 3, 3, 3),
    ("Answer: B", 0, 0, 0, 1, 1),
    ("It is a blue ball", None, None, None, None, 1),
    ("A because I saw it", 0, 0, 0, 0, 0),
    ("A dog that is green", 0, 0, 0, 0, 3),
    ("E", None, None, None, None, None),
    ("", None, None, None, None, None),
    ("not (A) but (B) here", None, 0, 0, 1, 0),
    ("A B or C", 0, 0, 0, 0, 0),
    ("well, I am not sure about all of this but Cats are nice", None, None, 2, None, None),
]


@pytest.mark.parametrize(("reply", "first", "before", "prefix", "ranked", "safe"), READ)
def test_rules_read_replies(reply, first, before, prefix, ranked, safe):
    read = {name: one(reply, 4) for name, one in rules.READERS.items()}
    assert read == {
        "first_character": first,
        "before_parenthesis": before,
        "prefix_search": prefix,
        "a_on_failure": 0 if prefix is None else prefix,
        "ranked": ranked,
    }
    assert rules.safe_option(reply, OPTIONS) == safe


def test_options_without_words_are_named_by_themselves_alone():
    for reply in ("", " ", "!!", "? ?"):
        assert rules.safe_option(reply, ("???", "a dog")) is None
    assert rules.safe_option(" ??? ", ("???", "a dog")) == 0
    assert rules.safe_option("??? a dog", ("???", "a dog")) == 1
    assert rules.safe_option("-", ("+", "-")) == 1 and rules.safe_option("", ("", "+")) is None


def item(right, form="options", options=(), **more):
    return Item("i", Video("v", None), "Which?", right, options, form=form, **more)


def test_scores_are_official_and_safe():
    five = item(4, options=(*ABCD, "none"))
    contains = lambda one, reply: rules.score(one, reply, rule="contains")[:3]
    assert contains(five, "E") == (True, True, True)  # a parser of A to D cannot score it
    assert contains(item(0, options=ABCD), "Answer: C") == (True, False, True)
    assert contains(five, "No idea at all") == (False, False, False)
    assert contains(item("12", "count"), "1 or 2") == (True, False, True)
    assert contains(item("3", "count"), "three times") == (False, True, True)
    assert contains(item("No", "yes_no"), "Nothing yet") == (True, False, False)
    assert contains(item("No", "yes_no"), "no") == (False, True, True)
    assert contains(item("Yes", "yes_no"), "Y") == (True, False, False)
    assert contains(item("a star", "text"), "it was a star") == (None, None, True)
    left = rules.score(five, " ", rule="first_character", empty_counts=False)
    assert left[:3] == (None, False, False)
    waiting = item("GOAL", "proactive", due=5.0)
    at = lambda time, reply: rules.score(waiting, reply, rule="contains", at=time)
    assert at(7.0, "goal!") == (True, True, True, True, True)
    assert at(7.5, "goal!").in_time is False and at(None, "").official is False
    assert at(4.0, "what").official is False and at(4.0, "what").in_time is True
    assert at(4.0, "what").said is False and at(9.0, "goal!").said is True


def test_prompts(tmp_path):
    one = item(1, options=("red", "blue"))
    assert asked(one, template_of("options")) == (
        "Which?\nA. red\nB. blue\nAnswer with the letter of the right option."
    )
    assert asked(one, template_of("question")) == "Which?"
    assert "number" in asked(item("1", "count"), template_of("options"))
    (tmp_path / "mine.txt").write_text("{options}\n{question}!\n")
    assert asked(one, template_of(str(tmp_path / "mine.txt"))) == "A. red\nB. blue\nWhich?!"
    with pytest.raises(ValueError, match="or a file, got 'x'"):
        template_of("x")
    (tmp_path / "mine.txt").write_text("{question}")
    with pytest.raises(ValueError, match=r"no \{options\}"):
        template_of(str(tmp_path / "mine.txt"))
    (tmp_path / "mine.txt").write_text("{question}\n{options}", encoding="utf-8-sig")
    assert template_of(str(tmp_path / "mine.txt")) == "{question}\n{options}"
    (tmp_path / "mine.txt").write_text("\u00e9 {question} {options}", encoding="latin-1")
    with pytest.raises(ValueError, match=r"--prompt .*mine\.txt: it is no UTF-8: .*Save it as UTF"):
        template_of(str(tmp_path / "mine.txt"))


def test_options_and_answers_keep_their_places():
    read = lambda *options: reading.choices({"options": list(options)}, "options")
    assert read("A. x", "B. y", "", None) == ("x", "y") and read(1, 2) == ("1", "2")
    for blank in ("", None, " "):
        with pytest.raises(ValueError, match="none of them empty"):
            read("A. x", blank, "C. z")
    assert reading.right_text("(B) y", ("x", "y")) == 1
    with pytest.raises(ValueError, match="none of the options"):
        reading.right_text("(A) y", ("x", "y"))


def test_options_are_cut_out_of_questions():
    assert reading.split_options("Which?\nA) x\nB) y, z\n\nAnswer.") == ("Which?", ("x", "y, z"))
    assert reading.split_options("Which? A. x B. y") == ("Which?", ("x", "y"))
    assert reading.unlettered(["A. Smith", "Jones"]) == ("A. Smith", "Jones")
    assert reading.unlettered(["A: x", "(B) y"]) == ("x", "y")


def test_options_that_are_letters_alone_are_empty():
    for text in ("Q?\n(A) \n(B) y", "Q?\nA. x\nB.\nC. z", "Q?\n(A) x\n(B)"):
        with pytest.raises(reading.MalformedError, match="options of the question .* none of them"):
            reading.split_options(text)
    assert reading.split_options("Q?\n(A) x\n(B) y\n(C)") == ("Q?", ("x", "y"))
    with pytest.raises(reading.MalformedError, match="none of them empty"):
        reading.choices({"options": ["A.", "B. y"]}, "options")
    assert reading.choices({"options": ["A. x", "B. y", "C."]}, "options") == ("x", "y")


def test_lines_end_where_a_text_does_not(tmp_path):
    """At no U+2028 and the like, which `str.splitlines` takes for ends of lines."""
    odd = "one\u2028two\u2029three\x85four"
    lines = [json.dumps({"x": odd}, ensure_ascii=False)] * 2
    (tmp_path / "a.jsonl").write_text("\r\n\n".join(lines), encoding="utf-8")
    assert reading.records_of(tmp_path / "a.jsonl") == [{"x": odd}] * 2
    rows = [{"x": f"{odd}\x0bfive\x0csix\x1cseven", "y": "two\nlines"}, {"x": "z", "y": ""}]
    write_rows(tmp_path / "a.csv", rows)
    assert reading.records_of(tmp_path / "a.csv") == rows


def test_files_that_are_no_lists(tmp_path):
    (tmp_path / "a.json").write_text("3")
    with pytest.raises(ValueError, match="holds 3, expected a list"):
        reading.records_of(tmp_path / "a.json")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="is damaged"):
        reading.records_of(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps({"x": 1}))
    assert reading.records_of(tmp_path / "a.json") == [{"_id": "x", "_value": 1}]


def test_the_page_says_the_rules_of_every_benchmark(root):
    text = (root / "docs" / "evaluate.md").read_text()
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| `")]
    said = {name: (row[2].strip(), row[3].strip()) for row in rows
            for name in re.findall(r"`([\w-]+)`", row[1]) if name in BENCHMARKS}  # fmt: skip
    assert said == {name: (one.rule, one.average) for name, one in BENCHMARKS.items()}


def test_a_benchmark_of_the_users_own(tmp_path):
    path = tmp_path / "mine.py"
    dump(tmp_path / "a.json", [1])
    path.write_text(
        "from jaxmem.data.benchmarks import Benchmark\n"
        "BENCHMARK = Benchmark('mine', lambda reading: None, ('a.json',), 'numbers')\n"
    )
    with pytest.raises(ValueError, match=r"no question of mine: expected a\.json: numbers"):
        benchmarks.read(str(path), tmp_path)
    path.write_text("BENCHMARK = 3")
    with pytest.raises(ValueError, match="has no BENCHMARK"):
        benchmarks.named(str(path))
