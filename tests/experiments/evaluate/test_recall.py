"""The comparison of memories: streams and questions, cells, intervals, and the command."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxmem.data.world.synthetic import frames, split_seed, world
from jaxmem.experiments.evaluate import __main__ as evaluate
from jaxmem.experiments.evaluate import recall_cells
from jaxmem.experiments.evaluate.recall_config import RecallConfig
from jaxmem.experiments.evaluate.recall_streams import streams, streams_of
from jaxmem.memory.by_name import Budget, contestants
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec
from jaxmem.report import recall as report

SMALL = tiny.TinyConfig(
    width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
)
SIZES = {"count": 2, "seconds": 8, "moments": 2, "questions": 6, "chunk_seconds": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    tiny.save(path, tiny.init(SMALL, jax.random.key(0)), SMALL)
    return path


@pytest.fixture(scope="module")
def made(weights):
    return streams(embedded(weights), **SIZES, difficulty="standard")


def test_streams_are_cut_at_the_questions(made):
    assert made.inputs.frames.shape == (2, 2, 2, 2, 48, 48, 3)  # M, B, K, C
    assert made.inputs.logmel.shape == (2, 2, 2, 2, 100, 24)
    assert made.asked.answer.shape == made.asked.age.shape == (2, 2, 3)
    evidence = made.asked.age[made.asked.age >= 0]
    assert evidence.size and evidence.max() <= 8
    words = made.asked.ids[made.asked.ids >= 0]
    assert words.max() < len(tiny.WORDS)
    ends = tiny.WORDS.index(tiny.ASK)
    assert np.all((made.asked.ids == ends).sum(-1) == 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"seconds": 9}, "cannot be cut"), ({"questions": 7}, "do not spread evenly")],
)
def test_streams_say_what_does_not_fit(weights, wrong, message):
    with pytest.raises(ValueError, match=message):
        streams(embedded(weights), **{**SIZES, **wrong}, difficulty="standard")


def test_streams_of_a_command_are_of_its_split(weights):
    """Options are chosen on other streams than results are reported on."""
    sizes = {"streams": 1, "questions": 2, "moments": 1, "chunk_seconds": 2}
    made = {}
    for split in ("test", "validation"):
        config = RecallConfig(**sizes, split=split)
        made[split] = streams_of(config, embedded(weights), 4).inputs.frames
        seed = split_seed(split, 0)
        np.testing.assert_array_equal(made[split].reshape(-1, 48, 48, 3), frames(world(seed, 4)))
    assert not np.array_equal(*made.values())


def test_command_measures_resumes_and_writes(weights, tmp_path, capsys):
    out = tmp_path / "out"
    argv = f"recall --memories full,recent,rekv --budgets 1KiB 16KiB --seconds 8 --out {out} "
    argv += f"--weights {weights} --streams 2 --questions 6 --moments 2 --timed 16KiB "
    argv += "--chunk-seconds 2"  # ReKV holds a chunk at least
    assert evaluate.main(argv.split()) == 0
    found = {p.name: p for p in (out / "cells").iterdir()}
    assert sorted(found) == [
        "full_all_8s.json",
        "recent_16KiB_8s.json",
        "recent_1KiB_8s.json",
        "rekv_16KiB_8s.json",
        "rekv_1KiB_8s.json",
    ]
    assert "rekv_1KiB_8s: 1024 bytes hold no memory" in capsys.readouterr().out
    document = json.loads((out / "results.json").read_text())
    cells = {(c["memory"], c["budget"]): c for c in document["cells"]}
    assert len(cells) == 4 and cells["full", "all"]["all"]["asked"] == 12
    assert cells["rekv", "16KiB"]["bank_nbytes"] > 0 == cells["recent", "16KiB"]["bank_nbytes"]
    assert cells["recent", "16KiB"]["nbytes"] <= 16384
    assert cells["full", "all"]["chunk_ms"] > 0 and cells["recent", "1KiB"]["chunk_ms"] is None
    assert sum(v["asked"] for v in cells["full", "all"]["by_age"].values() if v) == 12
    for name in ("tables.txt", "budgets.png", "ages.png"):
        assert (out / name).stat().st_size > 500
    # A second run measures only what is gone or was made otherwise.
    before = {name: p.stat().st_mtime_ns for name, p in found.items()}
    found["recent_1KiB_8s.json"].unlink()
    assert evaluate.main(argv.split()) == 0
    again = {p.name: p.stat().st_mtime_ns for p in (out / "cells").iterdir()}
    changed = {name for name in before if again[name] != before[name]}
    assert changed == {"recent_1KiB_8s.json"}
    assert json.loads((out / "results.json").read_text())["cells"] == document["cells"]
    found["recent_1KiB_8s.json"].unlink()
    assert evaluate.main([*argv.split(), "--measured-only"]) == 0
    cells = json.loads((out / "results.json").read_text())["cells"]
    assert [c["budget"] for c in cells] == ["all", "16KiB", "16KiB"]


def command(weights, out, words):
    """Run `recall` on two short streams, asked once; return its status."""
    sizes = "--streams 2 --questions 2 --moments 1 --chunk-seconds 2"
    return evaluate.main(f"recall --weights {weights} --out {out} {sizes} {words}".split())


def cell(out, stem):
    return json.loads((out / "cells" / f"{stem}.json").read_text())


def told(found):
    """Return what two measurements of one thing share."""
    return {key: value for key, value in found.items() if key not in ("commit", "took")}


def test_cells_do_not_depend_on_the_other_lengths_of_a_run(weights, tmp_path, capsys, monkeypatch):
    """A bank and `full` hold the longest stream of a run, and a file may be of another run."""
    both, fresh = tmp_path / "both", tmp_path / "fresh"
    words = "--memories rekv --rekv.block 4 --budgets 16KiB --timed= --seconds"
    assert command(weights, both, f"{words} 4 65536") == 2  # no length fits the bank of the longest
    assert "rekv_16KiB_4s: 16384 bytes hold no memory" in capsys.readouterr().out
    assert "16384 bytes hold no memory" in cell(both, "rekv_16KiB_4s")["refused"]
    for out in (both, fresh):
        assert command(weights, out, f"{words} 4") == 0
    one = cell(both, "rekv_16KiB_4s")
    assert "refused" not in one and told(one) == told(cell(fresh, "rekv_16KiB_4s"))
    assert command(weights, both, f"{words} 4 65536") == 2
    assert cell(both, "rekv_16KiB_4s") == one  # answers outlive a refusal
    full = "--memories full --timed= --seconds"
    for out, lengths in ((both, "4 8"), (both, "4"), (fresh, "4")):
        assert command(weights, out, f"{full} {lengths}") == 0
    assert told(cell(both, "full_all_4s")) == told(cell(fresh, "full_all_4s"))
    # What is of this run's sizes is not measured again.
    monkeypatch.setattr(recall_cells, "run_cell", None)
    assert command(weights, both, f"{full} 4") == command(weights, both, f"{words} 4") == 0
    capsys.readouterr()
    assert command(weights, both, f"{full} 4 8 --measured-only") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "left out, because" in shown and ": full_all_4s. Without" in shown


def test_cells_of_other_settings_are_set_aside_and_found_again(weights, tmp_path, monkeypatch):
    words = "--memories recent --budgets 1KiB --seconds 4 --timed= --recent.sinks"
    one = tmp_path / "cells" / "recent_1KiB_4s.json"
    assert command(weights, tmp_path, f"{words} 1") == 0
    first = one.read_bytes()
    assert command(weights, tmp_path, f"{words} 2") == 0
    (aside,) = one.parent.glob(f"{one.name}.*")
    assert aside.read_bytes() == first != one.read_bytes()
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["options"] == {"recent": {"sinks": "2"}} and found["config"]["seconds"] == "(4,)"
    monkeypatch.setattr(recall_cells, "run_cell", None)  # nothing is measured again
    assert command(weights, tmp_path, f"{words} 1") == command(weights, tmp_path, f"{words} 2") == 0


def test_times_are_added_to_answers_and_only_where_they_are_wanted(weights, tmp_path, monkeypatch):
    words = "--memories full,recent --budgets 1KiB --seconds 4 --timed"
    assert command(weights, tmp_path, f"{words}=") == 0
    stems = ("full_all_4s", "recent_1KiB_4s")
    before = [cell(tmp_path, stem) for stem in stems]
    assert not any("times" in one for one in before)
    monkeypatch.setattr(recall_cells, "run_cell", None)  # nothing is asked again
    assert command(weights, tmp_path, f"{words} 1KiB --measured-only") == 0
    assert [cell(tmp_path, stem) for stem in stems] == before
    assert command(weights, tmp_path, f"{words} 1KiB") == 0
    for stem, one in zip(stems, before, strict=True):
        timed = cell(tmp_path, stem)
        times = timed.pop("times")
        assert timed == one and times["chunk"] > 0 < times["first_token"] and "commit" in times
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert all(one["chunk_ms"] > 0 for one in cells)


def test_cells_of_other_settings_are_named(weights, tmp_path, capsys):
    words = "--memories recent --budgets 1KiB 2KiB --seconds 4 --timed="
    assert command(weights, tmp_path, words) == 0
    capsys.readouterr()
    others = f"{words} --split validation --measured-only"
    assert command(weights, tmp_path, others) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "of this command: recent_1KiB_4s, recent_2KiB_4s. Without --measured-only" in shown
    (tmp_path / "cells" / "recent_1KiB_4s.json").unlink()  # what is not there is not named
    assert command(weights, tmp_path, f"{words} --measured-only") == 0
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ['{"fingerprint": "0", "ri', "[]", "{}"])
def test_a_file_that_is_no_cell_is_named(weights, tmp_path, capsys, text):
    path = tmp_path / "cells" / "recent_1KiB_4s.json"
    path.parent.mkdir()
    path.write_text(text)
    assert command(weights, tmp_path, "--memories recent --budgets 1KiB --seconds 4") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{path.name} is no cell of this command; remove it, or give another --out" in shown
    assert path.read_text() == text


@pytest.mark.parametrize("below", ["", "below/it"])
def test_out_is_a_folder_before_anything_is_measured(weights, tmp_path, capsys, monkeypatch, below):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(recall_cells, "run_cell", None)
    out = tmp_path / "file" / below
    assert command(weights, out, "--memories recent --budgets 1KiB --seconds 4") == 2
    assert f"--out {out} is no folder to write to" in capsys.readouterr().err.replace("\n", "")
    assert (tmp_path / "file").read_text() == "mine"


def test_cells_know_their_settings(weights):
    """An option that is set makes another cell."""
    model, plain = embedded(weights), RecallConfig()

    def mark(**options):
        config = dataclasses.replace(plain, options={"ma_lmm": options})
        return recall_cells.fingerprint(config, model, "ma_lmm")

    assert mark() == recall_cells.fingerprint(plain, model, "ma_lmm")
    assert mark() != mark(tokens=8)
    other = dataclasses.replace(plain, split="validation")
    assert mark() != recall_cells.fingerprint(other, model, "ma_lmm")


def test_audio_takes_half_of_the_slots():
    """Where a model hears."""
    model = embedded()
    spec = model_spec(model, 1)
    silent = dataclasses.replace(spec, audio_tokens=0)
    for name in ("ma_lmm", "moviechat", "flash_vstream", "flash_vstream_qwen"):

        def slots(spec, many, name=name):
            chosen = contestants((name,), {}, Budget(many, None), spec, None)
            return jax.tree.map(lambda x: x.shape, chosen[0].memory.init(spec).slots)

        both = slots(spec, 256)
        assert both[1].x == (32, 4, 128)  # a second of audio is four rows
        assert both[0] == slots(silent, 128)


def test_bad_arguments_are_status_2(capsys):
    assert evaluate.main(["recall", "--budgets", "64"]) == 2
    assert "bytes over all layers" in capsys.readouterr().err
    assert evaluate.main(["recall", "--memories", "elephant"]) == 2
    assert "elephant" in capsys.readouterr().err


def outcome(right, name="a", budget="1KiB", **more):
    right = np.asarray(right, bool)
    fields = {"type": np.full(right.shape, "count"), "age": np.full(right.shape, 3.0)}
    return report.Outcome(name, budget, 64, right, **{**fields, **more}, nbytes=1024, bank_nbytes=0)


def test_intervals_draw_whole_streams():
    # Two streams answered all right, two all wrong: 400 questions, but only 4 independent ones.
    right = np.zeros((1, 4, 100), bool)
    right[:, :2] = True
    score = report.share(right)
    assert score.share == 0.5 and score.asked == 400
    assert score.low == 0.0 and score.high == 1.0
    even = np.zeros((1, 400, 1), bool)
    even[:, ::2] = True
    assert report.share(even).high - report.share(even).low < 0.12
    assert report.share(right, np.zeros(right.shape, bool)) is None


def test_paired_difference_and_ages():
    rng = np.random.default_rng(0)
    base = rng.random((2, 20, 10)) < 0.5
    better = base | (rng.random(base.shape) < 0.2)
    gain = report.difference(outcome(better), outcome(base))
    assert gain.low > 0 and gain.share == pytest.approx(better.mean() - base.mean())
    age = np.where(np.arange(10) < 5, -1.0, 40.0) * np.ones(base.shape)
    ages = report.by_age(outcome(base, age=age))
    assert ages["never"].asked == ages["32 to 128 s"].asked == 200
    assert ages["0 to 8 s"] is None
