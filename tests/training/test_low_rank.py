"""GaLore and APOLLO over stacks of layers: ranks, scales, limits, and the released APOLLO."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmem.training.low_rank import apollo, by_layer, galore, scale_by_apollo
from jaxmem.training.optimizers import optimizer

RNG = np.random.default_rng(0)


def gradients(*shape, steps=10):
    return [jnp.asarray(RNG.normal(size=shape), jnp.float32) for _ in range(steps)]


def run(transform, given, params=None, change=lambda state: state):
    state, out = change(transform.init(given[0] if params is None else params)), []
    step = jax.jit(transform.update)
    for g in given:
        update, state = step(g, state, params)
        out.append(update)
    return out, state


def norms(x, axis):
    return np.linalg.norm(np.asarray(x), axis=axis)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_a_square_orthogonal_projection_scales_as_adam(shape):
    """With r = m and P orthogonal, |R~| / |R| by column is Adam's on the turned gradient."""
    given, turn = gradients(*shape), np.linalg.qr(RNG.normal(size=(4, 4)))[0].astype(np.float32)
    found, _ = run(
        scale_by_apollo(4, growth=1e9, eps=1e-9),
        given,
        change=lambda s: s._replace(projection=turn),
    )
    wide = [g if shape[0] < shape[1] else g.T for g in given]
    expected, _ = run(optax.scale_by_adam(), [turn @ g for g in wide])
    for u, g, adam in zip(found, wide, expected, strict=True):
        u = u if shape[0] < shape[1] else u.T
        scale = norms(adam, 0) / norms(g, 0)
        np.testing.assert_allclose(u, g * scale[None], rtol=2e-5)


def test_a_tensor_has_one_scale():
    given = gradients(3, 5, steps=3)
    found, state = run(scale_by_apollo(1, per="tensor", scale=2.0), given)
    for u, g in zip(found, given, strict=True):
        ratio = np.asarray(u / g)
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert state.first.shape == (1, 5)


@pytest.mark.parametrize("limit", ["before", "after"])
def test_updates_grow_by_a_hundredth_at_most(limit):
    given = [g * 10.0**i for i, g in enumerate(gradients(3, 5, steps=6))]
    found, _ = run(scale_by_apollo(2, scale=7.0, limit=limit), given)
    sizes = [norms(u, None) for u in found]
    correct = [(1 - 0.999**t) ** 0.5 / (1 - 0.9**t) for t in range(1, 7)]
    sizes = [size / c for size, c in zip(sizes, correct, strict=True)]
    for one, two in itertools.pairwise(sizes):
        assert two <= 1.01 * one * (1 + 1e-5)
    assert any(two > 1.005 * one for one, two in itertools.pairwise(sizes))


def test_projections_are_drawn_anew():
    given, seen = gradients(3, 5, steps=7), []
    transform = scale_by_apollo(2, gap=3)
    state, step = transform.init(given[0]), jax.jit(transform.update)
    for g in given:
        _, state = step(g, state)
        seen.append(np.asarray(state.projection))
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(seen)]
    assert same == [True, True, False, True, True, False]


@pytest.mark.parametrize("make", [galore, apollo])
def test_a_stack_is_its_layers(make):
    """Every layer has a projection of its own gradient; nothing is shared but the key."""
    stacks = gradients(3, 6, 4, steps=3)
    found, _ = run(by_layer(make(0.1, 2)), stacks, stacks[0])
    for layer in range(3):
        alone, _ = run(make(0.1, 2), [g[layer] for g in stacks], stacks[0][layer])
        for a, b in zip(found, alone, strict=True):
            np.testing.assert_allclose(a[layer], b, atol=2e-5)


def test_galore_updates_have_its_rank():
    stacks = gradients(2, 8, 6, steps=2)
    found, _ = run(by_layer(galore(0.1, 3)), stacks, stacks[0])
    assert np.linalg.matrix_rank(np.asarray(found[-1]), tol=1e-5).tolist() == [3, 3]


@pytest.mark.parametrize("name", ["adam", "galore", "apollo"])
def test_every_optimizer_lowers_a_loss(name):
    """Of two layers' matrices and a bias; the moments of a matrix are of its rank."""
    target = gradients(2, 6, 5, steps=1)[0]
    params = {"q": {"kernel": jnp.zeros((2, 6, 5)), "bias": jnp.ones((2, 5))}}
    loss = lambda p: jnp.sum((p["q"]["kernel"] - target) ** 2) + jnp.sum(p["q"]["bias"] ** 2)
    transform = optimizer(30, rate=0.1, name=name, rank=2)
    state, first = transform.init(params), loss(params)
    sizes = sorted(x.size for x in jax.tree.leaves(state) if x.ndim == 3)
    assert name == "adam" or max(sizes) <= 2 * 2 * 6

    @jax.jit
    def step(params, state):
        change, state = transform.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, change), state

    for _ in range(30):
        params, state = step(params, state)
    assert loss(params) < 0.7 * first


def test_only_matrices_are_taken():
    with pytest.raises(ValueError, match=r"of matrices, got shape \(3,\)"):
        scale_by_apollo(2).init(jnp.ones(3))


@pytest.mark.parity
@pytest.mark.parametrize("per, rank, scale", [("channel", 3, 1.0), ("tensor", 1, 128.0)])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_ten_steps_are_those_of_the_released_apollo(per, rank, scale, shape):
    """Its projection is read from its state after the first step, and given to ours."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        released = pytest.importorskip("apollo_torch")
    weight = torch.nn.Parameter(torch.zeros(shape))
    group = {"params": [weight], "rank": rank, "proj": "random", "scale_type": per}
    group |= {"scale": scale, "update_proj_gap": 200, "proj_type": "std"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = released.APOLLOAdamW([group], lr=1.0)
    given, before, expected = gradients(*shape), np.zeros(shape), []
    for g in given:
        weight.grad = torch.tensor(np.asarray(g))
        theirs.step()
        after = weight.detach().numpy().copy()
        expected.append(after - before)
        before = after
    projector = theirs.state[weight]["projector"]
    matrix = jnp.asarray(projector.ortho_matrix.numpy())
    matrix = matrix if matrix.shape[0] == rank else matrix.T
    ours = scale_by_apollo(rank, per=per, scale=scale**0.5)
    found, _ = run(ours, given, change=lambda s: s._replace(projection=matrix))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(-np.asarray(a), b, rtol=1e-5, atol=1e-5)
