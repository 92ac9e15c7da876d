"""LoRA adapters: sums by hand, the chain rule, every mixer, files, and answers of a session."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmem as jm
from jaxmem.decoder import decoder
from jaxmem.decoder.checks import arrays_of
from jaxmem.models.adapters import FORMAT
from jaxmem.models.tiny.embedded import embedded
from jaxmem.models.tiny.mixers import MIXERS
from jaxmem.models.tiny.tiny import TinyConfig
from jaxmem.training import lora

ALPHA = 6


@pytest.fixture(scope="module")
def model():
    return embedded()


def drawn(params, rank=3, seed=0, at=lora.LINEAR):
    """Adapters whose b is not 0."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda k: lora.init(params, k, rank=rank, at=at), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


def assert_equal(one, other):
    one, other = arrays_of(one), arrays_of(other)
    assert one.keys() == other.keys()
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name], err_msg=name)


def test_new_adapters_change_nothing(model):
    adapters = lora.init(model.params, jax.random.key(1), rank=16)
    layers = adapters["decoder"]["layers"]
    assert set(adapters) == {"decoder"} and set(adapters["decoder"]) == {"layers"}
    assert set(layers) == set("qkvo") | {"up", "down"}
    assert layers["up"]["a"].shape == (4, 128, 16) and layers["up"]["b"].shape == (4, 16, 384)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(adapters))
    for pair in layers.values():
        bound = pair["a"].shape[1] ** -0.5
        assert not pair["b"].any() and 0.99 * bound < jnp.abs(pair["a"]).max() <= bound
    assert not np.allclose(layers["q"]["a"], layers["o"]["a"])  # keys of their own
    assert_equal(lora.merge(model.params, adapters, alpha=32), model.params)


def test_what_is_merged_is_the_sum(model):
    at = (*lora.QUERIES, "vision.up")  # stacked, and a single matrix
    adapters, before = drawn(model.params, at=at), arrays_of(model.params)
    merged = jax.jit(lambda p, a: lora.merge(p, a, alpha=ALPHA))(model.params, adapters)
    changed = [n for n, x in arrays_of(merged).items() if (x != before[n]).any()]
    assert changed == [*(f"decoder.layers.{n}.kernel" for n in "kqv"), "vision.up.kernel"]
    for name in changed:
        path = name.removesuffix(".kernel")
        a, b = (np.asarray(arrays_of(adapters)[f"{path}.{s}"], np.float64) for s in "ab")
        expected = before[name] + ALPHA / 3 * a @ b
        np.testing.assert_allclose(arrays_of(merged)[name], expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_rounded_once(model):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    adapters = drawn(half)
    found = lora.merge(half, adapters, alpha=ALPHA)["decoder"]["layers"]["q"]["kernel"]
    wide = lora.merge(jax.tree.map(lambda x: x.astype(jnp.float32), half), adapters, alpha=ALPHA)
    np.testing.assert_array_equal(
        found, wide["decoder"]["layers"]["q"]["kernel"].astype("bfloat16")
    )


def test_only_adapters_have_a_gradient():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"layers": {"q": {"kernel": draw(2, 5, 4), "bias": draw(2, 4)}}}
    adapters, x = drawn(params), draw(7, 5)

    def loss(params, adapters):
        q = lora.merge(params, adapters, alpha=ALPHA)["layers"]["q"]
        return jnp.sum(jnp.tanh(x @ q["kernel"][1] + q["bias"][1][None]))

    by_params, slope = jax.grad(loss, (0, 1))(params, adapters)
    assert not any(x.any() for x in jax.tree.leaves(by_params))
    whole = lora.merge(params, adapters, alpha=ALPHA)["layers"]["q"]
    after = 1 - jnp.tanh(x @ whole["kernel"][1] + whole["bias"][1][None]) ** 2
    by_kernel, scale = x.T @ after, ALPHA / 3
    pair, found = adapters["layers"]["q"], slope["layers"]["q"]
    np.testing.assert_allclose(found["a"][1], scale * by_kernel @ pair["b"][1].T, rtol=1e-4)
    np.testing.assert_allclose(found["b"][1], scale * pair["a"][1].T @ by_kernel, rtol=1e-4)
    assert not found["a"][0].any() and not found["b"][0].any()


@pytest.mark.parametrize(
    "name",
    [n if n in ("mamba2", "mom") else pytest.param(n, marks=pytest.mark.slow) for n in MIXERS],
)
def test_linear_maps_of_a_mixer(name):
    """All its kernels but those of no rows; beside a matrix as in it, where `linear` computes."""
    mixer = MIXERS[name](TinyConfig(width=16, heads=2, kv_heads=2, head_dim=8))
    weights = mixer.weights(16, jax.random.key(0))
    params = {"mixers": ({"mixer": jax.tree.map(lambda x: x[None], weights)},)}
    adapters = drawn(params)
    mine = adapters["mixers"]["0"]["mixer"]
    kernels = {k for k, x in weights.items() if isinstance(x, dict) and "kernel" in x}
    assert set(mine) == kernels - {"conv", "memory"}
    if name == "mom":  # a stack of its own for each memory
        assert mine["k"]["a"].shape == (1, *weights["k"]["kernel"].shape[:2], 3)
        adapters["mixers"]["0"]["mixer"] = {n: mine[n] for n in ("q", "z", "out", "router")}
    x = jax.random.normal(jax.random.key(1), (20, 16))

    @jax.jit
    def outputs(params):
        one = jax.tree.map(lambda x: x[0], params["mixers"][0]["mixer"])
        return mixer.chunk(one, mixer.init(16), x, jnp.ones(len(x), bool))[0]

    merged, beside = (f(params, adapters, alpha=ALPHA) for f in (lora.merge, lora.attach))
    assert isinstance(merged["mixers"], tuple) and isinstance(beside["mixers"], tuple)
    np.testing.assert_allclose(outputs(merged), outputs(beside), rtol=2e-4, atol=2e-4)
    assert np.abs(outputs(merged) - outputs(params)).max() > 0.1


