"""A live stream is saved by one process, and another one goes on with it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import small

from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder.program import init_carry, make_program
from jaxmem.loop import branch, stream
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.baselines import Recent
from jaxmem.saving import save

CFG = small.config()
ROWS = small.stream_rows(CFG, 4, 8)
HERE = Path(__file__).resolve().parent
PATHS = os.pathsep.join([str(HERE), str(HERE / "support")])


def program_of():
    memory = WithBank(Recent(8), 16, block=4, topk=2)
    return make_program(CFG, memory, small.small_spec(CFG, 8))


def go_on(carry, program):
    """Return a question's numbers after the second half of the stream."""
    weights = small.params(CFG)
    rest = jax.tree.map(lambda x: x[2:], ROWS)
    carry = stream(weights, carry, rest, program=program)
    question = question_rows(weights, [3, 1, 4], program=program)
    return np.asarray(ask(weights, carry, question, program=program).first)


def test_a_stream_goes_on_in_another_process(tmp_path):
    program, weights = program_of(), small.params(CFG)
    half = jax.tree.map(lambda x: x[:2], ROWS)
    carry = stream(weights, init_carry(program), half, program=program)
    save(tmp_path / "live", carry)
    program_text = (
        "import sys, numpy as np, test_saving as t\n"
        "from jaxmem.saving import restore\n"
        "program = t.program_of()\n"
        "carry = restore(sys.argv[1], program)\n"
        "np.save(sys.argv[2], t.go_on(carry, program))\n"
    )
    command = [sys.executable, "-c", program_text, str(tmp_path / "live"), str(tmp_path / "out")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": PATHS}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    fresh = go_on(init_carry(program), program)
    here = go_on(branch(carry), program)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), here)
    assert not np.allclose(fresh, here)
