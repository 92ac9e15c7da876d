"""The flat pool: bytes at rest, runs, and windows that never touch another layer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.memory import layout as pool
from jaxmem.memory.base import State
from jaxmem.memory.layout import Run, cut_runs, make_layout

TABLE = [18, 7, 7, 9, 3, 3, 4, 3, 12]


def cost(rooms, runs):
    return sum((r.stop - r.first) * max(rooms[r.first : r.stop]) for r in runs)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_runs_are_optimal(count):
    runs = cut_runs(TABLE, count)
    assert runs[0].first == 0 and runs[-1].stop == len(TABLE)
    assert all(a.stop == b.first for a, b in itertools.pairwise(runs))
    brute = min(
        cost(TABLE, [Run(a, b, 0) for a, b in itertools.pairwise((0, *cuts, len(TABLE)))])
        for k in range(count)
        for cuts in itertools.combinations(range(1, len(TABLE)), k)
    )
    assert cost(TABLE, runs) == brute


def test_equal_layers_need_one_run():
    assert cut_runs([5] * 7, 6) == (Run(0, 7, 5),)


def test_windows_stay_inside_and_apart():
    layout = make_layout(TABLE, runs=3)
    assert layout.size == sum(TABLE)
    assert sorted(layout.offsets)[0] == 0
    state = State(jnp.zeros((layout.size,)), jnp.zeros((len(TABLE),)))
    for run in layout.runs:
        for l in range(run.first, run.stop):
            assert layout.offsets[l] + run.window <= layout.size
            mine = pool.read(layout, state, jnp.asarray(l), run.window)
            full = jax.tree.map(lambda x, l=l: jnp.full(x.shape, l + 1.0), mine)
            state = pool.write(layout, state, jnp.asarray(l), full)
    for l, s in enumerate(pool.layers(layout, state)):
        np.testing.assert_array_equal(s.slots, np.full(TABLE[l], l + 1.0))
        assert s.aux == l + 1


def test_read_is_empty_beyond_the_room():
    layout = make_layout([2, 5], runs=1)
    state = State(jnp.arange(1, 8), jnp.zeros((2,)))
    window = pool.read(layout, state, jnp.asarray(0), 5).slots
    np.testing.assert_array_equal(window, [1, 2, 0, 0, 0])


def test_a_layer_without_room_is_refused():
    with pytest.raises(ValueError, match="at least one slot"):
        make_layout([4, 0])


def test_on_a_gpu_the_order_of_a_window_is_held(monkeypatch):
    """Values and gradients are the same, also of several windows at once."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.arange(24.0).reshape(2, 3, 4)
    held = lambda x: jnp.sum(pool._as_held(x) ** 2)
    assert "layout_constraint" in str(jax.make_jaxpr(held)(x))
    np.testing.assert_array_equal(jax.jit(jax.vmap(held))(x), [506.0, 3818.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(held))(x), 2 * x)
