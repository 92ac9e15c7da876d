"""`evaluate benchmark` from the command line to its report, on small videos of the known world."""

import json
import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import killing
import numpy as np
import pytest
from benchmark_files import dump

import jaxmem as jm
from jaxmem.data.benchmarks import BENCHMARKS, Item, Video
from jaxmem.data.benchmarks.pictures import Pictures
from jaxmem.data.benchmarks.rules import Score
from jaxmem.data.world.files import held_out
from jaxmem.experiments.evaluate import __main__ as evaluate
from jaxmem.experiments.evaluate import benchmark, benchmark_asking, benchmark_watch
from jaxmem.experiments.evaluate.benchmark_cells import fingerprint
from jaxmem.experiments.evaluate.benchmark_config import BenchmarkConfig, by_video
from jaxmem.finite import NotFiniteError
from jaxmem.models.qwen.tiny_checkpoint import write_tiny
from jaxmem.report import benchmarks as report

SECONDS = (6, 4)
SCORES = ("official", "safe", "unparsed", "replies", "lost", "by", "asked_at_the_end_instead")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Two videos in the layout of StreamingBench, one that is missing, and one that is damaged."""
    root = tmp_path_factory.mktemp("copy")
    entries = []
    for seed, seconds in enumerate(SECONDS):
        path, drawn = held_out(seed, seconds, root / "videos", count=3, scale=1, fps=2)
        asked = [question_of(q.text, q.answer, int(q.time), q.type) for q in drawn]
        entries.append({"video_path": f"./videos/{path.name}", "questions": asked})
    # Out of order, after the end, and in words that the model does not know.
    entries[0]["questions"] = entries[0]["questions"][::-1]
    last = entries[1]["questions"][-1]
    entries[1]["questions"] += [last | {"time_stamp": "00:00:59"}, last | {"question": "Who?"}]
    (root / "videos" / "damaged.mp4").write_text("no film")
    for name in ("missing.mp4", "damaged.mp4"):
        entries.append({"video_path": f"./videos/{name}", "questions": asked[:2]})
    malformed = question_of("Which shape is there now?", "star", 1, "now") | {"answer": "E"}
    entries.append({"video_path": "./videos/missing.mp4", "questions": [malformed]})
    dump(root / "questions_real.json", entries)
    return root


def question_of(text, answer, time, kind):
    others = [w for w in ("circle", "beep", "red", "left") if w != answer][:3]
    return {"task_type": kind, "question": text, "time_stamp": f"00:00:{time:02d}", "answer": "A",
            "options": [answer, *others]}  # fmt: skip


def arguments(copy, out, *more):
    words = f"benchmark --name streamingbench --data {copy} --budget 64KiB --prompt question"
    return [*words.split(), "--memory", "recent,full", "--out", str(out), *map(str, more)]


def report_of(out):
    document = json.loads((out / "results.json").read_text())
    return document, {one["memory"]: one for one in document["memories"]}


def scores_of(out):
    """What does not depend on the clock."""
    return {name: {key: one[key] for key in SCORES} for name, one in report_of(out)[1].items()}


@pytest.fixture(scope="module")
def ran(copy, tmp_path_factory):
    """The folder of a run, and how often each video was opened."""
    out, opened, patch = tmp_path_factory.mktemp("ran"), [], pytest.MonkeyPatch()

    def open_for(model, path, **options):
        opened.append(path.name)
        return jm.feeding.open_for(model, path, **options)

    patch.setattr(benchmark_watch, "open_for", open_for)
    assert evaluate.main(arguments(copy, out)) == 0
    patch.undo()
    return SimpleNamespace(out=out, opened=opened)


def test_a_run_reports_what_was_right_and_what_was_lost(ran, copy, capsys):
    document, found = report_of(ran.out)
    assert ran.opened == ["test_0_6s.mp4", "test_1_4s.mp4", "damaged.mp4"]  # once for both memories
    assert document["questions"] == 12 and document["rule"] == "first_character"
    assert (
        len(document["problems"]) == 1 and "expected a letter" in document["problems"][0]["reason"]
    )
    full = found["full"]
    assert full["replies"] == 7 and full["videos"] == 2
    assert full["safe"] == {"share": 1.0, "low": 1.0, "high": 1.0, "asked": 7}  # it knows the world
    assert full["official"]["share"] == 0 and full["unparsed"] == 0  # words, and no letters
    assert full["asked_at_the_end_instead"] == 1
    assert full["asked_after_the_first_piece_instead"] == 0
    assert 0 <= full["not_yet_seen_s"]["median"] <= full["not_yet_seen_s"]["most"] < 1
    (settings,) = full["made_by"]["settings"]
    assert settings["budget"] == "64KiB" and full["made_by"]["model"] == ["tiny"]
    assert full["made_by"]["commit"] == [document["commit"]]
    lost = {one["reason"][:12]: one["questions"] for one in full["lost"]}
    assert sorted(lost.values()) == [1, 2, 2] and lost["there is no "] == 2
    assert found["recent"]["nbytes"] <= 65536 < full["nbytes"]
    assert full["frames"] >= 1 and full["tokens"] == 20 * full["frames"]
    assert full["first_token_ms"] > 0 and "kind" in full["by"]
    text = (ran.out / "tables.txt").read_text()
    assert "streamingbench: mean over questions" in text and "recent" in text
    lines = [json.loads(x) for x in (ran.out / "replies.jsonl").read_text().splitlines()]
    assert len(lines) == 14 and {x["memory"] for x in lines} == {"recent", "full"}
    assert not (ran.out / "judge").exists()


def test_replies_are_those_of_a_session_asked_at_the_same_times(ran, copy):
    """One that is fed piece by piece."""
    name = "./videos/test_0_6s.mp4"
    cell = next(x for x in map(json.loads, map(read, (ran.out / "cells" / "full").iterdir()))
                if x["video"] == name)  # fmt: skip
    times = [reply["time"] for reply in cell["replies"]]
    assert times == sorted(times) and cell["seconds"] <= SECONDS[0]
    model = jm.load("tiny")
    session = jm.Session(model, jm.Full(cell["slots"]))
    waiting = list(cell["replies"])
    with session.open(copy / name) as reader:
        for piece in reader:
            session.feed(piece)
            while waiting and waiting[0]["time"] < piece.start + 2:
                one = waiting.pop(0)
                assert session.ask(one["asked"]).text == one["reply"]
                assert (one["tokens"], one["frames"]) == (session.tokens, session.pieces)
    assert not waiting


def read(path):
    return path.read_text()


def stop_at(monkeypatch, name):
    """Have Ctrl-C come at a video."""
    watch = benchmark_watch.watch

    def interrupted(setup, video, *more):
        setup.stop.wanted = name in video.name
        return watch(setup, video, *more)

    monkeypatch.setattr(benchmark, "watch", interrupted)


def tried_by(monkeypatch):
    """Return the list to which every video is added that is watched, with its memories."""
    tried, watch = [], benchmark_watch.watch

    def counted(setup, video, *more):
        tried.append((video.name.rpartition("/")[2], sorted(more[2])))
        return watch(setup, video, *more)

    monkeypatch.setattr(benchmark, "watch", counted)
    return tried


def test_a_second_run_asks_what_is_missing(ran, copy, monkeypatch, capsys):
    """Videos that cannot be read are tried again; another rule or a part is only counted anew."""
    tried, before = tried_by(monkeypatch), report_of(ran.out)
    assert evaluate.main(arguments(copy, ran.out)) == 0
    again = report_of(ran.out)
    both = ["full", "recent"]
    assert tried == [("missing.mp4", both), ("damaged.mp4", both)]
    assert [again[1][name] for name in both] == [before[1][name] for name in both]
    tried.clear()
    kind = json.loads((copy / "questions_real.json").read_text())[0]["questions"][0]["task_type"]
    more = "--only", kind, "--rule", "contains"
    assert evaluate.main(arguments(copy, ran.out, *more)) == 0
    document, found = report_of(ran.out)
    assert document["rule"] == "contains" and found["full"]["replies"] < 7
    assert {name for name, _ in tried} <= {"missing.mp4", "damaged.mp4"}
    tried.clear()
    (next((ran.out / "cells" / "recent").glob("*test_1*"))).unlink()
    assert evaluate.main(arguments(copy, ran.out)) == 0
    assert tried[0] == ("test_1_4s.mp4", ["recent"])
    assert report_of(ran.out)[1]["full"] == before[1]["full"]


def test_shards_are_merged_to_what_one_run_gives(ran, copy, tmp_path, capsys):
    parts = [tmp_path / str(i) for i in range(2)]
    for i, part in enumerate(parts):
        assert evaluate.main(arguments(copy, part, "--shard", f"{i}/2")) == 0
    document = report_of(parts[0])[0]
    assert document["videos"] == 2 and "shard 0/2" in capsys.readouterr().out
    assert evaluate.main(arguments(copy, tmp_path / "all", "--merge", *parts)) == 0
    assert scores_of(tmp_path / "all") == scores_of(ran.out)
    assert evaluate.main(arguments(copy, tmp_path / "half", "--merge", parts[0])) == 0
    assert "has not been watched yet" in capsys.readouterr().out
    document, found = report_of(tmp_path / "half")
    assert "memory" not in document["config"] and found["full"]["made_by"]["device"]
    cell = next((parts[1] / "cells" / "full").iterdir())
    whole = cell.read_text()
    for key in ("fingerprint", "prompt"):
        cell.write_text(whole.replace(f'"{key}": "', f'"{key}": "x'))
        assert evaluate.main(arguments(copy, tmp_path / "all", "--merge", *parts)) == 2
        assert "under other settings, prompts or weights" in capsys.readouterr().err


def test_ctrl_c_ends_with_a_report_and_status_130(ran, copy, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, "4s")
    with pytest.raises(SystemExit) as status:
        evaluate.main(arguments(copy, tmp_path))
    assert status.value.code == 130 and "goes on from here" in capsys.readouterr().out
    found = report_of(tmp_path)[1]
    assert found["full"]["videos"] == 1
    assert sum(one["questions"] for one in found["full"]["lost"]) == 9


def test_replies_of_other_settings_or_times_are_not_reported(ran, copy, tmp_path, monkeypatch):
    """A run that ends early tells of its own replies only; a stamp that changed is asked anew."""
    out = tmp_path / "out"
    shutil.copytree(ran.out, out)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, "4s")
        evaluate.main([*arguments(copy, out), "--bits", "8"])
    assert report_of(out)[1]["full"]["videos"] == 1  # two of the other settings are there
    again = tmp_path / "again"
    shutil.copytree(copy, again)
    moved = json.loads((again / "questions_real.json").read_text())
    moved[0]["questions"][0]["time_stamp"] = "00:00:06"
    dump(again / "questions_real.json", moved)
    tried = tried_by(monkeypatch)
    shutil.rmtree(out)
    shutil.copytree(ran.out, out)
    assert evaluate.main(arguments(again, out)) == 0
    assert [name for name, _ in tried] == ["test_0_6s.mp4", "missing.mp4", "damaged.mp4"]


def test_a_video_of_unknown_length_is_lost_to_what_needs_it(copy, tmp_path, monkeypatch):
    """And the run goes on: `full` has no size there."""
    opened = []

    def open_for(model, path, **options):
        reader = jm.feeding.open_for(model, path, **options)
        opened.append(path.name)
        if len(opened) == 1:
            monkeypatch.setattr(reader, "info", replace(reader.info, duration=None))
        return reader

    monkeypatch.setattr(benchmark_watch, "open_for", open_for)
    assert evaluate.main(arguments(copy, tmp_path)) == 0
    found = report_of(tmp_path)[1]["recent"]
    assert found["videos"] == 1 and "length" in found["lost"][0]["reason"], found["lost"]


def test_what_comes_before_the_first_piece_is_counted():
    """Of a model with long pieces that may be most questions."""

    def replied(at, time, seen, **more):
        one = Item("i", Video("v", None), "?", "", asked_at=at, form="text", **more)
        return report.Replied(one, Score(None, None, True), "", time, False, 99.0, seen, 1, 1, 1.0)

    early, then, end = replied(10.0, 30.0, 30.0), replied(59.0, 59.0, 30.0), replied(None, 90, 90)
    found = report.as_dict(
        report.Outcome("m", [early, then, end], [], 0, 0, {}), BENCHMARKS["rvs-ego"]
    )
    assert found["asked_after_the_first_piece_instead"] == 1
    assert found["not_yet_seen_s"] == {"median": 14.5, "most": 29.0}


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(ran, copy, tmp_path, capsys):
    """A real kill, as soon as the first video is stored; the report is that of a whole run."""
    out = tmp_path / "out"
    child = killing.begin(evaluate.main, tmp_path / "log", arguments(copy, out))
    while child.is_alive() and not list(out.glob("cells/full/*.json")):
        time.sleep(0.01)
    assert killing.kill(child), (tmp_path / "log").read_text()
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/full/*0_6s*.json")}
    assert before and not (out / "results.json").exists()
    assert evaluate.main(arguments(copy, out)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole, again = report_of(ran.out)[1], report_of(out)[1]
    for name in whole:
        assert {key: again[name][key] for key in SCORES} == {
            key: whole[name][key] for key in SCORES
        }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "ovo"], "unknown benchmark 'ovo': use streamingbench, ovo-bench"),
        (["--name", "absent.py"], "absent.py: FileNotFoundError"),
        (["--rule", "x"], "none of first_character"),
        (["--shard", "4/4"], "from 0 to N-1"),
        (["--prompt", "x"], "or a file, got 'x'"),
        (["--only", "x"], "'x' is none of the kinds and groups"),
        (["--memory", "x"], "unknown memory 'x'"),
        (["--budget", "x"], "is no budget"),
        (["--budget", "10B"], "hold no memory"),
        (["--dtype", "float32"], "--dtype has no effect"),
        (["--scorer", "x"], "without --memory retention"),
        (["--merge", "absent"], "there are no replies"),
        (["--merge", "absent", "--shard", "0/2"], "leave --shard out"),
        (["--chunk-seconds", "-1"], "must be positive"),
        (["--chunk-seconds", "1.5"], "pieces of 1 s"),
        (["--omnimem.lam", "0"], "not among --memory"),
        (["--name", "ovo-bench"], "is no copy of ovo-bench.*may be a copy of streamingbench"),
    ],
)
def test_arguments_that_make_no_sense(copy, tmp_path, capsys, words, message):
    assert evaluate.main(arguments(copy, tmp_path, *words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_settings_tell_replies_apart():
    model, plain = jm.load("tiny"), BenchmarkConfig("avut", None, budget="64")

    def mark(name="recent", **more):
        config = BenchmarkConfig("avut", None, **({"budget": "64", "memory": "full,recent"} | more))
        return fingerprint(benchmark.settings_of(config, model, "w", name))

    assert plain.memory == "omnimem" and mark() == mark(prompt="question", rule="ranked", only="x")
    differ = [mark(), mark("full"), mark(budget="65"), mark(bits=8), mark(chunk_seconds=2.0),
              mark(options={"recent": {"sinks": 2}}), mark(memory="uniform,recent")]  # fmt: skip
    assert len(set(differ)) == len(differ)
    by_bytes = {"budget": "64KiB"}
    assert mark(**by_bytes) == mark(memory="uniform,recent", **by_bytes)


def test_videos_of_a_shard_and_the_order_of_questions():
    def item(name, at, **more):
        return Item(f"{name}{at}", Video(name, None, **more), "?", 0, asked_at=at)

    items = [item("a", 5), item("b", None), item("a", 2), item("a", 9, start=3.0), item("c", 1)]
    found = by_video(items)
    assert [(v.id, [i.asked_at for i in x]) for v, x in found.items()] == [
        ("a", [2, 5]), ("b", [None]), ("a@3.0", [9]), ("c", [1])
    ]  # fmt: skip
    assert [v.id for v in by_video(items, "1/2")] == ["b", "c"]


class Streamed:
    """A stand-in for a stream: it says yes from a time on, and breaks at another."""

    def __init__(self, name, yes, breaks=np.inf):
        self.contestant, self.answers = SimpleNamespace(name=name), []
        media = SimpleNamespace(fps=2.0, piece_seconds=1.0)
        self.session = SimpleNamespace(
            model=SimpleNamespace(media=media), pieces=3, tokens=7, seconds=3.0
        )
        self.yes, self.breaks = yes, breaks

    def answer(self, question, now):
        if now >= self.breaks:
            raise NotFiniteError("it broke")
        said = ("Yes." if now >= self.yes else "No") if "right time" in question.text else "GOAL"
        self.answers.append(
            SimpleNamespace(answer=said, time=now, wanted_time=None, first_token_ms=1.0)
        )
        return iter(())


def test_a_proactive_question_waits_for_yes(monkeypatch):
    """Each stream by itself; one that breaks is left alone."""
    monkeypatch.setattr(
        benchmark_asking, "put", lambda one, question, now: one.answer(question, now)
    )
    one = Item("p", Video("v", None), "Say it", "GOAL", form="proactive", polls=(1.0, 2.0, 3.0),
               due=2.0, asked_at=0.0)  # fmt: skip
    then = Item("q", Video("v", None), "What?", "x", form="text", asked_at=2.5)
    heard = []
    asking = benchmark_asking.Asking(
        [one, then], {"p": "Say it", "q": "What?"}, lambda: heard.append(1)
    )
    planned = asking.planned(0.0)
    assert [x.time for x in planned] == [1.0, 2.0, 2.5, 3.0]
    streams = [Streamed("early", 2.0), Streamed("silent", 99.0), Streamed("broken", 1.0, 2.2)]
    for question in planned:
        list(asking(streams, question, question.time))
    told = {n: [(x["id"], x["reply"], x["time"]) for x in r] for n, r in asking.replies.items()}
    assert told == {
        "early": [("p", "GOAL", 2.0), ("q", "GOAL", 2.5)],
        "silent": [("q", "GOAL", 2.5), ("p", "", None)],
        "broken": [("p", "GOAL", 1.0)],
    }
    assert asking.broken == {"broken": "it broke"} and len(heard) == 2
    assert len(streams[0].answers) == 4  # no, yes, the reply, the other question; nothing after


def test_videos_that_are_pictures(tmp_path):
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full(
        (1, 8, 12, 3), 40, np.uint8
    )
    np.save(tmp_path / "v.npy", frames)
    form = {"fps": 2.0, "piece_seconds": 1.0, "sample_rate": 100, "size": lambda h, w: (h, w)}
    with Pictures(tmp_path / "v.npy", 1.0, **form, start=1.0, stop=4.5) as reader:
        pieces = list(reader)
        assert reader.info.size == (8, 12) and reader.end.kind == "end" and not reader.events
    assert [p.start for p in pieces] == [1.0, 2.0, 3.0, 4.0] and pieces[-1].valid_seconds == 0.5
    shown = [[int(x[0, 0, 0]) for x in p.frames] for p in pieces]
    assert shown == [[40, 40], [80, 80], [120, 120], [160, 160]]
    assert pieces[0].samples.shape == (100,) and not pieces[0].has_audio
    np.save(tmp_path / "w.npy", frames[..., 0])
    (tmp_path / "shown").mkdir()
    for path, message in ((tmp_path / "w.npy", r"\(5, 8, 12\) of uint8"), (tmp_path, "no picture")):
        (tmp_path / "v.npy").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=message):
            Pictures(path, 1.0, **form)
    (tmp_path / "shown" / "1.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read"):
        Pictures(tmp_path / "shown", 1.0, **form)


@pytest.mark.slow
def test_a_checkpoint_is_asked_in_every_form(tmp_path, capsys):
    """Options, counts, yes and no, and open questions for a judge, of a random checkpoint."""
    pytest.importorskip("tokenizers")
    model = write_tiny(tmp_path / "model")
    copy = tmp_path / "copy"
    held_out(1, 6, copy / "videos", count=1, scale=1, fps=2)
    base = {"video": "test_1_6s.mp4", "id": 0}
    dump(
        copy / "ovo_bench_new.json",
        [
            base | {"task": "OCR", "question": "What is shown?", "options": ["a", "b"], "gt": 1,
                    "realtime": 2.5, "answer": "b"},
            base | {"task": "REC", "activity": "x", "test_info": [{"realtime": 3, "count": 1}]},
            base | {"task": "SSR", "tutorial": "t",
                    "test_info": [{"realtime": 4, "step": "s", "type": 0}]},
        ],
    )  # fmt: skip
    out = tmp_path / "out"
    argv = f"benchmark --name ovo-bench --data {copy} --model {model} --dtype float32 --max-new 4 "
    argv += f"--memory recent --budget 64 --out {out}"
    assert evaluate.main(argv.split()) == 0, capsys.readouterr().err
    found = report_of(out)[1]["recent"]
    assert found["replies"] == 3 and found["by"]["group"].keys() == {"Real-time", "Forward"}
    turns = [{"question": "What is shown?", "answer": "x", "start_time": 1, "end_time": 3.2}]
    record = {"video_id": "v", "video_path": "test_1_6s.mp4", "conversations": turns}
    dump(tmp_path / "copy" / "rvs_ego.json", [record])
    argv = argv.replace("ovo-bench", "rvs-ego").replace(str(out), str(tmp_path / "judged"))
    assert evaluate.main(argv.split()) == 0, capsys.readouterr().err
    (judged,) = json.loads((tmp_path / "judged" / "judge" / "recent.json").read_text())
    assert judged["answer"] == "x" and "pred" in judged
    assert (judged["id"], judged["video_id"]) == ("v.1", "v")
    assert report_of(tmp_path / "judged")[1]["recent"]["official"] is None
    assert BENCHMARKS["rvs-ego"].average == "questions"
