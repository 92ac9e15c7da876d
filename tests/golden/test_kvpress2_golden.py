"""Scores and kept sets of kvpress' Expected Attention, CriticalKV and Ada-KV on its own models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from test_kvpress_golden import (
    PUBLISHED,
    padded,
    pytest_generate_tests,  # noqa: F401
    queries,
    seen_of,
    table,
)

from jaxmem.memory.base import Memory, Requires, Spec
from jaxmem.memory.compression import expected_attention as ea
from jaxmem.memory.compression import knorm, snapkv
from jaxmem.memory.compression import value_norm as values
from jaxmem.memory.compression.adakv import adakv
from jaxmem.memory.compression.criticalkv import criticalkv
from jaxmem.memory.parts import scored as evict

FORMS = {
    "expected_attention": {},
    "expected_attention_nocov": {"covariance": False},
    "expected_attention_novnorm": {"value_norm": False},
    "expected_attention_eps": {"eps": None},
}


def expected(z, name):
    """Return the score of a form of Expected Attention, with a file's settings."""
    options = {k: float(z["expected_eps"]) if v is None else v for k, v in FORMS[name].items()}
    future, sinks = int(z["n_future_positions"]), int(z["n_sink"])
    return partial(ea.score, rotary=table(z), future=future, sinks=sinks, **options)


def base(z, name):
    """Return what a score wraps: the score, and what it requires."""
    window, kernel = int(z["window_size"]), int(z["kernel_size"])
    return {
        "snapkv": (
            lambda pool: snapkv.score(pool, window, kernel),
            Requires(mass="softmax", last=window),
        ),
        "knorm": (knorm.norm_score, Requires()),
        "expected": (expected(z, "expected_attention"), Requires(queries=True)),
        "expected_novnorm": (expected(z, "expected_attention_novnorm"), Requires(queries=True)),
    }[name]


def see(z, memory: Memory, held):
    """Return what the decoder reports of the file's tokens, queries and projection included."""
    heads, dim = int(z["num_heads"]), int(z["head_dim"])
    output = jnp.asarray(z["w.o_proj.weight"].T.reshape(heads, dim, -1))
    return seen_of(z, memory, held)._replace(queries=jnp.asarray(padded(queries(z))), output=output)


def run(z, memory: Memory, score):
    """Return the state after the file's tokens, and numbers that `score` makes of the pool."""
    heads = z["keys"].shape[0]
    spec = Spec(1, heads, int(z["num_heads"]), int(z["head_dim"]), z["hidden_states"].shape[1])

    @jax.jit
    def both(state):
        held = memory.view(state, None, None).tokens
        seen = see(z, memory, held)
        return memory.write(state, seen)[0], score(evict.pool_of(held, None, seen), seen)

    return both(memory.init(spec))


def assert_close(ours, theirs, certain):
    """Assert equal scores; those of certain tokens are +inf here and large numbers there."""
    ours = np.asarray(ours)[:, : theirs.shape[1]]
    plain = np.isfinite(ours)
    np.testing.assert_array_equal(plain, ~certain)
    np.testing.assert_allclose(ours[plain], theirs[plain], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_expected_attention(file, name):
    z = weights.read(file)
    score = expected(z, name)
    memory = ea.expected_attention(int(z["n_kept"]), **score.keywords, **PUBLISHED)
    state, ours = run(z, memory, lambda pool, seen: score(pool))
    sinks = np.arange(z["keys"].shape[1]) < int(z["n_sink"])
    assert_close(ours, z[f"score.{name}"], np.tile(sinks, (len(ours), 1)))
    np.testing.assert_array_equal(state.slots.tokens.index.T, z[f"kept.{name}"])


@pytest.mark.parametrize("name", ["snapkv", "expected"])
def test_criticalkv(file, name):
    z = weights.read(file)
    kept, first = int(z["n_kept"]), float(z["first_stage_ratio"])
    score, reads = base(z, name if name == "snapkv" else "expected_novnorm")
    memory = criticalkv(kept, score, reads=reads, first=first, **PUBLISHED)
    theirs = z[f"score.critical_{name}"]
    certain = theirs > np.finfo(np.float32).max / 2

    def weighed(pool, seen):
        norm = jnp.pad(values.output_norm(seen).T, ((0, 0), (kept, 0)))
        norm = jnp.roll(norm, -kept, axis=1)
        stage = jnp.full((len(theirs), 1), int(kept * first), jnp.int32)
        return values.two_stage(score(pool), norm, pool.tokens.modality, stage)

    state, ours = run(z, memory, weighed)
    assert_close(ours, theirs, certain)
    np.testing.assert_array_equal(state.slots.tokens.index.T, z[f"kept.critical_{name}"])


@pytest.mark.parametrize("name", ["ada_snapkv", "ada_knorm", "ada_expected", "criticalada_snapkv"])
def test_adakv(file, name):
    z = weights.read(file)
    score, reads = base(z, name.split("_")[1])
    first = float(z["first_stage_ratio"]) if name.startswith("critical") else None
    memory = adakv(
        int(z["n_kept"]), score, reads=reads, alpha=float(z["alpha_safeguard"]), first=first,
        **PUBLISHED,
    )  # fmt: skip
    state, _ = run(z, memory, lambda pool, seen: 0)
    tokens = memory.recall(state, None, None).tokens
    mask = np.zeros(z[f"keep_mask.{name}"].shape, np.int32)
    for g, ours in enumerate(mask):
        held = np.asarray(tokens.modality)[:, g] != 0
        ours[np.asarray(tokens.index)[held, g]] = 1
    np.testing.assert_array_equal(mask, z[f"keep_mask.{name}"])
