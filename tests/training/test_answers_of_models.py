"""The loss of answers for whole models: encoders inside the chunk, adapters of a family."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmem as jm
from jaxmem.experiments.evaluate.recall_streams import streams
from jaxmem.experiments.finetune.loops import example_of
from jaxmem.models.qwen.tiny_checkpoint import write_tiny
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded
from jaxmem.training import lora
from jaxmem.training.answers import Example, encoded, objective, taught

SMALL = tiny.TinyConfig(
    width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["", "gated_delta"])
def test_encoders_inside_the_chunk_are_frozen(tmp_path, mixer):
    """Rows that were made before give the same loss and gradient; encoders have none."""
    more = {"mixer": mixer, "attend": "one_in_four"} if mixer else {}
    sizes = tiny.TinyConfig(**{**SMALL.__dict__, **more, "layers": 4 if mixer else 2})
    path = tmp_path / "small.safetensors"
    tiny.save(path, tiny.init(sizes, jax.random.key(0)), sizes)
    model = embedded(path)
    made = streams(
        model, count=2, seconds=8, moments=2, questions=4, chunk_seconds=2, difficulty="standard"
    )
    program = jm.compile(model, jm.OmniMem(12), chunk_pieces=2)
    step = jax.jit(jax.value_and_grad(objective(program), has_aux=True))
    batch = example_of(made)
    rows = batch._replace(inputs=encoded(program, model.params, batch.inputs))
    (inside, _), ours = step(model.params, batch)
    (before, _), theirs = step(model.params, rows)
    assert float(inside) == pytest.approx(float(before), rel=1e-6)
    for (path_, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(float(jnp.max(jnp.abs(b))), 1e-6)
        assert float(jnp.max(jnp.abs(a - b))) <= 1e-5 * scale, jax.tree_util.keystr(path_)
    frozen = jax.tree.leaves((ours["vision"], ours["audio"]))
    assert all(float(jnp.max(jnp.abs(x))) == 0 for x in frozen)
    if mixer:
        reached = jax.tree.leaves(ours["decoder"]["mixers"][0]["mixer"])
        assert all(float(jnp.max(jnp.abs(x))) > 0 for x in reached)


@pytest.mark.slow
def test_adapters_of_a_family_learn_the_answers_about_a_clip(tmp_path):
    """Qwen2.5-VL with random weights, through OmniMem: the loss falls below a tenth."""
    model = jm.for_frames(jm.load(write_tiny(tmp_path), dtype="float32"), (56, 56))
    held = jax.tree.map(np.array, model.params)
    shape = (4, 1, round(model.media.fps * model.media.piece_seconds), 56, 56, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    silent, valid = np.zeros((1, 1), np.float32), np.ones(1, bool)
    chunks = [model.preprocess(part, silent, valid, None, i) for i, part in enumerate(frames)]
    inputs = jax.tree.map(lambda *x: np.stack(x).reshape(1, 2, 2, *np.shape(x[0])), *chunks)
    asked = [
        [("What is shown now ?", "a shape"), ("What was the last sound ?", "a talk")],
        [("What is shown now ?", "the slide"), ("Which colour is it ?", "system")],
    ]
    words = [[(model.tokenize(q), model.tokenize_text(a)) for q, a in pairs] for pairs in asked]
    ids, target = taught([[(q.tolist(), a.tolist()) for q, a in pairs] for pairs in words])
    program = jm.compile(model, jm.OmniMem(24))
    loss = objective(program)
    adapters, optimizer = lora.init(model.params, jax.random.key(0), rank=8), optax.adam(2e-2)
    batch = Example(inputs, ids[None], target[None])

    @jax.jit
    def step(adapters, state, base):
        of = lambda adapters: loss(lora.merge(base, adapters, alpha=16), batch)
        (lost, found), slope = jax.value_and_grad(of, has_aux=True)(adapters)
        change, state = optimizer.update(slope, state)
        return optax.apply_updates(adapters, change), state, lost, found.accuracy

    state, losses = optimizer.init(adapters), []
    for _ in range(60):
        adapters, state, lost, right = step(adapters, state, model.params)
        losses.append(float(lost))
    assert losses[-1] < losses[0] / 10 and float(right) == 1.0, losses[:: len(losses) // 6]
    jax.tree.map(np.testing.assert_array_equal, held, model.params)
