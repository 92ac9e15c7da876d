"""Linear attention against a loop at absolute positions, and its two ways to see a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.mixers.linear import LinearAttention

WIDTH, ROWS = 12, 40


def rows_of(mixer):
    weights = mixer.weights(WIDTH, jax.random.key(0))
    return weights, np.asarray(jax.random.normal(jax.random.key(1), (ROWS, WIDTH)))


def plain(mixer, weights, x, seen):
    """What token i reads of the tokens before seen(i), each rotated to its number."""
    w = jax.tree.map(lambda a: np.asarray(a, np.float64), weights)
    heads = lambda y: y.reshape(len(x), mixer.heads, mixer.head_dim)
    q, k, v = (heads(x @ w[n]["kernel"]) for n in "qkv")
    unit = lambda y: y / np.sqrt(np.mean(y**2, -1, keepdims=True) + mixer.eps)
    q, k = np.maximum(unit(q), 0), np.maximum(unit(k), 0)
    half = mixer.head_dim // 2
    turn = np.exp(1j * np.arange(len(x))[:, None, None] * mixer.base ** (-np.arange(half) / half))
    far = lambda y: (y[..., :half] + 1j * y[..., half:]) * turn
    out = []
    for i in range(len(x)):
        near = np.einsum("jhd,hd->jh", far(k)[: seen(i)], far(q)[i].conj()).real
        mass = np.einsum("jhd,hd->h", k[: seen(i)], q[i])
        out.append(np.einsum("jh,jhd->hd", near, v[: seen(i)]) / (mass[:, None] + 1e-15))
    return np.stack(out).reshape(len(x), -1) @ w["out"]["kernel"]


@pytest.mark.parametrize("within", ["causal", "block"])
def test_moving_the_state_is_counting_from_the_beginning(within):
    mixer = LinearAttention(2, 16, within=within, block=4)
    weights, x = rows_of(mixer)
    state, out = mixer.init(WIDTH), []
    step = jax.jit(mixer.chunk)
    for at in range(0, ROWS, 8):
        y, state = step(weights, state, jnp.asarray(x[at : at + 8]), jnp.ones(8, bool))
        out.append(y)
    seen = (lambda i: i + 1) if within == "causal" else (lambda i: (i // 8 + 1) * 8)
    np.testing.assert_allclose(np.concatenate(out), plain(mixer, weights, x, seen), atol=5e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head_dim": 7}, "even head_dim"), ({"heads": 0}, "heads=0"), ({"within": "row"}, "'row'")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LinearAttention(**{"heads": 2, **options})
