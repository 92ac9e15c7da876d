"""Scores and kept sets of kvpress' Expected Attention, CriticalKV and Ada-KV on its own models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from test_kvpress_golden import (
    PUBLISHED,
    kept_of,
    padded,
    pytest_generate_tests,  # noqa: F401
    queries,
    seen_of,
    setting,
    snapkv,
    spec,
    start,
)

from jaxmem.memory.base import Memory
from jaxmem.memory.compression import criticalkv as values
from jaxmem.memory.compression.adakv import AdaKV
from jaxmem.memory.compression.criticalkv import CriticalKV
from jaxmem.memory.compression.expected_attention import ExpectedAttention
from jaxmem.memory.compression.knorm import Knorm

FORMS = {
    "expected_attention": {},
    "expected_attention_nocov": {"covariance": False},
    "expected_attention_novnorm": {"value_norm": False},
    "expected_attention_eps": {"eps": None},
}


def expected(z, name):
    """Return a form of Expected Attention, with a file's settings."""
    options = {k: setting(z, "expected_eps") if v is None else v for k, v in FORMS[name].items()}
    options |= {"future": int(z["n_future_positions"]), "sinks": int(z["n_sink"])}
    return ExpectedAttention(int(z["n_kept"]), **options, **PUBLISHED)


def base(z, name):
    """Return the memory whose score another one works with."""
    return {
        "snapkv": snapkv(z),
        "knorm": Knorm(int(z["n_kept"]), **PUBLISHED),
        "expected": expected(z, "expected_attention"),
        "expected_novnorm": expected(z, "expected_attention_novnorm"),
    }[name]


def see(z, memory: Memory, held):
    """Return what the decoder reports of the file's tokens, queries and projection included."""
    heads, dim = int(z["num_heads"]), int(z["head_dim"])
    output = jnp.asarray(z["w.o_proj.weight"].T.reshape(heads, dim, -1))
    return seen_of(z, memory, held)._replace(queries=jnp.asarray(padded(queries(z))), output=output)


def run(z, memory: Memory, score):
    """Return the state after the file's tokens, and numbers that `score` makes of the pool."""

    @jax.jit
    def both(state):
        seen = see(z, memory, memory.view(spec(z), state, None).kv)
        return memory.write(spec(z), state, seen)[0], score(state, seen)

    return both(start(z, memory))


def assert_close(ours, theirs, certain):
    """Assert equal scores; those of certain tokens are +inf here and large numbers there."""
    ours = np.asarray(ours)[:, : theirs.shape[1]]
    plain = np.isfinite(ours)
    np.testing.assert_array_equal(plain, ~certain)
    np.testing.assert_allclose(ours[plain], theirs[plain], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_expected_attention(file, name):
    z = weights.read(file)
    memory = expected(z, name)
    state, ours = run(z, memory, lambda s, seen: memory.score(memory.candidates(spec(z), s, seen)))
    sinks = np.arange(z["keys"].shape[1]) < int(z["n_sink"])
    assert_close(ours, z[f"score.{name}"], np.tile(sinks, (len(ours), 1)))
    np.testing.assert_array_equal(kept_of(state, int(z["n_kept"])), z[f"kept.{name}"])


@pytest.mark.parametrize("name", ["snapkv", "expected"])
def test_criticalkv(file, name, monkeypatch):
    z = weights.read(file)
    monkeypatch.setattr(values, "EPS", setting(z, "critical_eps"))
    kept, first = int(z["n_kept"]), setting(z, "first_stage_ratio")
    inner = base(z, name if name == "snapkv" else "expected_novnorm")
    memory = CriticalKV(inner, first=first)
    theirs = z[f"score.critical_{name}"]
    certain = theirs > np.finfo(np.float32).max / 2

    def weighed(state, seen):
        candidates = inner.candidates(spec(z), state, seen)
        norm = jnp.pad(values.output_norm(seen).T, ((0, 0), (0, memory.budget)))
        stage = jnp.full((len(theirs), 1), int(kept * first), jnp.int32)
        return values.two_stage(inner.score(candidates), norm, candidates.kv.modality, stage)

    state, ours = run(z, memory, weighed)
    assert_close(ours, theirs, certain)
    np.testing.assert_array_equal(kept_of(state, kept), z[f"kept.critical_{name}"])


@pytest.mark.parametrize("name", ["ada_snapkv", "ada_knorm", "ada_expected", "criticalada_snapkv"])
def test_adakv(file, name, monkeypatch):
    z = weights.read(file)
    monkeypatch.setattr(values, "EPS", setting(z, "critical_eps"))
    first = setting(z, "first_stage_ratio") if name.startswith("critical") else None
    inner = base(z, name.split("_")[1])
    memory = AdaKV(inner, alpha=setting(z, "alpha_safeguard"), first=first)
    state, _ = run(z, memory, lambda state, seen: 0)
    tokens = memory.recall(spec(z), state, None).kv
    mask = np.zeros(z[f"keep_mask.{name}"].shape, np.int32)
    for g, ours in enumerate(mask):
        held = np.asarray(tokens.modality)[:, g] != 0
        ours[np.asarray(tokens.index)[held, g]] = 1
    np.testing.assert_array_equal(mask, z[f"keep_mask.{name}"])
