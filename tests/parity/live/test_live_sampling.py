"""Penalty, temperature, top-k and top-p against the logits processors of transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.decoder.sampling import candidates, penalised
from jaxmem.models.hf.chat import TOP_K, read_sampling


@pytest.mark.parametrize("seed", range(6))
def test_the_same_probabilities(hf, tmp_path, seed):
    """What `generate` draws from, given a saved generation_config.json and a prompt."""
    rng, torch = np.random.default_rng(seed), hf.torch
    numbers = {
        "temperature": float(rng.uniform(0.3, 2)), "top_p": float(rng.choice([1.0, 0.9, 0.4])),
        "top_k": int(rng.integers(1, 50)), "repetition_penalty": float(rng.uniform(0.8, 1.5)),
    }  # fmt: skip
    hf.transformers.GenerationConfig(do_sample=True, **numbers).save_pretrained(tmp_path)
    process = hf.transformers.generation.logits_process
    steps = [
        process.RepetitionPenaltyLogitsProcessor(numbers["repetition_penalty"]),
        process.TemperatureLogitsWarper(numbers["temperature"]),
        process.TopKLogitsWarper(numbers["top_k"]),
        process.TopPLogitsWarper(numbers["top_p"]),
    ]
    logits = (3 * rng.normal(size=80)).astype(np.float32)
    ids = rng.integers(0, 80, 25)
    expected = torch.tensor(logits[None])
    for step in steps:
        expected = step(torch.tensor(ids[None]), expected)
    mine = read_sampling(tmp_path)
    assert mine is not None
    said = np.isin(np.arange(80), ids)
    found = penalised(jnp.asarray(logits), jnp.asarray(said), mine.repetition_penalty)
    found = jax.nn.softmax(candidates(found, mine.temperature, mine.top_p, mine.top_k))
    np.testing.assert_allclose(found, torch.softmax(expected, -1)[0], atol=1e-6)


def test_defaults(hf, tmp_path):
    """What is applied where generation_config.json says no more than that it samples."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True}))
    own = hf.transformers.GenerationConfig()._get_default_generation_params()
    mine = read_sampling(tmp_path)
    assert mine is not None and own["top_k"] == TOP_K == mine.top_k
    assert (own["temperature"], own["top_p"]) == (mine.temperature, mine.top_p)
    assert own["repetition_penalty"] == mine.repetition_penalty
