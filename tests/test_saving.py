"""A live stream is saved by one process, and another one goes on with it."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jax
import killing
import numpy as np
import pytest
import small

from jaxmem import saves
from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder.program import init_carry, make_program
from jaxmem.loop import branch, stream
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.baselines import Recent
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.saving import made_by, part_of, restore, save

CFG = small.config()
ROWS = small.stream_rows(CFG, 4, 8)
ONE, OTHER, LARGE = Mamba2(4, 6, 5), GatedDelta(2, key_dim=4), GatedDelta(2, key_dim=8)
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


@pytest.mark.slow  # as in experiments/stream/test_going_on.py
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


FIVE = replace(small.config(layers=5, axes=1), mixers=(ONE, ONE, None, ONE, OTHER))
SAID = "layers are {}, this one's are {} (from layer {} on): restore it"


@pytest.mark.parametrize(
    ("mixers", "there", "here", "at"),
    [
        ((ONE, None, ONE, ONE, OTHER), f"2 {ONE}", f"1 {ONE}", None),
        ((ONE, ONE, None, OTHER, ONE), f"1 {ONE}", f"1 {OTHER}", 4),
        ((ONE, ONE, None, ONE, LARGE), f"1 {OTHER}", f"1 {LARGE}", 5),
        ((ONE, ONE, None, ONE), f"1 {OTHER}", "none", 5),
    ],
    ids=["order", "swapped", "size", "fewer"],
)
def test_layers_in_another_order_or_of_other_sizes_are_refused_unread(
    tmp_path, mixers, there, here, at
):
    """By a save of today, and by one that counts its layers by name; as far as these can tell."""
    program = of_layers(FIVE)
    save(tmp_path / "now", init_carry(program), program=program)
    part = part_of(init_carry(program), made=as_before(program))
    saves.write(tmp_path / "before", {"stream": part})
    for folder in ("now", "before"):
        restore(tmp_path / folder, program)
        next((tmp_path / folder).glob("*/arrays.bin")).write_bytes(b"")
    other = of_layers(replace(FIVE, layers=len(mixers), mixers=mixers))
    said = SAID.format(there, here, at).replace(" (from layer None on)", "")
    with pytest.raises(ValueError, match=re.escape(said)):
        restore(tmp_path / "now", other)
    with pytest.raises(ValueError, match="layers are .* this one's are"):
        restore(tmp_path / "before", other)
    with pytest.raises(ValueError, match="is damaged"):
        restore(tmp_path / "now", program)


def of_layers(config):
    return make_program(config, Recent(8), small.small_spec(config, 8))


def as_before(program):
    """What a save says that was written before layers were named in order."""
    found = made_by(program)
    del found["runs"]
    return found | {"layers": "3 Mamba2, 1 attention, 1 GatedDelta"}


def saves_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_any_flipped_bit_is_refused_by_name_and_the_one_before_is_offered(tmp_path):
    program, live = program_of(), tmp_path / "live"
    half = jax.tree.map(lambda x: x[:2], ROWS)
    carry = stream(small.params(CFG), init_carry(program), half, program=program)
    save(live, carry)
    with pytest.raises(ValueError, match="replace=True"):
        save(live, carry)
    for _ in range(3):
        save(live, carry, replace=True)
    assert saves_of(live) == ["00000003", "00000004"]
    draw = np.random.default_rng(0)
    for file in ("made.json", "arrays.bin"):
        path = live / "00000004" / file
        whole = path.read_bytes()
        for _ in range(40):
            bad = bytearray(whole)
            bad[draw.integers(len(bad))] ^= 1 << draw.integers(8)
            path.write_bytes(bad)
            try:
                found = restore(live, program)
            except ValueError as error:
                assert "00000004" in str(error) and "restore" in str(error)
            else:
                assert file == "made.json"  # a blank between two words says nothing
                jax.tree.map(np.testing.assert_array_equal, found, carry)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"00000004 is damaged.*restore .*00000003"):
            restore(live, program)
        path.write_bytes(whole)
    restore(live / "00000003", program)


def changed(document, path, value):
    """Put a value, or nothing where it is None, where a path of keys leads in a document."""
    *parents, last = path
    for key in parents:
        document = document[key]
    if value is None:
        del document[last]
    else:
        document[last] = value


HEAD, CLOCK = ("parts", "stream"), ("arrays", "stream/carry.clock")
ENTRY = ["int32", [], 0, "0"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("parts",), None, "parts is not"),
        (("parts",), [], "parts is not"),
        (("arrays",), None, "arrays is not"),
        (("more",), 3, "more is not"),
        (HEAD, "x", "parts.stream is not"),
        ((*HEAD, "made"), None, "parts.stream is not"),
        ((*HEAD, "made"), [], "parts.stream is not"),
        ((*HEAD, "made", "runs"), ["1"], "parts.stream is not"),
        ((*HEAD, "made", "runs"), 3, "parts.stream is not"),
        ((*HEAD, "numbers"), [], "parts.stream is not"),
        (CLOCK, ENTRY[:3], "arrays.stream/carry.clock is not"),
        (CLOCK, {"dtype": "int32"}, "arrays.stream/carry.clock is not"),
        ((*CLOCK, 0), "nope", "arrays.stream/carry.clock is not"),
        ((*CLOCK, 0), "object", "arrays.stream/carry.clock is not"),
        ((*CLOCK, 1), [-1], "arrays.stream/carry.clock is not"),
        ((*CLOCK, 1), [1.0], "arrays.stream/carry.clock is not"),
        ((*CLOCK, 2), -5, "arrays.stream/carry.clock is not"),
        ((*CLOCK, 1), [10**12], "array stream/carry.clock is longer than the file"),
        ((*CLOCK, 2), 10**12, "array stream/carry.clock is longer than the file"),
        ((*CLOCK, 1), [1] * 99, "array stream/carry.clock: "),
    ],
)  # fmt: skip
def test_a_document_of_another_structure_is_damaged_whatever_its_checksum(
    tmp_path, path, value, said
):
    program, live = program_of(), tmp_path / "live"
    for _ in range(2):
        save(live, init_carry(program), program=program, replace=True)
    file = live / "00000002" / "made.json"
    document = json.loads(file.read_text())
    del document["sum"]
    changed(document, path, value)
    document["sum"] = saves._sum(saves._canonical(document))
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"00000002 is damaged .*{said}.*; .*restore .*00000001"):
        restore(live, program)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="no folder of saved streams"):
        save(tmp_path, init_carry(program_of()), replace=True)
    assert saves_of(tmp_path) == ["mine.txt"]


def save_on_and_on(folder, said):
    """Save stream after stream, in a child, and say which is done."""
    program, i = program_of(), 0
    carry = init_carry(program)
    while True:
        i += 1
        save(folder, carry._replace(tokens=carry.tokens * 0 + i), replace=True)
        said.send(i)


def kills(folder, count):
    """Kill a process that saves on and on, and check what it left each time."""
    program, draw = program_of(), np.random.default_rng(0)
    for _ in range(count):
        here, there = killing.FORKED.Pipe(duplex=False)
        child = killing.begin(save_on_and_on, folder.parent / "log", folder, there)
        there.close()
        last = here.recv()
        time.sleep(draw.uniform(0, 0.1))
        assert killing.kill(child), (folder.parent / "log").read_text()
        with suppress(EOFError):  # it says no more
            while True:
                last = here.recv()
        assert int(restore(folder, program).tokens) in (last, last + 1)
    save(folder, init_carry(program), replace=True)
    assert len(saves_of(folder)) == 2  # nothing of the killed ones is left


def test_a_killed_save_leaves_the_last_complete_one(tmp_path):
    kills(tmp_path / "live", 2)


@pytest.mark.slow
def test_many_killed_saves(tmp_path):
    kills(tmp_path / "live", 100)
