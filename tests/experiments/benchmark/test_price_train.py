"""`benchmark price --train`: published sizes from shapes, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.experiments.benchmark import __main__ as benchmark
from jaxmem.experiments.benchmark.price_table import GPUS
from jaxmem.experiments.benchmark.price_train import PAPER, Trained, _time
from jaxmem.kernels.dense import linear


def priced(capsys, *words):
    assert benchmark.main(["price", "--train", *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_half_a_million_tokens_of_video_ma2mba(capsys):
    """2^19 tokens on 80 GB, with moments and gradient in float32; the paper's own figure beside."""
    tokens = 2**19
    found = priced(capsys, "--model", "ma2mba:2.7b", "--tokens", str(tokens))
    weights = found["trained_bytes"]
    assert found["frozen_bytes"] == 0 and found["rank"] == 0
    assert found["moments_bytes"] == 2 * weights == 2 * found["gradient_bytes"]
    by = {step["scheme"]: step for step in found["steps"]}
    state = 64 * 4 * (80 * 64 * 128 + 3 * (5120 + 256))
    assert by["D"]["stream_bytes"] == state * -(-tokens // by["D"]["chunk"])
    for step in by.values():
        assert step["temporary_bytes"] < PAPER[tokens]
        assert step["peak_bytes"] == step["temporary_bytes"] + 4 * weights + found["input_bytes"]
        assert step["peak_bytes"] < 80 * 2**30


@pytest.mark.slow
def test_a_transformer_through_a_memory(capsys):
    """Longer streams cost their states: one for every chunk, or for every segment and chunk."""
    words = ("--model", "qwen2.5-vl:3b", "--budget", "1024", "--omnimem.sketch", "32")
    few, many = (priced(capsys, *words, "--tokens", str(n)) for n in (2048, 4096))
    for one, two in zip(few["steps"], many["steps"], strict=True):
        grown = two["temporary_bytes"] - one["temporary_bytes"]
        states = two["stream_bytes"] - one["stream_bytes"]
        assert grown == pytest.approx(states, rel=0.05)
        assert one["flops"] < two["flops"] < 2 * one["flops"]  # one question each
    assert few["trained_bytes"] < few["frozen_bytes"] / 100 and few["rank"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "tiny-mamba2"])
def test_a_step_is_run(model, capsys):
    words = ("--model", model, "--tokens", "128", "--dtype", "float32", "--run")
    both = priced(capsys, *words)["steps"]
    assert [step["scheme"] for step in both] == ["D", "E"]
    assert all(step["seconds"] > 0 and step["ran_peak_bytes"] is None for step in both)
    (one,) = priced(capsys, *words, "--scheme", "E")["steps"]
    assert one["scheme"] == "E"


@pytest.mark.slow
def test_modes_cost_what_their_gradients_need(capsys):
    """Lower layers are made again from states, so "published" keeps them; "read" keeps nothing."""
    words = ("--model", "tiny", "--tokens", "1024", "--mode")
    through, published, read = (priced(capsys, *words, m) for m in ("through", "published", "read"))
    for a, b, c in zip(*(x["steps"] for x in (through, published, read)), strict=True):
        assert b["flops"] < 0.6 * a["flops"] and c["flops"] < b["flops"]
        assert b["stream_bytes"] == a["stream_bytes"] > 0 == c["stream_bytes"]
        assert c["temporary_bytes"] < a["temporary_bytes"] - 0.9 * a["stream_bytes"]


@pytest.mark.parametrize(
    "words, message",
    [
        (("--tokens", "0"), "--tokens must be positive"),
        (("--model", "ma2mba:370m", "--rank", "4"), "no layer of ma2mba:370m attends"),
        (("--model", "ma2mba:370m", "--mode", "read"), "leave --mode read out"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message, capsys):
    assert benchmark.main(["price", "--train", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--tokens", "1024"), ("--mode", "read")])
def test_options_of_training_need_it(words, capsys):
    assert benchmark.main(["price", *words]) == 2
    assert "give --train, too" in capsys.readouterr().err


def test_times_are_operations_over_an_assumed_share_of_the_peak():
    step = Trained("D", 1, None, 10**15, 0, 0, 79 * 2**30)
    times = {gpu: _time(step, GPUS[gpu]) for gpu in GPUS}
    assert times == {"rtx3090": "no room", "a100": "8.0 s", "h100": "2.5 s", "h200": "2.5 s"}


def test_a_low_rank_addition_is_the_sum_of_both():
    """What adapters of a price are: `linear` adds them without forming their product."""
    rng, sides = np.random.default_rng(0), ((5, 6), (6, 7), (6, 2), (2, 7))
    x, kernel, a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in sides)
    found = linear(x, {"kernel": kernel, "bias": jnp.ones(7), "a": a, "b": b})
    expected = linear(x, {"kernel": kernel + a @ b, "bias": jnp.ones(7)})
    np.testing.assert_allclose(found, expected, atol=1e-5)