def test_a_layer_that_attends_with_adapters_beside_its_matrices(model):
    adapters, h = drawn(model.params), jax.random.normal(jax.random.key(0), (5, 128))

    @jax.jit
    def outputs(params):
        layer = decoder.layer_at(params["decoder"], 2)
        q, k, v = decoder.qkv(layer, model.decoder, h)
        return q, k, v, decoder.finish(layer, model.decoder, h, q)

    merged, beside = (f(model.params, adapters, alpha=ALPHA) for f in (lora.merge, lora.attach))
    for one, two, plain in zip(
        outputs(merged), outputs(beside), outputs(model.params), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-4)
        assert np.abs(one - plain).max() > 0.1


def answers(model, params):
    """Answers after two seconds of noise, through OmniMem."""
    rng = np.random.default_rng(0)
    session = jm.Session(model._replace(params=params), jm.OmniMem(40))
    for _ in range(2):
        frames = rng.integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)
        samples = 0.1 * rng.normal(size=16000).astype(np.float32)
        session.feed(SimpleNamespace(frames=frames, samples=samples))
    questions = ("what is the last shape?", "where was the last shape?")
    return [session.ask(q).text for q in questions]


def test_what_is_saved_answers_as_what_was_made(model, tmp_path):
    base = jax.tree.map(np.asarray, model.params)
    adapters = drawn(model.params, rank=16)
    path = tmp_path / "new" / "mine.safetensors"
    mark = lora.digest(model.params)
    assert lora.save(path, adapters, base=mark, alpha=ALPHA, name="tiny") == path
    again, alpha = lora.load(path, model.params)
    assert alpha == ALPHA
    assert_equal(again, adapters)
    made, read, plain = (
        answers(model, params)
        for params in (
            lora.merge(model.params, adapters, alpha=ALPHA),
            lora.merge(model.params, again, alpha=alpha),
            model.params,
        )
    )
    assert made == read != plain
    assert_equal(base, model.params)  # the base is as it was
    bare = {**model.params["decoder"]["layers"]}
    del bare["retention"]  # another score, or none, is the same base
    other = model.params["decoder"] | {"layers": bare}
    assert lora.digest(model.params | {"decoder": other}) == mark


def test_files_that_are_refused(model, tmp_path):
    path = tmp_path / "mine.safetensors"
    lora.save(path, drawn(model.params), base=lora.digest(model.params), alpha=1, name="my base")
    other = jax.tree.map(lambda x: x, model.params)
    other["decoder"]["layers"]["o"]["kernel"] = (
        other["decoder"]["layers"]["o"]["kernel"].at[3, 5, 7].add(1e-3)
    )
    with pytest.raises(ValueError, match="was trained on my base .*, not on these .*load my base"):
        lora.load(path, other)
    save_file(load_file(path), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="plain.safetensors is no file of adapters that jaxmem"):
        lora.load(tmp_path / "plain.safetensors", model.params)
    for head in ({"name": "my base"}, {"base": "x", "name": "my base", "alpha": "x"}):
        save_file(load_file(path), tmp_path / "head.safetensors", {"format": FORMAT, **head})
        with pytest.raises(ValueError, match="does not say what it was trained on, or its alpha"):
            lora.load(tmp_path / "head.safetensors", model.params)
    path.write_bytes(path.read_bytes()[:-9])
    for where in (path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"{where} is no whole file of adapters"):
            lora.load(where, model.params)


def test_what_makes_no_sense(model):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="rank of adapters must be positive, got 0"):
        lora.init(model.params, key, rank=0)
    with pytest.raises(ValueError, match=r"is called \*layers.w; give .* of .*decoder.layers.q"):
        lora.init(model.params, key, rank=2, at=("*layers.q", "*layers.w"))
    adapters = drawn(model.params)
    adapters["decoder"]["layers"]["q"]["b"] = jnp.zeros((4, 3, 127))
    adapters["decoder"]["layers"]["w"] = {"a": jnp.zeros((4, 128, 3))}
    for use in (lora.merge, lora.attach):
        with pytest.raises(ValueError, match=r"2 adapter\(s\) do not fit") as caught:
            use(model.params, adapters, alpha=1)
        assert "layers.q: {'a': (4, 128, 3), 'b': (4, 3, 127)}, the weights have (4, 128, 128)" in (
            str(caught.value)
        )
        assert "no such matrix" in str(caught.value)
