"""States before chunks in the host's memory, as XLA compiles them for a GPU that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from offload_aot import CHUNK, NEEDS, ROWS, SEGMENTS, STREAMS, missing

pytestmark = pytest.mark.aot
SCRIPT = Path(__file__).with_name("offload_aot.py")
STATES = 8 * 64 * 64 * 4  # bytes of those of all layers


@pytest.fixture(scope="module")
def bytes_of():
    """By scheme, offload, rows and streams: (device, host)."""
    python = os.environ.get("JAXMEM_AOT_PYTHON")
    if python is None and missing():
        pytest.skip(f"needs {NEEDS}, or JAXMEM_AOT_PYTHON=an interpreter that has them.")
    command = [python or sys.executable, str(SCRIPT), "sm_90"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert run.returncode == 0, run.stderr[-2000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    keys = ("scheme", "offload", "rows", "streams")
    return {tuple(r[k] for k in keys): (r["device"], r["host"]) for r in found}


@pytest.mark.parametrize("streams", [1, STREAMS])
def test_all_states_are_on_the_host_and_none_on_the_device(bytes_of, streams):
    """Of D those before every chunk; of E those before segments, and before one's chunks."""
    for rows in ROWS:
        count = rows // CHUNK
        kept = {"D": count, "E": SEGMENTS + count // SEGMENTS}
        for scheme, many in kept.items():
            device, host = bytes_of[scheme, True, rows, streams]
            before, nothing = bytes_of[scheme, False, rows, streams]
            assert nothing == 0 and host == streams * many * STATES
            assert before - device >= 0.9 * host


def test_the_device_keeps_one_stream(bytes_of):
    """D with its states on the host grows by d e a token."""
    few, many = (bytes_of["D", True, rows, 1][0] for rows in ROWS)
    assert many - few == pytest.approx(256 * (ROWS[1] - ROWS[0]), rel=0.02)
