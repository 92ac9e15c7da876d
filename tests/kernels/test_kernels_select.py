"""Selection against a sort with the same rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.kernels.select import gate, select, top_mask


def expected_mask(scores, caps):
    """The best `cap` of every group, newest first among equals, by plain sorting."""
    mask = np.zeros(scores.shape, bool)
    for c, row in enumerate(np.where(np.isnan(scores), -np.inf, scores)):
        order = sorted(range(len(row)), key=lambda i: (-row[i], -i))
        chosen = [i for i in order if row[i] > -np.inf][: max(int(caps[c]), 0)]
        mask[c, chosen] = True
    return mask


def check(scores, caps, slots, index, keep):
    wanted = np.flatnonzero(expected_mask(scores, caps).any(0))[-slots:] if slots else []
    index, keep = np.asarray(index), np.asarray(keep)
    assert index.shape == keep.shape == (slots,)
    assert index.dtype == np.int32 and keep.dtype == bool
    np.testing.assert_array_equal(keep, np.arange(slots) < len(wanted))
    np.testing.assert_array_equal(index[keep], wanted)
    assert np.all((index >= 0) & (index < scores.shape[1]))


def draw(kind, groups, n, rng):
    x = rng.normal(size=(groups, n)).astype(np.float32)
    if kind == "ties":
        x = rng.integers(-2, 3, (groups, n)).astype(np.float32)
        x[:, ::3] *= -0.0
    if kind == "equal":
        x = np.full((groups, n), 0.25, np.float32)
    if kind == "masked":
        x[rng.random((groups, n)) < 0.6] = -np.inf
    if kind == "never":
        x[:] = -np.inf
    if kind == "odd":
        odd = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38]
        x = rng.choice(np.asarray(odd, np.float32), (groups, n))
    return x


@pytest.mark.parametrize("kind", ["random", "ties", "equal", "masked", "never", "odd"])
@pytest.mark.parametrize(("groups", "n", "slots"), [(1, 1, 1), (1, 90, 40), (3, 257, 200)])
def test_equals_sorting(kind, groups, n, slots):
    rng = np.random.default_rng(n)
    run = jax.jit(lambda s, c: select(s, c, slots=slots))
    for caps in ([0] * groups, [1] * groups, [n // 3] * groups, [n, -1, 2 * n][:groups]):
        scores = draw(kind, groups, n, rng)
        caps = np.asarray(caps, np.int32)
        check(scores, caps, slots, *run(scores, caps))


@pytest.mark.parametrize("implementation", [None, "pallas_interpret"])
def test_few_of_many_equal_sorting(implementation):
    rng, (groups, n, most, slots) = np.random.default_rng(0), (3, 330, 20, 30)

    @jax.jit
    def run(s, c):
        how = {"most": most, "implementation": implementation}
        return *select(s, c, slots=slots, **how), top_mask(s, c, **how)

    text = run.lower(jnp.zeros((groups, n)), jnp.zeros((groups,), jnp.int32)).as_text()
    assert ("top_k" in text) == (implementation is None)
    for kind in ("random", "ties", "equal", "masked", "never", "odd"):
        for caps in ([0, 1, 20], [20, 20, 20], [-1, 300, 7]):
            scores, caps = draw(kind, groups, n, rng), np.asarray(caps, np.int32)
            index, keep, mask = run(scores, caps)
            check(scores, np.minimum(caps, most), slots, index, keep)
            np.testing.assert_array_equal(mask, expected_mask(scores, np.minimum(caps, most)))


def test_many_of_few_are_not_sorted():
    run = lambda s, c: (select(s, c, slots=8, most=8), top_mask(s, c, most=8))
    lowered = jax.jit(run).lower(jnp.zeros((1, 100)), jnp.zeros((1,), jnp.int32))
    assert "top_k" not in lowered.as_text()


def test_union_larger_than_slots_loses_the_oldest():
    scores = jnp.asarray([[9.0, 8, 0, 0, 0, 0], [0, 0, 0, 0, 7, 8]])
    index, keep = jax.jit(lambda s, c: select(s, c, slots=3))(scores, jnp.asarray([2, 2]))
    assert index.tolist() == [1, 4, 5] and keep.all()
    index, keep = select(scores, jnp.asarray([2, 2]), slots=0)
    assert index.shape == keep.shape == (0,)


def test_vmap_and_scan_equal_one_by_one():
    rng = np.random.default_rng(0)
    scores = np.stack([draw(k, 2, 70, rng) for k in ("random", "ties", "masked", "odd")])
    caps = np.asarray([[5, 60], [0, 7], [70, 1], [3, 3]], np.int32)
    many = jax.jit(jax.vmap(lambda s, c: select(s, c, slots=50)))(scores, caps)
    both = jnp.asarray(scores), jnp.asarray(caps)
    _, steps = jax.lax.scan(lambda x, i: (x, select(*i, slots=50)), 0, both)
    masks = jax.jit(jax.vmap(top_mask))(scores, caps)
    for i in range(len(caps)):
        check(scores[i], caps[i], 50, many[0][i], many[1][i])
        check(scores[i], caps[i], 50, steps[0][i], steps[1][i])
        np.testing.assert_array_equal(masks[i], expected_mask(scores[i], caps[i]))


def test_bfloat16_scores_are_compared_exactly():
    scores = jnp.asarray([[1.0, 1.0078125, 1.0, -2.0]], jnp.bfloat16)
    index, keep = jax.jit(lambda s, c: select(s, c, slots=4))(scores, jnp.asarray([2]))
    assert index[:2].tolist() == [1, 2] and keep.tolist() == [True, True, False, False]


def test_gate_chooses_hard_and_learns_softly():
    never = -jnp.inf
    scores = jnp.asarray([[0.5, -1.0, 2.0, never, 0.75], [never] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]])
    caps, weight = jnp.asarray([2, 3, 0]), jnp.asarray([[3.0, 1.0, -2.0, 5.0, 0.5]])
    run = jax.jit(lambda s: gate(s, caps, temperature=0.5))
    np.testing.assert_array_equal(run(scores), top_mask(scores, caps).astype(jnp.float32))
    pulled = jax.jit(jax.grad(lambda s: jnp.sum(run(s) * weight)))(scores)
    x = (np.asarray([0.5, -1.0, 2.0, 0.75]) - 0.75) / 0.5  # 0.75 is the lowest chosen score
    slope = np.exp(-x) / (1 + np.exp(-x)) ** 2 / 0.5
    expected = np.zeros((3, 5))
    expected[0, [0, 1, 2, 4]] = slope * np.asarray([3.0, 1.0, -2.0, 0.5])
    np.testing.assert_allclose(pulled, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="temperature must be positive"):
        gate(scores, caps, temperature=0.0)


def test_errors_name_what_came():
    with pytest.raises(ValueError, match=r"scores must be \[C, N\]"):
        select(jnp.zeros(4), jnp.zeros(1, jnp.int32), slots=2)
    with pytest.raises(ValueError, match="slots must not be negative"):
        select(jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32), slots=-1)
    with pytest.raises(ValueError, match="most must not be negative"):
        select(jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32), slots=2, most=-1)
    with pytest.raises(ValueError, match="implementation must be None"):
        top_mask(jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32), implementation="gpu")
