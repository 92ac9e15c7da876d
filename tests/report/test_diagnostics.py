"""What memories keep against the oracle, planted evidence, kinds and ages; and `watch`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem.decoder.program import init_carry, make_program
from jaxmem.decoder.step import chunk_step
from jaxmem.experiments.evaluate import __main__ as evaluate
from jaxmem.kv import AUDIO, VISION
from jaxmem.loop import stream
from jaxmem.memory.baselines import Full
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.memory.transforms.recorded import Recorded
from jaxmem.models.tiny import tiny
from jaxmem.report import diagnostics as report

CFG = small.config()
SPEC = small.small_spec(CFG, 8)
WEIGHTS = small.params(CFG)
ROWS = small.stream_rows(CFG, 4, 8, lengths=[8, 8, 5, 8])

WHOLE = report.Whole(
    index=np.array([0, 1, 2, 4, 5, 7]),
    time=np.array([0.0, 0.5, 1.0, 2.0, 2.5, 3.5]),
    modality=np.array([VISION, AUDIO, VISION, VISION, AUDIO, VISION], np.int8),
)


def test_against_the_oracle():
    kept = report.held(WHOLE, np.array([[0], [5], [6]]))  # 6 is a merged token's own number
    np.testing.assert_array_equal(kept, [1, 0, 0, 0, 1, 0])
    mass = np.array([0.4, 0.05, 0.3, 0.05, 0.1, 0.1])
    overlap, covered, chance = report.against_oracle(mass, kept)
    assert overlap == 0.5  # of {0, 2}, one is kept
    np.testing.assert_allclose([covered, chance], [0.5, 1 / 3])
    assert report.against_oracle(mass, np.zeros(6, bool)) == (0.0, 0.0, 0.0)
    assert report.against_oracle(mass, np.ones(6, bool))[0] == 1.0


def test_evidence_kinds_and_ages():
    kept = np.array([0, 0, 1, 0, 1, 0], bool)
    assert report.holds_evidence(WHOLE, kept, 2.0)
    assert not report.holds_evidence(WHOLE, kept, 2.5)  # its second began at 1.5
    assert report.count_kinds(WHOLE, kept)[[VISION, AUDIO]].tolist() == [1, 1]
    ages = report.share_ages(WHOLE, kept, 4.0, classes=4)
    np.testing.assert_allclose(ages, [0, 0.5, 0, 0.5])  # 1.5 s and 3 s old
    values = report.by_age(np.array([1.0, 0.0, 1.0]), np.array([3.0, 4.0, 40.0]))
    assert values == (0.5, None, 1.0, None)


def test_watched_memory_streams_as_it_does_and_tells_the_mass():
    plain, watched = make_program(CFG, Full(40), SPEC), make_program(CFG, Recorded(Full(40)), SPEC)
    one = stream(WEIGHTS, init_carry(plain), ROWS, program=plain)
    two = stream(WEIGHTS, init_carry(watched), ROWS, program=watched)
    for x, y in zip(
        jax.tree.leaves(one.state.slots), jax.tree.leaves(two.state.slots), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    chunk = jax.tree.map(lambda x: x[0], ROWS)
    mass = chunk_step(WEIGHTS, watched, two, chunk)[0].state.aux.received[:, 0]  # [L, S]
    held = np.asarray(two.state.slots.kv.modality).reshape(CFG.layers, -1) != 0
    mass, rows = np.asarray(mass), int(jnp.sum(chunk.modality != 0))
    assert np.all(mass[~held] == 0) and np.all(mass[held] > 0)
    assert np.all(mass.sum(1) < rows) and np.all(mass.sum(1) > 0.2 * rows)


@pytest.mark.parametrize("memory", [Hermes(8), OmniMem(8)])
def test_watch_refuses_what_it_cannot_watch(memory):
    with pytest.raises(ValueError, match="record Full"):
        Recorded(memory)


def test_command(tmp_path, capsys):
    config = tiny.TinyConfig(
        width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
    )
    weights, out = tmp_path / "small.safetensors", tmp_path / "out"
    tiny.save(weights, tiny.init(config, jax.random.key(0)), config)
    argv = f"diagnose --memories recent,snapkv --budget 16KiB --seconds 16 --streams 1 --out {out} "
    argv += f"--weights {weights} --questions 4 --moments 1"
    assert evaluate.main(argv.split()) == 0
    recent_, snap = json.loads((out / "diagnosis.json").read_text())
    assert (recent_["memory"], snap["memory"]) == ("recent", "snapkv")
    for one in (recent_, snap):
        assert 0 < one["overlap"] <= 1 and 0 < one["covered"] < 1 and 0 < one["chance"] < 1
        assert np.isclose(sum(one["ages"]), 1)
    assert recent_["ages"][0] > snap["ages"][0]
    assert (out / "diagnosis.png").stat().st_size > 10_000
    assert "what is kept" in capsys.readouterr().out.lower()
    assert evaluate.main(["diagnose", "--memories", "moviechat", "--out", str(out)]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_diagnosis_refuses_before_it_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxmem.experiments.evaluate.diagnose.oracles", None)
    (tmp_path / "file").write_text("mine")
    base = f"diagnose --memories recent --seconds 16 --streams 1 --questions 4 --out {tmp_path} "
    for words, message in (
        ("--memories full", "full holds everything"),
        ("--budget 96", "--budget is bytes over all layers"),
        ("--budget 1KiB", "recent in --budget 1KiB: 1024 bytes hold no memory"),
        ("--streams 0", "--streams must be at least 1"),
        ("--moments 0", "--moments must be at least 1"),
        ("--chunk-seconds 0", "--chunk-seconds must be at least 1"),
        (f"--out {tmp_path / 'file'}", "is no folder to write to"),
    ):
        assert evaluate.main([*base.split(), *words.split()]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
