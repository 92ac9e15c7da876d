"""The main job end to end, with random weights: what it says, writes and returns."""

import dataclasses
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest
import small
from jax.errors import JaxRuntimeError

from jaxmem.data.media.media import open_media
from jaxmem.data.world.files import held_out
from jaxmem.decoder.sampling import Sampling
from jaxmem.experiments.benchmark.price import nbytes as tree_bytes
from jaxmem.experiments.memories import options_class
from jaxmem.experiments.parsing import load
from jaxmem.experiments.stream import __main__ as _main
from jaxmem.experiments.stream import job as _job
from jaxmem.experiments.stream.__main__ import configured, main
from jaxmem.experiments.stream.config import StreamConfig
from jaxmem.experiments.stream.interrupt import Stop
from jaxmem.experiments.stream.output import show
from jaxmem.experiments.stream.questions import parse_ask
from jaxmem.experiments.stream.run import feed, open_streams, put
from jaxmem.experiments.stream.screen import Screen
from jaxmem.experiments.stream.segments import hold_frames, segments
from jaxmem.experiments.stream.terminal import Terminal
from jaxmem.memory import MEMORIES
from jaxmem.memory.by_name import Budget, build, contestants
from jaxmem.memory.sizes import nbytes
from jaxmem.models.load import load as load_model
from jaxmem.models.scorer import save_scorer
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec
from jaxmem.report.numbers import size
from jaxmem.session import Session

pytestmark = pytest.mark.usefixtures("no_programs")
SECONDS = 10


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    config = tiny.TinyConfig(
        width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
    )
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    params = tiny.init(config, jax.random.key(0))
    params["decoder"] = small.scored(params["decoder"], tiny.decoder_config(config))
    tiny.save(path, params, config)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return held_out(1, SECONDS, tmp_path_factory.mktemp("clip"), count=1)[0]


@pytest.fixture
def job(weights, tmp_path, capsys):
    """Runs the command line and returns its status, report, standard output and error."""

    def run(*words, status=0):
        out = tmp_path / "out"
        own = [] if "--model" in words else ["--weights", str(weights)]
        code = main([*own, "--out", str(out), "--budget", "32", *words])
        captured = capsys.readouterr()
        assert code == status, captured.err
        report = out / "report.json"
        return (json.loads(report.read_text()) if report.exists() else None), captured

    return run


def test_without_arguments_it_renders_streams_asks_and_reports(job, tmp_path):
    words = ["--seconds", str(SECONDS), "--questions", "3", "--seed", "2", "--json"]
    report, captured = job(*words)
    printed = json.loads(captured.out)
    assert printed == report
    assert "rendered" in captured.err and "right answers" in captured.err
    (result,) = report["results"]
    assert result["memory"] == "omnimem" and result["slots"] == [32, 32]
    assert len(result["answers"]) == 3 and report["unasked"] == 0
    assert all(a["truth"] and a["wanted_time"] is None for a in result["answers"])
    assert result["accuracy"]["asked"] == 3
    assert report["tokens"] == 20 * SECONDS and report["seconds"] == pytest.approx(SECONDS, abs=0.1)
    assert report["end"]["kind"] == "end"
    assert report["compilations"]["before"] >= 2 and report["compilations"]["streaming"] == 0
    assert result["kept"] == {"vision": 32, "audio": 32}  # both caps full, in 2 layers
    assert result["nbytes"] < report["full_bytes"]
    for path in report["files"].values():
        assert Path(path).stat().st_size > 1000 or path.endswith("report.json")
    assert (tmp_path / "out" / f"test_2_{SECONDS}s.mp4").exists()


