"""Learning what `Retention` keeps: the pass over gated tokens, its gradient, and that it learns."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

import jaxmem as jm
from jaxmem.bound import question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.program import init_carry, layers_of, make_program, spec_of
from jaxmem.decoder.scorer import add_scorer, init_scorer
from jaxmem.experiments import scorer as command
from jaxmem.memory.base import kv_of
from jaxmem.models.scorer import load_scorer
from jaxmem.training import scorer as training

CFG = small.config(axes=1)
SIZE, MANY = 8, 28
ROWS = jax.tree.map(np.asarray, small.stream_rows(CFG, 4, SIZE, lengths=[8, 5, 8, 7]))
QUOTAS = jnp.asarray([6, 3], jnp.int32)


@cache
def weights():
    return small.params(CFG)


@cache
def example():
    """Return a stream with questions after 13 and after 28 tokens, and random answers."""
    program = make_program(CFG, jm.Full(MANY), spec_of(CFG, chunk=SIZE))
    carry = jm.stream(weights(), init_carry(program), ROWS, program=program)
    tokens = [kv_of(state.slots) for state in layers_of(program, carry)]
    asked = [question_rows(weights(), ids, program=program, size=3) for ids in ([3, 1, 4], [2, 7])]
    rows = jax.tree.map(lambda *x: jnp.stack(x), *asked)
    end = np.cumsum(np.asarray(ROWS.advance), axis=0)
    return training.Examples(
        tokens=jax.tree.map(lambda *x: jnp.stack(x), *tokens),
        seen=np.asarray([13, MANY], np.int32),
        begin=np.stack([end[1], end[3]]),
        rows=jax.tree.map(lambda x: jnp.stack([x, x]), rows),
        target=np.asarray([[[-1, -1, 5], [-1, 9, -1]], [[-1, -1, 8], [-1, 2, -1]]], np.int32),
    )


@cache
def scorer():
    return init_scorer(CFG, jax.random.key(0))


def test_what_is_kept_is_what_the_memory_keeps():
    """And a question over it is answered as through the memory, where chunks see everything."""
    memory = jm.Retention(9, audio_share=1 / 3, logits=False)
    program = make_program(CFG, memory, spec_of(CFG, chunk=MANY))
    x, pos, end = small.flat(ROWS)
    kinds = np.concatenate([k[k != 0] for k in ROWS.modality])
    one = jm.Embeds(x[None], pos[None].astype(np.int32), kinds[None], end[None].astype(np.int32))
    params = add_scorer(weights(), scorer())
    carry = jm.stream(params, init_carry(program), one, program=program)
    tokens, rows = example().tokens, small.chunk(small.chunk(example().rows, 1), 0)
    gates = jax.vmap(lambda s, t: training.kept(s, t, MANY, QUOTAS))(scorer(), tokens)
    for gate, state in zip(np.asarray(gates), layers_of(program, carry), strict=True):
        for head, open_ in enumerate(gate):
            held = state.slots.kv.index[:, head][state.slots.kv.modality[:, head] != 0]
            np.testing.assert_array_equal(np.nonzero(open_)[0], held)
    got = jax.jit(training.answers, static_argnums=1)(
        params, CFG, tokens, gates, example().begin[1], rows
    )
    _, h = small.prefilled(params, program, carry, rows, room=1)
    np.testing.assert_allclose(got, dec.logits(params, CFG, h), atol=1e-4)


def test_gradient_reaches_what_was_dropped_and_moves_the_loss():
    def loss(scorer):
        return training.loss(scorer, weights(), CFG, example(), QUOTAS)[0]

    slope = jax.jit(jax.grad(loss))(scorer())
    assert all(np.all(np.isfinite(x)) and np.any(x != 0) for x in jax.tree.leaves(slope))

    def of_gates(gates):
        one = example()
        rows = small.chunk(small.chunk(one.rows, 1), 0)
        score = training.answers(weights(), CFG, one.tokens, gates, one.begin[1], rows)
        return -jax.nn.log_softmax(score[2])[8]

    gates = jax.vmap(lambda s, t: training.kept(s, t, MANY, QUOTAS))(scorer(), example().tokens)
    by_gate = jax.jit(jax.grad(of_gates))(gates)
    assert np.any(np.asarray(by_gate)[np.asarray(gates) == 0] != 0)


def test_fit_lowers_the_loss_and_leaves_the_decoder_alone():
    before = jax.tree.map(np.array, weights())
    batch, told = jax.tree.map(lambda x: x[None], example()), []
    found = training.fit(
        scorer(), weights(), CFG, [(batch, QUOTAS)] * 25, optax.adam(0.05),
        report=lambda step, loss, right: told.append((step, loss)),
    )  # fmt: skip
    assert [step for step, _ in told] == list(range(1, 26))
    assert min(loss for _, loss in told) < told[0][1] - 0.05
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, scorer())
    jax.tree.map(np.testing.assert_array_equal, before, weights())


@pytest.mark.slow
def test_command_writes_a_scorer_that_the_embedded_model_takes(tmp_path, capsys):
    out = tmp_path / "scorer.safetensors"
    args = ["--streams", "2", "--batch", "1", "--steps", "2", "--seconds", "16", "--questions", "4"]
    assert command.main([*args, "--out", str(out)]) == 0
    assert "right" in capsys.readouterr().out
    model = jm.with_scorer(jm.load("tiny"), out)
    assert jm.compile(model, jm.Retention(8)) is not None
    found = load_scorer(out)
    assert found["kernel"].shape == (4, 64, 2) and found["a"].shape == (4, 2)
    other = jm.load("qwen2.5-vl:7b", abstract=True)
    with pytest.raises(ValueError, match=r"kernel \(4, 64, 2\) and a \(4, 2\), expected kernel"):
        jm.with_scorer(other, out)


def test_bad_input_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--slots", "9", "4"])
    assert stopped.value.code == 2 and "1 < slots[0] <= slots[1]" in capsys.readouterr().err
    assert command.main(["--weights", str(tmp_path / "none.safetensors")]) == 2
    assert "no weights at" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is no file of a scorer"):
        load_scorer(tmp_path / "none.safetensors")
