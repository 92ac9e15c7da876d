"""The benchmark of the step: exact figures, and the count of what the machine must do."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.experiments.benchmark import __main__ as benchmark
from jaxmem.experiments.benchmark.step import StepConfig
from jaxmem.experiments.benchmark.step_fit import Point, fitted, measure_fits
from jaxmem.experiments.benchmark.step_model import (
    StepModel,
    Stream,
    decoder_of,
    in_turn,
    least_flops,
    model_of,
    program_of,
)
from jaxmem.experiments.benchmark.step_parts import still
from jaxmem.rope import rope_1d


def test_step_command(capsys):
    argv = ["step", "--model", "tiny", "--memories", "recent,knorm", "--slots", "64"]
    assert benchmark.main([*argv, "--chunk", "32", "--rounds", "2", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [s["memory"] for s in steps] == ["recent", "knorm"]
    assert steps[0]["against"] == 1.0 and all(s["milliseconds"] > 0 for s in steps)
    assert all(s["copies"] == 0 and 0 < s["share"] < 2 for s in steps)


def test_questions_of_one_moment(capsys):
    argv = ["step", "--model", "tiny", "--memories", "recent", "--slots", "64", "--chunk", "32"]
    assert benchmark.main([*argv, "--rounds", "2", "--questions", "3", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["questions"]
    assert found["count"] == 3 and found["memory"] == "recent"
    assert min(found[x] for x in ("alone", "together", "as_one", "against_as_one")) > 0


def test_operations_are_those_of_the_products_by_hand():
    config = DecoderConfig(2, 8, 4, 2, 4, 12, 50, rope_1d(4))
    each = 8 * 16 + 2 * 8 * 8 + 16 * 8 + 3 * 8 * 12  # q, k and v, o, and the MLP
    seen = 10 + 2  # slots, and half of the chunk's own rows
    assert least_flops(config, 4, 10) == 2 * 4 * 2 * (each + 2 * 16 * seen)


def test_a_published_decoder_is_known_by_its_name():
    assert decoder_of("smollm2").layers == 30 and decoder_of("qwen3-vl:2b").layers == 28


def test_a_hybrid_is_refused(capsys):
    assert benchmark.main(["step", "--model", "qwen3.5:9b"]) == 2
    assert "of qwen3.5:9b 24 of 32 have a state: benchmark price" in capsys.readouterr().err


SMALL = DecoderConfig(2, 16, 4, 2, 4, 24, 50, rope_1d(4))


def small():
    return StepModel(SMALL, init_decoder(SMALL, jax.random.key(0)), "drawn")


@pytest.mark.slow
def test_dtypes_and_parts_are_told(capsys):
    argv = ["step", "--model", "tiny", "--memories", "tova", "--slots", "32", "--chunk", "16"]
    assert benchmark.main([*argv, "--rounds", "1", "--dtypes", "float32,bfloat16", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [s["dtype"] for s in steps] == ["float32", "bfloat16"]
    assert steps[0]["wide"] == 1.0 and steps[1]["wide"] > 0
    for s in steps:  # differences of one round add up
        assert sum(s["parts"].values()) == pytest.approx(s["milliseconds"])


def test_options_that_make_no_sense_are_refused(capsys):
    for more in (
        ["--dtypes", "float8"], ["--clock", "sun"], ["--rounds", "0"], ["--threads", "0"],
        ["--against", "others"], ["--fit", "--against", "kvpress"],
        ["--questions", "1"], ["--questions", "4", "--fit"],
        ["--against", "kvpress", "--memories", "hermes"],
    ):  # fmt: skip
        assert benchmark.main(["step", "--model", "tiny", "--slots", "16", *more]) == 2
    assert "expected" not in capsys.readouterr().out


def test_a_still_memory_is_told_everything_and_keeps_what_it_has():
    stream = Stream(program_of(SMALL, "snapkv", 16, 8), small().params).fill(16)
    quiet = still(stream, "wall")
    assert quiet is not None
    before = jax.tree.map(np.asarray, quiet.carry.state)
    quiet()
    jax.tree.map(np.testing.assert_array_equal, before, quiet.carry.state)
    # All layers are passed, and what SnapKV asks for is computed.
    plain = Stream(program_of(SMALL, "recent", 16, 8), small().params)
    mute = still(plain, "wall")
    assert mute is not None
    count = lambda s: s.step.as_text().count(" dot(")
    assert count(quiet) > count(mute) >= count(plain)


def test_a_fit_finds_the_terms_of_a_time():
    sizes = [(t, s) for t in (32, 128, 512) for s in (256, 4096)]
    time = lambda t, s: 3 + 0.5 * t + 1e-3 * t * s + 0.04 * s
    fit = fitted("recent", [Point(t, s, time(t, s)) for t, s in sizes])
    assert (fit.a, fit.b, fit.c, fit.d) == pytest.approx((3, 0.5, 1e-3, 0.04), rel=1e-6)
    assert fit.worst < 1e-9 < 0.1 < fit.without
    off = fitted("recent", [Point(t, s, 3 + 0.5 * t * (1 + (t == 512))) for t, s in sizes])
    assert off.worst > 0.1


@pytest.mark.slow
def test_fits_are_measured_over_all_sizes():
    config = StepConfig(memories="recent", rounds=1)
    (fit,) = measure_fits(config, small(), lengths=(4, 8), slots=(8, 16))
    assert [(p.chunk, p.slots) for p in fit.points] == [(4, 8), (4, 16), (8, 8), (8, 16)]
    assert all(p.milliseconds > 0 for p in fit.points)


def test_everything_is_timed_in_turn():
    order = []
    runs = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    found = in_turn(runs, 2, warm=1)
    assert order == list("ababab") and found["a"].tolist() == [3, 5]


def test_without_its_package_the_weights_of_smollm2_are_drawn(monkeypatch):
    monkeypatch.setattr("jaxmem.models.hf.gguf.smollm2_path", lambda: None)
    monkeypatch.setattr("jaxmem.experiments.benchmark.step_model.SMOLLM2", SIZES)
    assert "drawn" in model_of("smollm2").weights and "real" in model_of("smollm2").weights


SIZES = {
    "layers": 1, "width": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "mlp_width": 8, "vocab": 9,
}  # fmt: skip


def test_bfloat16_is_what_a_program_of_it_holds():
    program = program_of(SMALL, "recent", 16, 8, "bfloat16")
    assert program.spec.dtype == jnp.bfloat16
