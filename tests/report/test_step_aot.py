"""The laws of a step, by the text that XLA compiles for GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rebuilt import REBUILT
from step_aot import CASES, CHUNK, FEW, MANY, NEEDS, missing

pytestmark = pytest.mark.aot
SCRIPT = Path(__file__).with_name("step_aot.py")
NO_LAYERS = REBUILT | {"flash_vstream", "flash_vstream_qwen"}
"""They hold features: no layer runs while the stream is watched."""

STACK = {"hermes", "flexmem"}
"""They see a chunk of all layers at once, which is held until then: L T, not L S."""


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def records(request):
    """Every memory's, from one process: this one has settled on the CPU.

    JAXMEM_AOT_PYTHON and JAXMEM_AOT_OUT are those of tests/kernels/test_kernels_aot.py.
    """
    python = os.environ.get("JAXMEM_AOT_PYTHON")
    if python is None and missing():
        pytest.skip(f"needs {NEEDS}, or JAXMEM_AOT_PYTHON=an interpreter that has them.")
    command = [python or sys.executable, str(SCRIPT), *request.param]
    run = subprocess.run(command, capture_output=True, text=True, timeout=7200)
    assert run.returncode == 0, run.stderr[-2000:]
    if "JAXMEM_AOT_OUT" in os.environ:
        name = f"step_{'_'.join(request.param)}.jsonl"
        Path(os.environ["JAXMEM_AOT_OUT"], name).write_text(run.stdout)
    return [json.loads(line) for line in run.stdout.splitlines()]


def bad(records, wrong):
    return json.dumps([r for r in records if wrong(r)], indent=1)


def test_no_step_copies_the_slots_of_all_layers(records):
    kept = [r for r in records if r["memory"] not in REBUILT]
    assert bad(kept, lambda r: r["copies"] or r["rewritten"]) == "[]"


def test_no_array_of_rows_by_keys(records):
    pallas = [r for r in records if r["back end"] == "pallas"]
    assert bad(pallas, lambda r: r["large"]) == "[]"
    passed = [r for r in pallas if r["memory"] not in NO_LAYERS]
    assert bad(passed, lambda r: not {"attend", "attend_mass"} & set(r["kernels"])) == "[]"


def test_no_device_waits_for_another(records):
    assert bad(records, lambda r: r["collectives"]) == "[]"


def test_temporaries_are_those_of_one_layer(records):
    """Nine layers more need less than one array of their slots."""
    few, many = (
        {r["memory"]: r for r in records if (r["layers"], r["dtype"]) == (layers, "bfloat16")}
        for layers in (FEW, MANY)
    )
    if not few or not many:
        pytest.skip("compiled with one number of layers here.")
    for name, r in many.items():
        grown = r["temporaries"] - few[name]["temporaries"]
        room = 2 * (r["pool"] - few[name]["pool"]) + 2**16
        shown = (MANY - FEW) * CHUNK * 2 * 32 * 2  # bytes of keys and values of a chunk
        assert grown < room + (shown if name in STACK else 0), name
