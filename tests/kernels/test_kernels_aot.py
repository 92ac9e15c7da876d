"""Kernels compiled ahead of time for GPUs that are not there: registers, spills, shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernels_aot import NEEDS, TARGETS, missing

pytestmark = pytest.mark.aot
SCRIPT = Path(__file__).with_name("kernels_aot.py")


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_no_kernel_spills_or_exceeds_shared_memory(target):
    """In a process of its own per target: this one has settled on the CPU.

    JAXMEM_AOT_PYTHON may name the interpreter of an environment that holds the packages, and
    JAXMEM_AOT_OUT a folder that the records are written to (experiments/kernels_aot).
    """
    python = os.environ.get("JAXMEM_AOT_PYTHON")
    if python is None and missing():
        pytest.skip(f"needs {NEEDS}, or JAXMEM_AOT_PYTHON=an interpreter that has them.")
    command = [python or sys.executable, str(SCRIPT), target]
    run = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert run.returncode == 0, run.stderr[-2000:]
    if "JAXMEM_AOT_OUT" in os.environ:
        Path(os.environ["JAXMEM_AOT_OUT"], f"{target}.jsonl").write_text(run.stdout)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    kernels = {r.get("kernel", r["case"]).split("__")[0] for r in found}
    scans = {f"{name}{part}" for name in ("ssd", "delta") for part in ("", "_back", "_read")}
    others = {"threshold", "partition", "delta_inverse"} | scans
    assert kernels == {"attend", "attend_mass", "joint_lse", "lse", "mass"} | others
    bad = [
        r
        for r in found
        if "error" in r or r["spill_stores"] or r["spill_loads"] or r["shared"] > r["shared_limit"]
    ]
    assert not bad, json.dumps(bad, indent=1)
