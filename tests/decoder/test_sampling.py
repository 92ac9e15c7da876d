"""Sampling with a temperature and a nucleus, and answers that are written in steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.decoder.sampling import Sampling, candidates, likeliest, nucleus, penalised, sample
from jaxmem.models.hf.chat import read_sampling
from jaxmem.models.text_streamer import TextStreamer

LOGITS = jnp.array([0.1, 2.0, -1.0, 1.5, 2.0, -30.0, 0.7], jnp.float32)


def draw(count, temperature, top_p, logits=LOGITS, top_k=0):
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(jax.vmap(lambda key: sample(logits, key, temperature, top_p, top_k))(keys))


def smallest_set(probabilities, top_p):
    """Tokens in order of probability, taken until they reach `top_p`."""
    kept, reached = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if reached >= top_p:
            break
        kept.add(token)
        reached += float(probabilities[token])
    return kept


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1.2e-38, 1e-38])
def test_a_temperature_towards_zero_is_greedy(temperature):
    logits = LOGITS.at[4].set(2.001)
    assert set(draw(32, temperature, 1.0, logits)) == {int(jnp.argmax(logits))} == {4}
    assert int(sample(1e4 * logits, jax.random.key(0), temperature, 0.5)) == 4


@pytest.mark.parametrize("top_p", [1e-6, 0.25, 0.37, 0.5, 0.75, 0.9, 0.999, 1.0])
def test_the_nucleus_is_the_smallest_set_that_reaches_p(top_p):
    rng = np.random.default_rng(0)
    flat = np.full(8, 0.125, np.float32)  # ties, and sums that reach p exactly
    for p in (flat, *rng.dirichlet(np.full(50, 0.3), 5).astype(np.float32)):
        kept = set(np.flatnonzero(nucleus(jnp.asarray(p), top_p)).tolist())
        assert kept == (smallest_set(p, top_p) if top_p < 1 else set(range(len(p)))) and kept


def test_frequencies_are_those_of_the_distribution():
    count, temperature, top_p = 20_000, 0.8, 0.9
    p = np.exp(np.asarray(LOGITS, np.float64) / temperature)
    p /= p.sum()
    kept = smallest_set(p, top_p)
    assert 1 < len(kept) < len(p) - 1
    p = np.where(np.isin(np.arange(len(p)), list(kept)), p, 0.0)
    p /= p.sum()
    found = np.bincount(draw(count, temperature, top_p), minlength=len(p)) / count
    assert (found[p == 0] == 0).all()
    assert (np.abs(found - p) <= 4.5 * np.sqrt(p * (1 - p) / count)).all()


def reference(logits, said, sampling):
    """Probabilities of every token in float64, by sorting."""
    x = np.asarray(logits, np.float64)
    penalty = sampling.repetition_penalty
    x = np.array(
        [
            v if not s else v * penalty if v < 0 else v / penalty
            for v, s in zip(x, said, strict=True)
        ]
    )
    x = x / sampling.temperature
    if sampling.top_k:
        x[x < np.sort(x)[-min(sampling.top_k, len(x))]] = -np.inf
    p = np.exp(x - x.max())
    p /= p.sum()
    if sampling.top_p < 1:
        p[~np.isin(np.arange(len(p)), list(smallest_set(p, sampling.top_p)))] = 0
    return p / p.sum()


@pytest.mark.parametrize("sampling", [
    Sampling(0.7, 0.8, 5, 1.3), Sampling(1.5, 1.0, 3), Sampling(0.9, 0.6, 0, 0.8),
    Sampling(1.0, 1.0, 1, 2.0), Sampling(1.0, 0.95, 99, 1.1),
])  # fmt: skip
def test_order_of_penalty_temperature_k_and_p(sampling):
    """The k likeliest after the penalty; the nucleus of what they share between them."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        logits, said = (2 * rng.normal(size=40)).astype(np.float32), rng.random(40) < 0.3
        changed = penalised(jnp.asarray(logits), jnp.asarray(said), sampling.repetition_penalty)
        found = candidates(changed, sampling.temperature, sampling.top_p, sampling.top_k)
        expected = reference(logits, said, sampling)
        np.testing.assert_allclose(jax.nn.softmax(found), expected, atol=1e-6)
        assert ((np.asarray(found) > -np.inf) == (expected > 0)).all()


