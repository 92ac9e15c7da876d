"""Laws of every mixer: one pass, single tokens and any cut of a stream are the same; padding."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.mixers.base import stacked
from jaxmem.mixers.feed_forward import FeedForward
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.linear import LinearAttention
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.mixers.mom import MoM
from jaxmem.mixers.titans import Titans

WIDTH, ROWS = 12, 19
MIXERS = {
    "mamba2": Mamba2(4, 6, 5, groups=2, block=8),
    "mamba2_biases": Mamba2(2, 4, 3, kernel=2, bias=True, conv_bias=False, limit=(0.02, 0.3)),
    "mamba2_blocks": Mamba2(3, 4, 5, block=4, implementation="xla_blocks"),
    "gated_delta": GatedDelta(4, 2, 5, 6, block=8),
    "linear": LinearAttention(2, 8, block=8),
    "mom": MoM(2, 4, block=8),
    "titans": Titans(2, 4, 2, rows=4),
    "titans-each": Titans(2, 4, 2, rows=4, read="each"),
    "titans-released": Titans(2, 4, 2, rows=4, read="released"),
    "feed_forward": FeedForward(7, bias=True),
    "gated_delta_blocks": GatedDelta(2, key_dim=4, block=4, implementation="xla_blocks"),
}
EVERY = pytest.mark.parametrize("name", MIXERS)


def given(name, rows=ROWS):
    mixer = MIXERS[name]
    weights = mixer.weights(WIDTH, jax.random.key(0))
    return mixer, weights, jax.random.normal(jax.random.key(1), (rows, WIDTH))


@cache
def compiled(mixer):
    """The mixer's chunk, compiled once for each number of rows."""
    return jax.jit(mixer.chunk)


def run(mixer, weights, x, sizes, state=None):
    """The outputs of chunks of these sizes, and the state after them."""
    step, out, at = compiled(mixer), [], 0
    state = mixer.init(WIDTH) if state is None else state
    for size in sizes:
        y, state = step(weights, state, x[at : at + size], jnp.ones(size, bool))
        out.append(y)
        at += size
    return jnp.concatenate(out), state


def close(a, b, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def at_leisure(*slow):
    """Every mixer, those whose programs take long to compile with the slow tests."""
    marked = [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in MIXERS]
    return pytest.mark.parametrize("name", marked)


def check_cut(name, sizes):
    mixer, weights, x = given(name)
    whole = run(mixer, weights, x, (ROWS,))
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(whole))
    close(run(mixer, weights, x, sizes), whole)


@EVERY
@pytest.mark.parametrize("sizes", [(1,) * ROWS, (16, 3)], ids=str)
def test_any_cut_of_a_stream_is_one_pass(name, sizes):
    check_cut(name, sizes)


@at_leisure("linear", "mom", "titans", "titans-each", "titans-released")
def test_small_and_odd_cuts_are_one_pass(name):
    check_cut(name, (2, 1, 9, 7))


@EVERY
def test_padding_changes_no_bit_of_the_state_whatever_it_holds(name):
    mixer, weights, x = given(name)
    step = compiled(mixer)
    _, before = run(mixer, weights, x, (ROWS,))
    _, after = step(weights, before, x, jnp.zeros(ROWS, bool))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    real = jnp.arange(ROWS) < 11
    y, state = step(weights, before, x, real)
    other, same = step(weights, before, jnp.where(real[:, None], x, 1e4), real)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    np.testing.assert_array_equal(other[:11], y[:11])
    close(state, run(mixer, weights, x[:11], (11,), before)[1])


@EVERY
def test_a_chunk_of_no_rows_is_refused(name):
    mixer, weights, x = given(name)
    with pytest.raises(ValueError, match="a chunk has no rows: leave it out, or give rows of pad"):
        mixer.chunk(weights, mixer.init(WIDTH), x[:0], jnp.ones(0, bool))


@EVERY
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_states_keep_their_dtypes_whatever_those_of_the_rows(name, dtype):
    with jax.enable_x64():
        mixer, weights, x = given(name)
        weights, x = jax.tree.map(lambda v: v.astype(dtype), (weights, x))
        state = jax.tree.map(lambda v: v.astype(np.float32), mixer.init(WIDTH))
        _, after = jax.eval_shape(mixer.chunk, weights, state, x, jnp.ones(ROWS, bool))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after))


@EVERY
def test_states_keep_shapes_dtypes_and_bytes(name):
    mixer, weights, x = given(name)
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    y, state = compiled(mixer)(low, mixer.init(WIDTH), x.astype(jnp.bfloat16), jnp.ones(ROWS, bool))
    assert y.dtype == jnp.bfloat16
    start = jax.tree.map(lambda v: (v.shape, v.dtype), mixer.init(WIDTH))
    assert jax.tree.map(lambda v: (v.shape, v.dtype), state) == start
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))
    several = stacked(mixer, WIDTH, 3)
    assert jax.tree.map(lambda v: v.shape[1:], several) == jax.tree.map(lambda v: v.shape, state)


@EVERY
def test_the_same_step_is_compiled_once(name):
    mixer, weights, x = given(name, 8)
    traced = []

    @jax.jit
    def step(state, x, count):
        traced.append(x.shape)
        return mixer.chunk(weights, state, x, jnp.arange(8) < count)

    state = mixer.init(WIDTH)
    for count in (8, 3, 0):
        _, state = step(state, x, count)
    assert len(traced) == 1