def test_a_clip_asks_at_times_and_compares(job, clip, monkeypatch):
    lines = iter(["what was the last sound?", "what is a zebra?", ""])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.console.Console.input", lambda *a, **k: next(lines))
    report, captured = job(
        *["--video", str(clip), "--compare", "omnimem,full"],
        *["--ask", "end: was the drum heard?", "--ask", "00:04.5: which shape is there now?"],
        *["--ask", "90: where was the star?"],
    )
    ours, full = report["results"]
    assert [r["memory"] for r in report["results"]] == ["omnimem", "full"]
    assert ours["nbytes"] < full["nbytes"]
    assert full["reference"] and sum(full["kept"].values()) == 2 * report["tokens"]
    for result in report["results"]:
        times = [(a["time"], a["wanted_time"]) for a in result["answers"]]
        end = report["seconds"]
        assert times == [(4.5, None), (end, 90.0), (end, None), (end, None)]
        assert result["accuracy"] is None
    assert report["compilations"]["streaming"] == 0
    assert "zebra" in captured.out and "comparison" in report["files"]
    assert Path(report["files"]["comparison"]).stat().st_size > 1000
    assert report["note"] and report["note"][:20] in captured.out


def test_what_is_typed_meanwhile_is_answered_after_the_segment(job, clip, monkeypatch):
    """A queue in place of the terminal: two lines while it streams, the rest when it is over."""
    lines = queue.Queue()
    for line in ("what was the last sound?", "what is a zebra?", ""):
        lines.put(line)

    @contextmanager
    def typed_lines(*, wanted, hidden):
        assert wanted and not hidden
        yield Terminal(lines.get)

    def show_and_type(done, console):
        show(done, console)
        lines.put("was the drum heard?")
        lines.put("")

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("jaxmem.experiments.stream.__main__.typed_lines", typed_lines)
    monkeypatch.setattr("jaxmem.experiments.stream.__main__.show", show_and_type)
    report, captured = job(
        *["--video", str(clip), "--compare", "omnimem,recent"],
        *["--ask", "end: which shape is there now?"],
    )
    for result in report["results"]:
        asked = [(a["time"], a["question"], a["wanted_time"]) for a in result["answers"]]
        assert asked == [
            (8.0, "what was the last sound?", None),  # one segment
            (report["seconds"], "which shape is there now?", None),
            (report["seconds"], "was the drum heard?", None),
        ]
    assert report["unasked"] == 0 and report["end"]["kind"] == "end"
    assert captured.out.index("zebra") < captured.out.index("which shape is there")


def test_answers_of_several_tokens_grow_and_can_be_drawn(job, clip, weights, monkeypatch):
    """A checkpoint is stood in for by the small model with room for five words."""
    load = lambda *a, **k: embedded(weights)._replace(max_new=5, sampling=Sampling(0.9, 0.8))
    grown, wrote = {}, Screen.wrote

    def note(screen, name, question, part):
        grown.setdefault(question, []).append(part)
        wrote(screen, name, question, part)

    monkeypatch.setattr("jaxmem.experiments.stream.source.load", load)
    monkeypatch.setattr(Screen, "wrote", note)
    monkeypatch.setattr(_job, "warm_up", lambda *a, **k: None)  # saves two compilations
    words = ["--model", "any", "--video", str(clip), "--seconds", "2", "--no-prompt"]
    words += ["--ask", "end: which shape is there now?", "--sample", "--temperature", "4"]
    report, captured = job(*words)
    (answer,) = report["results"][0]["answers"]
    parts = grown[answer["question"]]
    assert "".join(parts) == answer["answer"] and len(parts) == 2 == len(grown) + 1
    assert "answers are drawn: temperature 4, top-p 0.8, seed 0" in captured.out
    again, captured = job(*words, "--json")
    assert again["results"][0]["answers"][0]["answer"] == answer["answer"]
    assert grown == {answer["question"]: parts}


