"""Functions of rows in tiles: the same numbers, and temporaries that do not grow with the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.training.plan import price
from jaxmem.training.tiled import tiled

WIDTH, VOCAB = 16, 512


def loss(weights, x, labels, tile=None):
    """Cross-entropy of rows, in tiles or at once."""

    def said(row):
        h, label = row
        log_p = jax.nn.log_softmax(h @ weights["head"])
        return -jnp.take_along_axis(log_p, label[:, None], axis=1)[:, 0]

    rows = (x, labels)
    return jnp.sum(said(rows) if tile is None else tiled(said, rows, tile))


def given(rows, dtype=jnp.float64):
    key = jax.random.split(jax.random.key(0), 4)
    weights = {
        "head": jax.random.normal(key[0], (WIDTH, VOCAB), dtype) / 4,
        "up": jax.random.normal(key[1], (WIDTH, VOCAB), dtype) / 4,
    }
    x = jax.random.normal(key[2], (rows, WIDTH), dtype)
    return weights, x, jax.random.randint(key[3], (rows,), 0, VOCAB)


def same(rows, tile):
    with jax.enable_x64():
        arrays = given(rows)
        found, slope = jax.value_and_grad(loss, (0, 1))(*arrays, tile)
        expected, plain = jax.value_and_grad(loss, (0, 1))(*arrays)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tile", [4, 7, 24, 100])
def test_tiles_change_nothing(tile):
    """24 rows: whole tiles, a ragged last one, a single one, one that is too large."""
    same(24, tile)


def test_an_mlp_in_tiles():
    with jax.enable_x64():
        weights, x, _ = given(10)
        f = lambda h: jnp.tanh(h @ weights["up"]) @ weights["head"].T
        y = lambda tile: lambda x: jnp.sum(jnp.sin(f(x) if tile is None else tiled(f, x, tile)))
        np.testing.assert_allclose(jax.grad(y(3))(x), jax.grad(y(None))(x), rtol=0, atol=1e-12)


def test_temporaries_do_not_grow_with_the_rows():
    """Beside the labels and the losses there is one tile, however many rows: not [T, V]."""

    def at(rows, tile):
        shapes = jax.eval_shape(lambda: given(rows, jnp.float32))
        return price(lambda w, x, labels: loss(w, x, labels, tile), *shapes)

    few, many = 1024, 4096
    assert at(many, None) - at(few, None) >= (many - few) * VOCAB * 4
    assert at(many, 64) - at(few, 64) <= (many - few) * 16


def test_a_tile_needs_a_row():
    with pytest.raises(ValueError, match="at least one row, got 0"):
        tiled(jnp.sin, jnp.ones(3), 0)