@at_leisure("mom", "titans", "titans-each", "titans-released")
def test_gradients_in_float64_are_those_of_single_tokens_through_the_state(name):
    with jax.enable_x64():
        mixer, weights, x = given(name, 7)
        state = jax.tree.map(lambda v: v.astype(np.float64) + 0.1, mixer.init(WIDTH))
        weights, x = jax.tree.map(lambda v: v.astype(np.float64), (weights, x))

        def whole(weights, state, x):
            y, state = mixer.chunk(weights, state, x, jnp.ones(len(x), bool))
            return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(v)) for v in state)

        def single(weights, state, x):
            def body(state, row):
                y, state = mixer.chunk(weights, state, row[None], jnp.ones(1, bool))
                return state, y[0]

            state, y = jax.lax.scan(body, state, x)
            return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(v)) for v in state)

        one, two = (jax.jit(jax.grad(f, (0, 1, 2)))(weights, state, x) for f in (whole, single))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(one))
    close(one, two, 1e-10)


@EVERY
def test_streams_side_by_side_are_the_streams_one_by_one(name):
    mixer, weights, x = given(name)
    both = jnp.stack([x, x[::-1]])
    states = stacked(mixer, WIDTH, 2)
    step = jax.vmap(mixer.chunk, (None, 0, 0, None))
    got = jax.jit(step)(weights, states, both, jnp.ones(ROWS, bool))
    for i in range(2):
        mine = jax.tree.map(lambda v, i=i: v[i], got)
        close(mine, run(mixer, weights, both[i], (ROWS,)))


@pytest.mark.parametrize(
    ("make", "repair"),
    [
        (lambda: Mamba2(4, groups=3), "that divide .*: raise .* set groups to 1"),
        (lambda: Mamba2(4, limit=(0.3, 0.02)), r"got \(0.3, 0.02\): set the smaller one first"),
        (lambda: Mamba2(4, limit=(-3.0, -1.0)), r"got \(-3.0, -1.0\): set the smaller one first"),
        (lambda: Mamba2(4, limit=(np.inf, np.inf)), r"is finite .* got \(inf, inf\): set"),
        (lambda: Mamba2(4, limit=[0.0, 1.0]), r"a tuple .* got \[0.0, 1.0\]: set"),
        (lambda: Mamba2(4, limit=1.0), "a tuple .* got 1.0: set"),
        (lambda: Mamba2(4, limit=("0", "1")), r"got \('0', '1'\): set"),
        (lambda: Mamba2(2.0), "Mamba2 needs whole numbers .* heads=2.0: set heads to a whole"),
        (lambda: Mamba2(4, eps=-1), "Mamba2 needs a positive eps, got eps=-1: set eps to a finite"),
        (lambda: GatedDelta(2, kernel="4"), "GatedDelta needs whole numbers .* kernel='4': set"),
        (lambda: GatedDelta(2, eps=np.nan), "GatedDelta needs a positive eps, got eps=nan: set"),
        (lambda: MoM(2, chosen=True), "MoM needs whole numbers .* chosen=True: set chosen"),
        (lambda: MoM(2, eps="0"), "MoM needs a positive eps, got eps='0': set eps"),
        (lambda: FeedForward(0), "at least 1, got 0"),
        (lambda: FeedForward(7.5), "FeedForward needs whole numbers .* inner=7.5: set inner"),
        (lambda: Titans(4, rows=0.5), "Titans needs whole numbers .* rows=0.5: set rows"),
        (lambda: Titans(4, rate=np.inf), "Titans needs a positive rate, got rate=inf: set rate"),
        (lambda: Titans(4, max_grad_norm=0), "a positive max_grad_norm, got max_grad_norm=0: set"),
        (lambda: LinearAttention(4, base=-1), "LinearAttention needs a positive base, .* set base"),
        (lambda: LinearAttention(4.0), "LinearAttention needs whole numbers .* heads=4.0: set"),
        (lambda: GatedDelta(4, 3), "that divide .*: raise .* set key_heads to a divisor of heads"),
        (lambda: MoM(4, chosen=9), "at most .*: raise .* set chosen to at most memories"),
        (lambda: Titans(4, rows=0), "positive .*: raise what is too small above 0"),
        (lambda: Titans(4, read="after"), "got 'after': set read='before'"),
        (lambda: LinearAttention(4, 7), "even .*: raise .* set head_dim to an even number"),
        (lambda: LinearAttention(4, within="row"), "got 'row': set within='causal'"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_their_repair(make, repair):
    with pytest.raises(ValueError, match=repair):
        make()


@pytest.mark.parametrize("mixer", [Mamba2(64, 8), GatedDelta(64, key_dim=8), MoM(64, 8)])
def test_a_new_state_remembers_for_a_while(mixer):
    """Half of it is left after dozens to thousands of rows, not after one or two."""
    made = mixer.weights(16, jax.random.key(0))
    decay = np.exp(made["a_log"]) * np.log1p(np.exp(np.asarray(made["dt_bias"], np.float64)))
    half = np.sort(np.log(2) / decay)
    assert half[len(half) // 4] > 1 and 4 < np.median(half) < 200