def test_no_room_on_the_device_is_2(job, clip, weights, golden, monkeypatch):
    """The error names what was asked and what it needs, while loading and while compiling."""

    def full(*args, **kwargs):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    words = ["--video", str(clip), "--dtype", "float32", "--no-prompt"]
    where = str(golden / "hf" / "qwen2_5_vl")
    monkeypatch.setattr("jaxmem.experiments.stream.source.load", full)
    _, captured = job("--model", where, *words, status=2)
    shapes = load_model(where, abstract=True, dtype="float32").params
    assert f"while loading: --model {where} in float32 with --memory omnimem" in captured.err
    assert f"--budget 32 needs {size(tree_bytes(shapes))} of weights" in captured.err

    model = embedded(weights)
    monkeypatch.setattr("jaxmem.experiments.stream.source.load", lambda *a, **k: model)
    monkeypatch.setattr(_job, "warm_up", full)
    report, captured = job("--model", "any", *words, "--memory", "recent", status=2)
    spec = model_spec(model, 1)
    state = nbytes(build("recent", 32, spec), spec)
    assert (
        f"needs {size(tree_bytes(model.params))} of weights and {size(state)} of state (recent)"
        in (captured.err)
    )
    assert report is None

    def broken(*args, **kwargs):
        raise JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(_job, "warm_up", broken)
    with pytest.raises(JaxRuntimeError, match="something else"):
        job("--model", "any", *words)


def test_damaged_media_stays_answerable(job, clip, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    report, captured = job("--video", str(cut))
    assert report["end"]["kind"] == "damaged" and 1 <= report["end"]["time"] < SECONDS
    assert len(report["results"][0]["answers"]) == 4
    assert "damaged" in captured.out


def test_interrupted_streams_are_reported(job, clip, monkeypatch):
    def interrupt(bar, length, begin):
        return lambda at: signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_job, "_mover", interrupt)
    report, _ = job("--video", str(clip))
    assert report["end"] == {
        "time": 8.0,  # one segment
        "reason": "interrupted by the user",
        "kind": "interrupted",
    }
    assert report["results"][0]["answers"]


def test_config_file_is_overridden_by_the_command_line(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from jaxmem.experiments.stream.config import StreamConfig\n"
        "get_config = lambda: StreamConfig(seconds=3, memory='recent', ask=('end: a',))\n"
    )
    words = ["--config", str(path), "--seconds", "2", "--recent.sinks", "7"]
    config = configured(words)
    assert (config.memory, config.seconds) == ("recent", 2)
    assert config.memories == {"recent": {"sinks": 7}}
    assert config.ask == ("end: a",) and config.config == path
    for text in ("", "get_config = lambda: 3", "get_config = 1 / 0"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"x\.py"):
            configured(words)