def test_ties_with_the_kth_are_kept():
    kept = [np.flatnonzero(likeliest(LOGITS, k)).tolist() for k in (0, 1, 3, 9)]
    assert kept == [list(range(7)), [1, 4], [1, 3, 4], list(range(7))]
    drawn = np.bincount(draw(4000, 1.0, 1.0, LOGITS, 3), minlength=7)
    assert (drawn[[1, 3, 4]] > 800).all() and drawn.sum() == drawn[[1, 3, 4]].sum()


def test_a_key_decides():
    twice = [draw(64, 1.0, 1.0).tolist() for _ in range(2)]
    assert twice[0] == twice[1] and len(set(twice[0])) > 2
    other = sample(LOGITS, jax.random.key(4), 1.0)
    assert other.dtype == jnp.int32 and other.shape == ()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((-1, 1), "temperature must be at least 0, got -1"),
        ((float("nan"), 1), "temperature .* got nan"),
        ((1, 0), "top-p must be more than 0 and at most 1, got 0"),
        ((1, 1.1), "got 1.1"),
        ((1, 1, -1), "top-k must be a whole number of at least 0, got -1"),
        ((1, 1, 2.5), "top-k .* got 2.5"),
        ((1, 1, 0, 0), "repetition penalty must be more than 0, got 0"),
    ],
)
def test_refused_numbers(numbers, message):
    with pytest.raises(ValueError, match=message):
        Sampling(*numbers)


def test_what_a_checkpoint_says(tmp_path):
    file = tmp_path / "generation_config.json"
    assert read_sampling(tmp_path) is None
    for said, found in (
        ({"temperature": 0.3}, None),
        ({"do_sample": False, "top_p": 0.3}, None),
        ({"do_sample": True}, Sampling(1.0, 1.0, 50)),
        ({"do_sample": True, "top_k": 0}, Sampling(1.0, 1.0, 0)),
        ({"do_sample": True, "temperature": None, "top_p": 0.8, "top_k": 20},
         Sampling(1.0, 0.8, 20)),
        ({"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05},
         Sampling(1e-6, 1.0, 50, 1.05)),
    ):  # fmt: skip
        file.write_text(json.dumps(said))
        assert read_sampling(tmp_path) == found
    file.write_text(json.dumps({"do_sample": True, "top_p": 3}))
    with pytest.raises(ValueError, match=r"generation_config.json .* got 3"):
        read_sampling(tmp_path)


def test_text_grows_by_whole_characters():
    """Bytes as tokens: a character of several bytes appears when its last byte has come."""
    ids = np.frombuffer("né 😀!".encode(), np.uint8)
    detokenize = lambda some: bytes(some.tolist()).decode(errors="replace")
    streamer, parts = TextStreamer(detokenize), []
    for n in range(1, len(ids) + 1):
        parts += [(n, part) for part in streamer.push(ids[:n], n == len(ids))]
    assert parts == [(1, "n"), (3, "é"), (4, " "), (8, "😀"), (9, "!")]
    cut = TextStreamer(detokenize)
    assert [*cut.push(ids[:2], False), *cut.push(ids[:2], True)] == ["n", "\ufffd"]


def test_text_that_changes_is_not_written_twice():
    texts = iter(["a .", "a.", "a. b", "a . b"])
    streamer = TextStreamer(lambda _: next(texts))
    parts = [part for _ in range(4) for part in streamer.push(np.zeros(1, np.int32), False)]
    assert parts == ["a .", " b"]
