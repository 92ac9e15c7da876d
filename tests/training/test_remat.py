"""Laws of checkpointing: one gradient, whatever the scheme; padding; what is refused."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import FILL, NAMES, case
from jax.ad_checkpoint import checkpoint_name

from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.training.remat import SCHEMES, WORDS, chunked, grid, near_root, remat, stacked, timed

SMALL = Mamba2(2, 3, 4, block=2)
SIZES = {"layers": 4, "width": 6, "mixer": SMALL, "dtype": jnp.float64}
ROWS, CHUNK = 32, 4
OTHERS = tuple(name for name in SCHEMES if name != "off")


def worth(cell):
    """A number of all y, and of the last state alone for a probe of the whole past."""

    def loss(params, x, state):
        h = x[0] if isinstance(x, tuple) else x
        y, last = cell(params, x, state)
        y = y[0] if isinstance(y, tuple) else y
        ends = sum(jnp.sum(jnp.cos(a)) for a in jax.tree.leaves(last))
        return jnp.sum(jnp.sin(y) * jnp.cos(3 * h)) + ends

    return loss


def gradients(cell, params, x, state):
    """By params, inputs and first state."""
    return jax.jit(jax.value_and_grad(worth(cell), (0, 1, 2), allow_int=True))(params, x, state)


def same(found, expected, tol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if a.dtype != jax.dtypes.float0:
            scale = max(float(jnp.max(jnp.abs(b))), 1e-30)
            np.testing.assert_allclose(a, b, rtol=0, atol=tol * scale)


@cache
def off(name, rows=ROWS):
    cell, *given = case(name, rows, **SIZES)
    return gradients(grid(cell, chunk=CHUNK, scheme="off"), *given)


def many(names):
    """The generic cell in every run; a scheme of each kind of the others, the rest when slow."""
    quick = {("recurrent_memory", "D")}
    return [
        pytest.param(
            name, scheme, marks=[] if name == "generic" or (name, scheme) in quick else
            pytest.mark.slow,
        )
        for name in names
        for scheme in OTHERS
    ]  # fmt: skip


@pytest.mark.parametrize("name, scheme", many(NAMES))
def test_every_scheme_has_the_same_gradient(name, scheme):
    with jax.enable_x64():
        cell, *given = case(name, ROWS, **SIZES)
        for inner in (True, False) if name == "generic" and scheme in ("A", "D") else (True,):
            found = gradients(grid(cell, chunk=CHUNK, scheme=scheme, inner=inner), *given)
            same(found, off(name), 1e-12)


@pytest.mark.parametrize("scheme", ["A", "D"])
def test_the_last_token_reaches_the_first(scheme):
    """The gradient goes through time as a whole: nothing is truncated."""
    with jax.enable_x64():
        cell, params, x, state = case("generic", ROWS, **SIZES)
        run = grid(cell, chunk=CHUNK, scheme=scheme)
        plain = grid(cell, chunk=ROWS, scheme="off")

        def last(run):
            def loss(x):
                return jnp.sum(run(params, x, state)[0][-1])

            return jax.jit(jax.grad(loss))(x)[0]

        found = last(run)
        assert float(jnp.max(jnp.abs(found))) > 1e-6
        np.testing.assert_allclose(found, last(plain), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "generic" else pytest.mark.slow) for n in NAMES]
)
def test_a_ragged_length_is_padded_without_an_effect(name):
    """17 tokens in chunks of 4, and in one of E's segments that is padding from end to end."""
    with jax.enable_x64():
        cell, *given = case(name, 17, **SIZES)
        run = grid(cell, chunk=CHUNK, scheme="E", segments=3, fill=FILL[name])
        if name == "recurrent_memory":  # whose outputs depend on the cut
            plain = grid(cell, chunk=CHUNK, scheme="off", fill=FILL[name])
        else:
            plain = grid(cell, chunk=17, scheme="off")
        same(gradients(run, *given), gradients(plain, *given), 1e-12)


def test_a_word_is_its_combinators():
    cell, params, x, state = case("generic", 8, layers=2, width=4)
    run = chunked(remat(stacked(remat(cell))))
    y, last = run(params, x.reshape(2, 4, 4), state)
    again, end = grid(cell, chunk=4, scheme="D")(params, x, state)
    same((y.reshape(8, 4), last), (again, end), 0)
    assert set(WORDS) == set(SCHEMES) and near_root(24) in (4, 6) and near_root(7) in (1, 7)


def test_what_is_named_is_kept():
    """A checkpoint that keeps a name stores it: its residuals say so."""

    def cell(params, x, state):
        y = checkpoint_name(jnp.sin(x * params), "kept")
        return jnp.sin(y), state + jnp.sum(y)

    def kept(keep):
        run = remat(cell, keep=keep)
        _, back = jax.vjp(lambda x: run(jnp.ones(()), x, jnp.zeros(()))[0], jnp.ones(7))
        return sorted(a.shape for a in jax.tree.leaves(back) if hasattr(a, "shape"))

    assert kept(("kept",)).count((7,)) == kept(()).count((7,)) + 1


def test_a_step_over_time_is_the_plain_loop():
    """`timed`, nested or not, and padded: the losses of the chunks, and one gradient."""
    with jax.enable_x64():
        cell, params, x, state = case("generic", 26, **SIZES)
        layers = stacked(cell)

        def step(params, x, state):
            y, state = layers(params, x, state)
            return jnp.sum(jnp.sin(y) * x), state

        def loss(run):
            def total(params):
                losses, last = run(params, x, state)
                return jnp.sum(losses) + jnp.sum(last), losses

            return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

        (expected, each), slope = loss(timed(step, chunk=CHUNK, fill=0.0))
        assert each.shape == (7,)
        (found, parts), nested = loss(timed(step, chunk=CHUNK, fill=0.0, nested=True, segments=2))
        assert parts.shape == (8,) and parts[-1] == 0
        np.testing.assert_allclose(found, expected, rtol=1e-13)
        same(nested, slope, 1e-12)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"chunk": 0}, "at least 1 token, got 0"),
        ({"chunk": 4, "scheme": "F"}, "one of off, layer, .*got 'F'"),
        ({"chunk": 4, "layers": 2}, "'D' has no blocks of layers"),
        ({"chunk": 4, "scheme": "A", "segments": 2}, "'A' has no segments"),
        ({"chunk": 4, "scheme": "A", "layers": 3}, "divide the 2 layers, got 3"),
        ({"chunk": 3}, "8 tokens are no multiple of 1 x 3: give `fill`"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    cell, params, x, state = case("generic", 8, layers=2, width=4)
    with pytest.raises(ValueError, match=message):
        grid(cell, **options)(params, x, state)


def test_leaves_of_different_lengths_are_refused():
    cell, params, x, state = case("generic", 8, layers=2, width=4)
    with pytest.raises(ValueError, match="one leading axis"):
        grid(cell, chunk=4)(params, (x, x[:7]), state)