@pytest.mark.parametrize("name", ["stream_default", "stream_compare"])
def test_shipped_configs_load(root, name):
    config = load(StreamConfig, root / "configs" / f"{name}.py")
    assert isinstance(config, StreamConfig)
    _job.prepare(config, embedded())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ask", "what colour was the star?"], "no time"),
        (["--ask", "1:75: what colour was the star?"], "no time"),
        (["--ask", "5: where is the zebra?"], "zebra"),
        (["--budget", "lots"], "budget"),
        (["--budget", "12B"], "one slot per layer"),
        (["--memory", "elephant"], "elephant"),
        (["--compare", "recent,elephant"], "elephant"),
        (["--compare", "recent,recent"], "twice"),
        (["--seconds", "-1"], "seconds"),
        (["--seconds", "2.5"], "whole number"),
        (["--chunk-seconds", "1.5"], "multiple"),
        (["--fps", "30"], "fps"),
        (["--omnimem.lam", "-1", "--video", "CLIP"], "lam"),
        (["--temperature", "-1"], "temperature must be at least 0"),
        (["--top-p", "1.5"], "top-p must be"),
        (["--sample"], "give a --temperature"),
        (["--config", "nowhere.py"], "nowhere.py"),
        (["--config"], "--config"),
        (["--weights", "nowhere.safetensors"], "nowhere"),
        (["--no-such-option"], "no-such-option"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_bad_arguments_are_2(job, clip, words, message):
    if "CLIP" not in words and words != ["--seconds", "2.5"]:
        words = [*words, "--video", str(clip)]
    report, captured = job(*(str(clip) if w == "CLIP" else w for w in words), status=2)
    assert message in " ".join(captured.err.split()) and "Traceback" not in captured.err
    assert report is None


def test_what_cannot_be_read_is_3(job, tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("not a film")
    for path in (tmp_path / "missing.mp4", text):
        report, captured = job("--video", str(path), status=3)
        assert path.name in captured.err and report is None


def spoil(kind, out, monkeypatch):
    """Take away what files are written to when the tables are shown; return what undoes it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def shown(done, console):
        show(done, console)
        if kind == "a limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            return
        shutil.rmtree(out)
        if kind == "a file":
            out.write_text("not a folder")

    monkeypatch.setattr(_main, "show", shown)
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("kind", "status"), [("a limit", 4), ("a file", 4), ("removed", 0)])
def test_what_cannot_be_written_at_the_end_is_4(kind, status, job, clip, tmp_path, monkeypatch):
    """Tables first, then one line; a folder that was only removed is made again."""
    undo = spoil(kind, tmp_path / "out", monkeypatch)
    try:
        report, captured = job("--video", str(clip), "--no-prompt", "--seconds", "4", status=status)
    finally:
        undo()
    assert "time per chunk" in captured.out
    assert (report is None) == (status == 4)
    errors = captured.err.strip().splitlines()
    assert len(errors) == (status == 4) and "Traceback" not in captured.err
    assert all(line.startswith("error: the report could not be written: ") for line in errors)
    if kind == "a limit":  # and no half of a file
        assert sorted((tmp_path / "out").iterdir()) == []


def test_saves_that_cannot_be_written_are_4(job, clip, tmp_path, monkeypatch):
    """The stream goes on without them, and the report is there."""
    live, moved = tmp_path / "live", _job._mover

    def mover(bar, length, begin):
        shutil.rmtree(live)
        live.write_text("not a folder")
        return moved(bar, length, begin)

    monkeypatch.setattr(_job, "_mover", mover)
    words = ["--video", str(clip), "--no-prompt", "--checkpoint", str(live), "--every", "1"]
    report, captured = job(*words, status=4)
    assert report["end"]["kind"] == "end" and report["results"][0]["answers"]
    assert captured.out.count("could not be saved") == captured.err.count("could not be saved") == 1
    assert "Traceback" not in captured.out + captured.err


def test_nobody_reads_is_141():
    """As `--help | head -1`, where `head` is always gone first."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "jaxmem.experiments.stream", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_is_0(capsys):
    assert main(["--help"]) == 0
    assert "--help-memory" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*MEMORIES, "bank"])
def test_every_memory_has_help(name, capsys):
    """Every option with a line of its own."""
    assert main(["--help-memory", name]) == 0
    shown = capsys.readouterr().out
    for one in dataclasses.fields(options_class(name)):
        word = one.name.replace("_", "-")
        assert word in shown or word.upper() in shown


def test_all_memories_compare_within_the_same_bytes(job, clip):
    """Every name of the table, from the command line to its report."""
    report, _ = job(
        *["--video", str(clip), "--compare", ",".join(MEMORIES), "--budget", "48KiB"],
        *["--seconds", "3", "--ask", "end: which was the last shape?", "--no-prompt"],
        *["--flexmem.capacity", "64", "--flexmem.reader-layers", "1"],
    )
    assert [r["memory"] for r in report["results"]] == [*MEMORIES]
    for result in report["results"]:
        assert result["reference"] or result["nbytes"] <= 48 * 1024, result["memory"]
        assert len(result["answers"]) == 1 and result["answers"][0]["answer"]
    assert report["compilations"]["streaming"] == 0


