"""The benchmark and calibration commands: what is exact in them, not the times."""

import dataclasses
import json

import numpy as np
import pytest
from embedded_states import SMALL, STATES, write

from jaxmem.experiments import calibrate
from jaxmem.experiments.benchmark import __main__ as benchmark
from jaxmem.experiments.benchmark.constancy import measure
from jaxmem.memory.by_name import Budget, contestants
from jaxmem.memory.omnimem.budgets import load_table
from jaxmem.memory.options import NAMES
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec

SPEC = model_spec(embedded(), 2)


def half_an_hour(name, options=None):
    """Return the proof for a memory of 32 slots a layer, chunks of two seconds."""
    presets = embedded().presets
    (chosen,) = contestants((name,), options or {}, Budget(32, None), SPEC, 200, presets=presets)
    result = measure(embedded(), chosen, SPEC, hours=0.5, early_minute=1.0, pairs=2)
    assert result.memory == chosen.name and result.tokens == 1800 * 20
    assert result.recompilations == 0
    assert result.state_bytes[0] == result.state_bytes[1]
    assert result.state_bytes[0] == result.memory_bytes + result.host_bytes + 32  # counters
    return result


@pytest.mark.slow  # the command is run for minutes below
@pytest.mark.parametrize("name", ["omnimem", "uniform", "hermes"])
def test_half_an_hour_is_constant(name):
    """Bytes, shapes and programs of minute 30 are those of minute 1, probes or not."""
    result = half_an_hour(name)
    assert result.host_bytes == 0
    assert result.resident_growth < 0.05


@pytest.mark.slow
def test_half_an_hour_with_a_full_bank_is_constant():
    """A bank of 200 tokens a layer in host memory, which the first minute fills six times."""
    result = half_an_hour("recent", {"bank": {"capacity": 200}})
    entry = 2 * 2 * 32 * 4 + 3 * 4 + 4 + 1  # key and value, position, number, kind
    assert result.host_bytes == 4 * 200 * entry


def test_constancy_needs_a_longer_stream():
    (chosen,) = contestants(("recent",), {}, Budget(8, None), SPEC, None)
    with pytest.raises(ValueError, match="not longer than minute 10"):
        measure(embedded(), chosen, SPEC, hours=0.1)
    with pytest.raises(ValueError, match="no whole pieces"):
        measure(embedded(), chosen, dataclasses.replace(SPEC, chunk=30))


def test_session_command(capsys):
    """The second session compiles nothing, of memories and banks alike."""
    assert benchmark.main(["session", "--memory", "recent,rekv", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    for name in ("recent", "rekv"):
        first, second = record[name]
        assert first["compilations"] > 0 and second["compilations"] == 0
        assert second["seconds"] + second["first_chunk"] < first["seconds"] + first["first_chunk"]


def test_bytes_command(capsys):
    assert benchmark.main(["bytes", "--slots", "1024", "--stream", "8192", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    device, host = record["rekv"]
    per_slot = 2 * 4 * 128 * 2 + 3 * 4 + 5  # key and value in bfloat16, position, number, kind
    assert record["hermes"][0] == pytest.approx(28 * 1024 * per_slot, rel=1e-2)
    assert record["hermes"][1] == 0 and host == pytest.approx(28 * 8448 * per_slot, rel=1e-3)
    assert device < 2 * record["hermes"][0]
    assert set(NAMES) <= set(record)


def test_constancy_command(capsys):
    argv = "constancy --hours 0.05 --early-minute 1 --budget 16 --pairs 2 --json".split()
    assert benchmark.main(argv) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["memory"] == "omnimem" and printed["recompilations"] == 0


def test_constancy_command_of_a_memory_with_a_bank_of_its_own(capsys):
    argv = "constancy --memory rekv --capacity 64 --rekv.block 8 --bank.space device --hours 0.05 "
    argv += "--early-minute 1 --budget 32 --pairs 1 --json"
    assert benchmark.main(argv.split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["memory"] == "rekv" and printed["recompilations"] == 0
    assert printed["host_bytes"] == 0 and len(set(printed["state_bytes"])) == 1


def test_constancy_command_of_states(tmp_path, capsys):
    weights = write(tmp_path, tiny.sized("mamba2", "none", SMALL))
    argv = f"constancy --weights {weights} --hours 0.05 --early-minute 1 --pairs 1 --json"
    assert benchmark.main(argv.split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["memory_bytes"] == STATES and printed["recompilations"] == 0
    assert len(set(printed["state_bytes"])) == 1 and printed["state_bytes"][0] > STATES


def test_bad_arguments_are_status_2(capsys):
    assert benchmark.main(["constancy", "--memory", "nonsense"]) == 2
    message = capsys.readouterr().err
    assert "nonsense" in message and all(name in message for name in NAMES)
    assert benchmark.main(["constancy", "--memory", "recent,uniform"]) == 2
    assert "one memory" in capsys.readouterr().err


def test_calibrate_command(tmp_path, capsys):
    out = tmp_path / "made" / "table.json"
    argv = f"--streams 1 --seconds 24 --chunk-seconds 2 --average 24 --out {out}".split()
    assert calibrate.main(argv) == 0
    table = np.asarray(load_table(out))
    assert table.shape == (embedded().decoder.layers, 2)
    assert np.all(table > 0) and abs(table.sum(1).mean() - 24) < 4
    assert str(out) in capsys.readouterr().out.replace("\n", "")


def test_calibrate_refuses_what_does_not_open(tmp_path, capsys):
    assert calibrate.main(["--video", str(tmp_path / "nothing.mp4")]) == 2
    assert "nothing.mp4" in capsys.readouterr().err
