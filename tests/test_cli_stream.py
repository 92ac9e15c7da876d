"""The main job end to end, with random weights: what it says, writes and returns."""

import json
import signal
import sys
from pathlib import Path

import jax
import pytest

from jaxmem.data.files import held_out
from jaxmem.data.media import open_media
from jaxmem.embedded import embedded
from jaxmem.experiments import _job
from jaxmem.experiments._config import load, parse, split
from jaxmem.experiments._feed import hold_frames, segments
from jaxmem.experiments._interrupt import Stop
from jaxmem.experiments._memories import (
    NAMES,
    Budget,
    Memories,
    OmniMem,
    Setting,
    build,
    choose,
    parse_budget,
    parse_names,
)
from jaxmem.experiments._questions import END, parse_ask
from jaxmem.experiments._run import feed, open_lanes, put
from jaxmem.experiments._stream_config import StreamConfig
from jaxmem.experiments.stream import main
from jaxmem.memory.base import Spec, nbytes, slots
from jaxmem.memory.budgets import save_table
from jaxmem.models import tiny
from jaxmem.session import Session

SECONDS = 10
SETTING = Setting(tiny.decoder_config(tiny.TinyConfig()).rope, 20, (1, 0, 0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    config = tiny.TinyConfig(
        width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
    )
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    tiny.save(path, tiny.init(config, jax.random.key(0)), config)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return held_out(1, SECONDS, tmp_path_factory.mktemp("clip"), count=1)[0]


@pytest.fixture
def job(weights, tmp_path, capsys):
    """Runs the command line and returns its status, report, standard output and error."""

    def run(*words, status=0):
        out = tmp_path / "out"
        code = main(["--weights", str(weights), "--out", str(out), "--budget", "32", *words])
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
        "from jaxmem.experiments.stream import StreamConfig\n"
        "get_config = lambda: StreamConfig(seconds=3, memory='recent', ask=('end: a',))\n"
    )
    words = ["--config", str(path), "--seconds", "2", "--recent.sinks", "7"]
    config = parse(StreamConfig, words, prog="x")
    assert (config.memory, config.seconds, config.memories.recent.sinks) == ("recent", 2, 7)
    assert config.ask == ("end: a",) and config.config == path
    for text in ("", "get_config = lambda: 3", "get_config = 1 / 0"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"x\.py"):
            parse(StreamConfig, words, prog="x")


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


def test_help_is_0(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}." in shown for name in NAMES)


def test_every_memory_has_a_name():
    from typing import get_args

    from jaxmem.experiments._memories import Name
    from jaxmem.experiments._memory_builders import _BUILD

    assert get_args(Name) == NAMES == tuple(_BUILD)
    for name in NAMES:
        assert build(name, 40, SETTING).name == name
    with pytest.raises(ValueError, match="elephant"):
        build("elephant", 4, SETTING)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("96", Budget(96, None)),
        ("64KiB", Budget(None, 65536)),
        ("1.5 MB", Budget(None, 1500000)),
        ("100b", Budget(None, 100)),
    ],
)
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "1.5", "-3", "KiB", "3 slots", "1KiBB"])
def test_bad_budgets(text):
    with pytest.raises(ValueError, match="budget"):
        parse_budget(text)


def test_equal_bytes_whatever_the_options():
    spec = Spec(layers=4, kv_heads=2, heads=4, head_dim=32, width=128, axes=3, chunk=20)
    options = Memories(omnimem=OmniMem(sketch=32))
    chosen = choose(NAMES[::-1], options, Budget(None, 1 << 18), spec, SETTING.rope, 4800)
    setting = Setting(SETTING.rope, spec.chunk, spec.text_step)
    for one in chosen:
        price = nbytes(one.memory, one.spec)
        if one.reference:
            assert price > 1 << 18
        else:
            more = build(one.name, one.slots + 1, setting, options)
            assert price <= 1 << 18 < nbytes(more, one.spec)
    with pytest.raises(ValueError, match=r"full\.capacity"):
        choose(("full",), options, Budget(96, None), spec, SETTING.rope, None)
    assert parse_names("omnimem, last-frames") == ("omnimem", "last_frames")


def test_a_budget_table_sets_the_bytes(tmp_path):
    spec = Spec(layers=2, kv_heads=2, heads=4, head_dim=32, width=128, axes=3, chunk=20)
    save_table(tmp_path / "table.json", [[10, 20], [30, 40]])
    options = Memories(omnimem=OmniMem(table=tmp_path / "table.json"))
    ours, other = choose(("omnimem", "recent"), options, Budget(8, None), spec, SETTING.rope, None)
    assert slots(ours.memory, spec) == (30, 70)
    spare = nbytes(ours.memory, spec) - nbytes(other.memory, spec)
    assert 0 <= spare < 2 * 700
    with pytest.raises(ValueError, match="first"):
        choose(("recent", "omnimem"), options, Budget(8, None), spec, SETTING.rope, None)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("5: a b", 5),
        ("1:05.5: a b", 65.5),
        ("2:00:01:a b", 7201),
        ("END : a b", END),
        ("75:a b", 75),
    ],
)
def test_asked_times(text, time):
    assert parse_ask(text)[:2] == (time, "a b")


def test_config_is_taken_out_of_the_arguments():
    assert split(["--a", "--config=x.py", "b"]) == (["--a", "b"], Path("x.py"))
    with pytest.raises(ValueError, match="once"):
        split(["--config", "a.py", "--config", "b.py"])


def test_segments_are_cut_where_questions_are_due(weights, clip):
    model = embedded(weights)
    times = [0.5, 3.0, 3.2, 7.9, 40.0]
    with open_media(str(clip), size=(48, 48)) as reader:
        made = list(segments(reader, model, chunk_pieces=2, chunks=2, times=times))
    assert [(s.pieces, s.due) for s in made] == [
        (0, (0,)),
        (3, (1, 2)),
        (4, ()),
        (0, (3,)),
        (3, ()),
    ]
    assert [s.time for s in made[:4]] == [0.0, 3.0, 7.0, 7.0]
    shapes = {jax.tree.map(lambda x: x.shape, s.inputs) for s in made if s.pieces}
    assert len(shapes) == 1 and next(iter(shapes)).frames == (2, 2, 48, 48, 3)


def test_feeding_segments_is_what_a_session_does(weights, clip):
    """The command line and the notebook convenience give the same answer and the same state."""
    model = embedded(weights)
    question = parse_ask("end: which was the last shape?")
    with open_media(str(clip), size=(48, 48), stop=5.0) as reader:
        pieces = list(reader)
    session = Session(model, build("omnimem", 24, SETTING), chunk_pieces=2).watch(pieces)
    chosen = choose(("omnimem",), Memories(), Budget(24, None), session.spec, SETTING.rope, None)
    (lane,) = open_lanes(model, chosen)
    for segment in segments(pieces, model, chunk_pieces=2, chunks=1, times=[]):
        feed(model, lane, segment.inputs)
    for mine, theirs in zip(
        jax.tree.leaves(lane.carry.state), jax.tree.leaves(session.carry.state), strict=True
    ):
        assert mine.shape == theirs.shape
        assert float(abs(mine.astype(float) - theirs.astype(float)).max()) < 1e-5
    assert put(model, lane, question, 5.0).answer == session.ask(question.text).text


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
