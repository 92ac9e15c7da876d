"""Which stored replies of `evaluate benchmark` count, and that no run loses any."""

import json
import shutil

import pytest
from benchmark_files import dump

from jaxmem.data.benchmarks import Video
from jaxmem.data.world.files import held_out
from jaxmem.experiments.evaluate import __main__ as evaluate
from jaxmem.experiments.evaluate import benchmark, benchmark_cells, benchmark_watch

MINE = """
from jaxmem.data.benchmarks import Benchmark, Item
from jaxmem.data.benchmarks.reading import choices, right_text, seconds, words


def read(reading):
    for where, record in reading.records("mine.json"):
        with reading.noting(where):
            options = choices(record, "choices")
            reading.add(Item(
                id=words(record, "id"), video=reading.video(words(record, "clip")),
                question=words(record, "ask"), options=options,
                right=right_text(words(record, "solution"), options),
                asked_at=seconds(record, "second"), kind=words(record, "kind"),
            ))


BENCHMARK = Benchmark("mine", read, files=("mine.json",), holds="records of my own")
"""
MEMORY = "--memory", "recent", "--budget", "64KiB"
EVEN, ODD = "even [move]", "odd [/move]"
"""Kinds that are no markup."""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Two short videos with four questions each, in a layout of one's own."""
    root = tmp_path_factory.mktemp("mine")
    (root / "mine.py").write_text(MINE)
    records = []
    for seed in range(2):
        path, drawn = held_out(seed, 4, root / "copy", count=4, scale=1, fps=2)
        for i, one in enumerate(drawn):
            others = [w for w in ("circle", "beep", "red", "left") if w != one.answer][:3]
            records.append({"id": f"{seed}-{i}", "clip": path.name, "second": int(one.time),
                            "ask": one.text, "choices": [one.answer, *others],
                            "solution": one.answer, "kind": (EVEN, ODD)[i % 2]})  # fmt: skip
    dump(root / "copy" / "mine.json", records)
    return root


def words_of(mine, out, *more, copy=None):
    """Return the command line of a run."""
    where = "--name", mine / "mine.py", "--data", copy or mine / "copy", "--out", out
    return list(map(str, ("benchmark", *where, *MEMORY, "--prompt", "question", *more)))


def run(mine, out, *more, copy=None):
    """Return what a run reports of its memory; all questions are told of."""
    assert evaluate.main(words_of(mine, out, *more, copy=copy)) == 0
    document = json.loads((out / "results.json").read_text())
    (found,) = document["memories"]
    assert (
        found["replies"] + sum(one["questions"] for one in found["lost"]) == document["questions"]
    )
    return found


def stored(out):
    """Return the ids of all replies that lie in a folder."""
    cells = map(benchmark_cells.load, benchmark_cells.files(out))
    return sorted(one["id"] for cell in cells for one in cell["replies"])


@pytest.fixture
def asked(monkeypatch):
    """The ids of what is asked."""
    found, watch = [], benchmark_watch.watch

    def noted(setup, video, items, *more):
        found.extend(item.id for item in items)
        return watch(setup, video, items, *more)

    monkeypatch.setattr(benchmark, "watch", noted)
    return found


def test_parts_add_up_in_one_folder(mine, tmp_path, asked):
    """A part keeps the replies of another part, and the whole asks for neither again."""
    assert run(mine, tmp_path, "--only", EVEN)["replies"] == 4
    even = stored(tmp_path)
    assert run(mine, tmp_path, "--only", ODD)["replies"] == 4
    assert len(stored(tmp_path)) == 8 and set(even) < set(stored(tmp_path))
    asked.clear()
    assert run(mine, tmp_path)["replies"] == 8 and asked == []
    assert EVEN in (tmp_path / "tables.txt").read_text()
    assert ODD in (tmp_path / "tables.txt").read_text()


