"""`experiments/claims/first_token.py` on a small model: what its streams hold, and its record."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from jaxmem.memory.base import kv_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "first_token", ROOT / "experiments" / "claims" / "first_token.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(golden, tmp_path_factory):
    source = golden / "hf" / "llava_onevision" / "config.json"
    if not source.exists():
        pytest.skip(f"no {source}")
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(source, folder / "config.json")
    return folder


def test_streams_hold_what_the_record_says(script, model, tmp_path):
    names, frames, budget = ("hermes", "rekv", "full"), 40, 64
    given = f"--model {model} --memories {','.join(names)} --frames {frames} --budget {budget}"
    out = tmp_path / "record.json"
    arguments = [*given.split(), "--rounds", "2", "--out", str(out)]
    record = script.main(arguments)
    rows = record["rows"]
    each = rows["full"]["tokens"] // frames
    assert json.loads(out.read_text())["rows"] == rows
    assert rows["rekv"]["tokens"] == rows["full"]["tokens"] == frames * each
    assert budget <= rows["hermes"]["tokens"] < budget + 4 * each  # its slots are full
    assert rows["hermes"]["host"] == 0 < rows["rekv"]["host"]
    assert rows["hermes"]["ratio"] == 1.0 and all(row["seconds"] > 0 for row in rows.values())


def test_what_is_written_is_read(script, model):
    """Slots, bank and counts are those of a stream that had come: a full cache, all in order."""
    options = script.parsed(["--model", str(model), "--frames", "8", "--budget", "64"])
    for name in script.EVERYTHING:
        found = script.opened(options, name)
        bound = script.bind(found.program, script.drawn(found.model.params))
        carry, tokens = script.seen(found, bound, name, options.frames)
        held = kv_of((carry.state if carry.bank is None else carry.bank).slots)
        last = int(held.index.max())
        assert int(carry.clock) == tokens and last == tokens - 1
        if carry.bank is not None:
            sinks = found.program.memory.sinks
            assert set(carry.bank.count.tolist()) == {tokens - sinks}
            assert not carry.bank.dropped.any()
