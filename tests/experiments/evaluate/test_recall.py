"""The comparison of memories: streams and questions, cells, intervals, and the command."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxmem.data.world.synthetic import frames, split_seed, world
from jaxmem.experiments.evaluate import __main__ as evaluate
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
        config = evaluate.RecallConfig(**sizes, split=split)
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


def test_cells_know_their_settings(weights):
    """An option that is set makes another cell."""
    model, plain = embedded(weights), evaluate.RecallConfig()

    def mark(**options):
        config = dataclasses.replace(plain, options={"ma_lmm": options})
        return evaluate.fingerprint(config, model, "ma_lmm")

    assert mark() == evaluate.fingerprint(plain, model, "ma_lmm")
    assert mark() != mark(tokens=8)
    other = dataclasses.replace(plain, split="validation")
    assert mark() != evaluate.fingerprint(other, model, "ma_lmm")


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