def test_a_part_is_no_whole(mine, tmp_path, asked):
    """What was not asked is listed; only that is asked by the next run."""
    run(mine, tmp_path / "part", "--only", EVEN)
    (rest,) = {
        one["reason"] for one in run(mine, tmp_path / "all", "--merge", tmp_path / "part")["lost"]
    }
    assert rest == "it has not been asked yet"
    asked.clear()
    assert run(mine, tmp_path / "part")["replies"] == 8
    assert len(asked) == 4


def test_a_merge_unites_the_replies_about_a_video(mine, tmp_path):
    for part, kind in (("a", EVEN), ("b", ODD)):
        run(mine, tmp_path / part, "--only", kind)
    parts = "--merge", tmp_path / "a", tmp_path / "b"
    assert run(mine, tmp_path / "all", *parts)["replies"] == 8
    (tmp_path / "a" / "cells" / "recent" / ".half.json.1.json").write_text("{")  # of a killed run
    assert run(mine, tmp_path / "all", *parts)["replies"] == 8


@pytest.mark.parametrize("more", [(), ("--budget", "32KiB")], ids=["as before", "other settings"])
def test_videos_that_are_gone_cost_no_replies(mine, tmp_path, more):
    """A disk that is not mounted, with questions open: what was stored stays."""
    out, bare = tmp_path / "out", tmp_path / "bare"
    run(mine, out, "--only", EVEN)
    before = stored(out)
    bare.mkdir()
    shutil.copy(mine / "copy" / "mine.json", bare)
    found = run(mine, out, *more, copy=bare)
    assert found["replies"] == (0 if more else 4)
    assert all(one["reason"].startswith("there is no file") for one in found["lost"])
    assert stored(out) == before


def test_replies_to_other_words_do_not_count(mine, tmp_path, monkeypatch):
    """Ctrl-C at the second of two videos, in a run with another prompt."""
    watch = benchmark_watch.watch
    assert run(mine, tmp_path)["replies"] == 8

    def interrupted(setup, video, *more):
        setup.stop.wanted = "1" in video.name
        return watch(setup, video, *more)

    monkeypatch.setattr(benchmark, "asked", lambda item, template: f"now {item.question}")
    monkeypatch.setattr(benchmark, "watch", interrupted)
    with pytest.raises(SystemExit):
        run(mine, tmp_path)
    (found,) = json.loads((tmp_path / "results.json").read_text())["memories"]
    assert (found["videos"], found["replies"]) == (1, 4)
    assert [one["reason"] for one in found["lost"]] == ["it has not been asked yet"]


def test_replies_of_other_settings_are_set_aside(mine, tmp_path):
    run(mine, tmp_path)
    old = {path: path.read_text() for path in benchmark_cells.files(tmp_path)}
    assert run(mine, tmp_path, "--budget", "32KiB")["replies"] == 8
    for path, text in old.items():
        (aside,) = path.parent.glob(f"{path.name}.*")
        assert aside.read_text() == text != path.read_text()


def test_a_long_name_in_any_script_is_a_file(tmp_path):
    video = Video("映" * 120, None)
    path = benchmark_cells.path_of(tmp_path, "recent", video)
    cell = {"fingerprint": "", "replies": [], "lost": [], "seconds": 1.0}
    assert benchmark_cells.write(tmp_path, "recent", video, cell)
    assert len(path.name.encode()) < 200 and benchmark_cells.load(path)["video"] == video.id


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "jaxmem-benchmark-cell", "version": 2}'])
def test_a_damaged_cell_is_named(mine, tmp_path, text, capsys):
    run(mine, tmp_path, "--only", EVEN)
    path = benchmark_cells.files(tmp_path)[0]
    path.write_text(text)
    assert evaluate.main(words_of(mine, tmp_path)) == 2
    assert path.name in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused_first(mine, tmp_path, asked, capsys):
    (tmp_path / "out").write_text("")
    assert evaluate.main(words_of(mine, tmp_path / "out")) == 2 and asked == []
    assert "--out" in capsys.readouterr().err
