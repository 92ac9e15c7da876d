"""The benchmark of the kernels: that both formulations agree, and what its records say."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from jaxmem.experiments.benchmark import __main__ as benchmark
from jaxmem.experiments.benchmark import kernels as _kernels
from jaxmem.experiments.benchmark import kernels_measure as _kernels_measure
from jaxmem.experiments.benchmark.kernels_ops import operations, pairs, with_attention
from jaxmem.experiments.benchmark.kernels_scans import CI as SCANS_CI
from jaxmem.experiments.benchmark.kernels_scans import scan_operations
from jaxmem.experiments.benchmark.kernels_shapes import CI, SEVEN_B, inputs, shapes

SHAPE = CI[0]
OPERATIONS = {op.name: op for op in operations()}


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """What the machine can do, from small copies and products: a figure is enough here."""
    small = partial(_kernels_measure.rates, size=64, megabytes=1)
    monkeypatch.setattr(_kernels_measure, "rates", small)


@pytest.fixture(scope="module")
def given():
    return with_attention(inputs(SHAPE), SHAPE)


@pytest.mark.parametrize("name", OPERATIONS)
def test_ours_and_the_naive_formulation_agree(given, name):
    op = OPERATIONS[name]
    ours, plain = (jax.jit(lambda x, f=f: f(x, SHAPE))(given) for f in (op.ours, op.plain))
    if name == "attend":
        ours = ours[0]
    if name.startswith("mass"):
        ours = np.concatenate(ours, axis=-1)[0]
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
        assert np.any(np.asarray(got) != 0)


def test_counts_of_a_shape_by_hand():
    assert (SHAPE.rows, SHAPE.slots, SHAPE.heads, SHAPE.kv_heads, SHAPE.dim) == (8, 24, 4, 2, 16)
    seen = sum(24 + t + 1 for t in range(8))
    assert pairs(SHAPE) == seen
    assert OPERATIONS["attend"].flops(SHAPE) == 2 * 2 * seen * 4 * 16
    last = [24 + t + 1 for t in (6, 7)]
    both = OPERATIONS["attend_mass last rows"].flops(SHAPE)
    assert both == 2 * (2 * seen + sum(last)) * 4 * 16
    assert OPERATIONS["mass mean_logit"].flops(SHAPE) == 2 * seen * 2 * 16
    kept = 24 * (2 * 2 * 16 * 4 + 4 + 4 + 1)  # keys, values, position, order, kind
    assert OPERATIONS["select"].nbytes(SHAPE) == 2 * 32 * 4 + 2 * kept


def test_counts_of_a_scan_by_hand():
    ssd, delta = SCANS_CI
    assert (ssd.rows, ssd.heads, ssd.groups, ssd.size, ssd.dim) == (24, 4, 2, 16, 16)
    states = 2 * 2 * 4 * 16 * 16  # read and written, a row
    inside = 64 * (2 * 16 + 4 * 16)  # scores of groups and outputs of heads, half of a block of 64
    (once, thrice), (gated, _) = scan_operations(ssd), scan_operations(delta)
    assert once.flops(ssd) == 24 * (states + inside) and thrice.flops(ssd) == 3 * once.flops(ssd)
    assert gated.flops(delta) == 24 * (states + inside + states // 2 + inside)
    numbers = 24 * (2 * 4 * 16 + 2 * 2 * 16 + 4) + 2 * 4 * 16 * 16
    assert once.nbytes(ssd) == 4 * numbers and gated.nbytes(delta) == 4 * (numbers + 24 * 4)


def test_scans_are_timed_against_all_blocks_at_once(capsys):
    argv = "kernels --shapes ci --pairs 1 --only delta --rows 24 --json".split()
    assert benchmark.main(argv) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["operation"] for r in found] == ["delta", "delta gradient"]
    assert all(r["against"] == "xla_blocks" and r["ratio"] > 0 for r in found)
    assert benchmark.main("kernels --shapes ci --rows 7".split()) == 2
    assert "--rows" in capsys.readouterr().err
    for words in ("--shapes ci --only attend --rows 24", "--shapes embedded --only ssd"):
        assert benchmark.main(["kernels", *words.split()]) == 2
        assert "nothing to time with" in capsys.readouterr().err


def test_a_loop_repeats_the_whole_operation():
    x = np.ones((4, 4), np.float32)
    loop = _kernels_measure.repeated(lambda x: x @ x)
    out = loop(x, np.int32(3))
    np.testing.assert_array_equal(out, x @ x)


def test_names_of_shapes():
    assert shapes("ci") == CI and shapes("7b") == SEVEN_B
    assert shapes("all") == (*shapes("cpu"), *SEVEN_B)
    assert {(s.rows, s.slots) for s in SEVEN_B} >= {(1024, 4096), (16384, 8192)}


def test_kernels_command(capsys):
    argv = "kernels --shapes ci --pairs 2 --only select chunk --step-slots 12 --step-seconds 1"
    assert benchmark.main([*argv.split(), "--json"]) == 0
    selection, step = map(json.loads, capsys.readouterr().out.splitlines())
    assert selection["operation"] == "select" and selection["goal"] == 0.5
    assert selection["met"] == (selection["ratio"] <= 0.5)
    share = selection["bytes"] / (selection["best_ms"] / 1e3) / selection["copy_gb_per_s"] / 1e9
    assert selection["copy_share"] == pytest.approx(share)
    assert step["operation"] == "chunk step" and step["shape"].endswith("T=20 S=12")
    assert step["ratio"] > 0 and step["goal"] == 1.25


def test_a_naive_formulation_that_does_not_fit_is_left_out():
    config = _kernels.KernelsConfig(shapes="ci", only=("mass mean",), pairs=1, plain_gigabytes=0)
    (record,) = _kernels.records(config)
    assert record["plain_temp_bytes"] > 0 and "ratio" not in record and "met" not in record


@pytest.mark.slow
def test_one_kernel_is_timed_against_two(capsys):
    """The interpreted kernel, as on a GPU with --implementation pallas."""
    argv = "kernels --shapes ci --pairs 1 --only attend_mass --implementation pallas_interpret"
    assert benchmark.main([*argv.split(), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["operation"] for r in found] == ["attend_mass", "attend_mass last rows"]
    assert all(r["against"] == "two kernels" and r["ratio"] > 0 for r in found)


def test_unknown_operations_are_status_2(capsys):
    assert benchmark.main(["kernels", "--shapes", "ci", "--only", "sort"]) == 2
    assert "sort" in capsys.readouterr().err