def test_retention_takes_a_scorer_and_says_where_one_comes_from(weights, clip, tmp_path, capsys):
    params, config = tiny.load(weights)
    scorer = params["decoder"]["layers"].pop("retention")
    tiny.save(tmp_path / "bare", params, config)
    words = ["--weights", str(tmp_path / "bare"), "--video", str(clip), "--seconds", "2"]
    words += ["--ask", "end: which was the last shape?", "--no-prompt", "--memory", "retention"]
    words += ["--retention.no-logits", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "python -m jaxmem.experiments.scorer" in capsys.readouterr().err.replace("\n", " ")
    save_scorer(tmp_path / "scorer", scorer)
    assert main([*words, "--scorer", str(tmp_path / "scorer")]) == 0
    assert main([*words[:-5], "--scorer", str(tmp_path / "scorer")]) == 2
    assert "--scorer has no effect without --memory retention" in capsys.readouterr().err


def test_segments_are_cut_where_questions_are_due(weights, clip):
    model = embedded(weights)
    times = [0.5, 3.0, 3.2, 7.9, 40.0]
    with open_media(str(clip), size=(48, 48)) as reader:
        made = list(segments(reader, model, chunk_pieces=2, chunks=2, times=times))
    assert [(s.pieces, s.due) for s in made if s.due] == [(0, (0,)), (3, (1, 2)), (7, (3,))]
    assert all(s.time == s.pieces for s in made[:-1]) and made[-1].pieces == 10
    assert all(len(s.open) == s.pieces % 2 for s in made)
    fed = [s.inputs for s in made if s.inputs is not None]
    assert {x.frames.shape for x in fed} == {(1, 2, 48, 48, 3), (2, 2, 48, 48, 3)}
    assert all(x.valid.any(axis=1).all() for x in fed)  # no chunk is padding altogether
    assert sum(len(x.valid) for x in fed) == 5


DRIVEN = ("omnimem", "hermes", "flexmem", "flash_vstream")
"""One of each way to be driven (in the loop, over the stack, with a bank, before the decoder).

The others are slow tests, and all run in one comparison above.
"""


@pytest.mark.parametrize(
    "name", [n if n in DRIVEN else pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]
)
def test_feeding_segments_is_what_a_session_does(weights, clip, name):
    """The command line and the notebook convenience give the same answer and the same state."""
    model = embedded(weights)
    question = parse_ask("end: which was the last shape?")
    with open_media(str(clip), size=(48, 48), stop=5.0) as reader:
        pieces = list(reader)
    spec = model_spec(model, 2)
    (one,) = contestants((name,), {}, Budget(48, None), spec, 200)
    session = Session(model, one.memory, chunk_pieces=2).watch(pieces)
    (other,) = open_streams(model, [one], spec, chunk_pieces=2)
    for segment in segments(pieces, model, chunk_pieces=2, chunks=1, times=[]):
        feed(other, segment.inputs, segment.heard)
    for mine, theirs in zip(
        jax.tree.leaves(other.session.carry.state),
        jax.tree.leaves(session.carry.state),
        strict=True,
    ):
        assert mine.shape == theirs.shape
        assert float(abs(mine.astype(float) - theirs.astype(float)).max()) < 1e-5
    for _ in put(other, question, 5.0):
        pass
    assert other.answers[0].answer == session.ask(question.text).text


def test_fewer_pictures_are_held(clip):
    with open_media(str(clip), size=(48, 48)) as reader:
        pieces = list(reader)
    seen = [p.frames for p in hold_frames(pieces, 0.5)]
    for i, frames in enumerate(seen):
        assert (frames == pieces[i - i % 2].frames).all()
    assert any((a.frames != b).any() for a, b in zip(pieces, seen, strict=True))


def test_the_first_interrupt_waits_for_what_runs():
    stop = Stop()
    stop(signal.SIGINT, None)
    assert stop.wanted
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)
    idle = Stop()

    def blocked():
        idle(signal.SIGINT, None)
        yield 1

    assert idle.next(blocked()) is None and idle.wanted
