"""The loss of answers through a memory: its gradient, what it costs, budgets, modes, refusals."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import jaxmem as jm
from jaxmem.asking import log_prob
from jaxmem.bound import bind, ids_as_rows, question_rows
from jaxmem.decoder.answer import answer_logits
from jaxmem.decoder.program import Text, init_carry, make_program, spec_of
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import FeatureMemory, kv_of
from jaxmem.memory.by_name import build
from jaxmem.memory.transforms.quantized import Quantized
from jaxmem.training.answers import (
    Example,
    numbers_of,
    objective,
    stream_loss,
    taught,
    token_log_probs,
)
from jaxmem.training.differentiable import check_differentiable
from jaxmem.training.plan import temporary

pytestmark = pytest.mark.usefixtures("no_programs")
SIZE, SLOTS = 8, 12
CFG = small.config(axes=1)
ROWS = jax.tree.map(np.asarray, small.stream_rows(CFG, 4, SIZE, lengths=[8, 5, 8, 7]))
ASKED = [[((3, 1, 4), (5, 5)), ((2,), (7, 9))], [((3, 1, 4), (6, 2)), ((8, 7), (9, 1))]]


def weights(cfg=CFG):
    return small.scored(small.params(cfg), cfg)


@cache
def example(streams=1):
    """Return streams of two parts of two chunks, with two questions after each."""
    ids, target = taught(ASKED)
    rows = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), ROWS)
    one = Example(rows, ids, target)
    return jax.tree.map(lambda x: np.stack([x] * streams), one)


def memory_of(name, slots=SLOTS, cfg=CFG):
    spec = spec_of(cfg, chunk=SIZE, frame=(2, 2), audio_tokens=0)
    if name == "banked":
        return jm.WithBank(jm.OmniMem(slots), 24, block=4, topk=2, space="device")
    return build(name, slots, spec, small.options(SIZE).get(name))


def program_of(memory, cfg=CFG):
    spec = spec_of(cfg, chunk=SIZE, frame=(2, 2), audio_tokens=0)
    memory = memory_of(memory, cfg=cfg) if isinstance(memory, str) else memory
    program = make_program(cfg, memory, spec)
    asked = program.requires.probes
    return program if asked is None else replace(program, probes=(Text((1, 2, 3)),) * asked.count)


def plain(params, program, batch, constant=None):
    """The loss by the streaming loop as it is; with `constant`, by a carry of these weights."""
    fixed = params if constant is None else constant
    one = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)

    def ask(carry, ids, target):
        own = jnp.argmax(target >= 0).astype(jnp.int32) + 1
        rows = ids_as_rows(params, ids, program=program)
        score = answer_logits(params, program, carry, rows, asked=own)
        return -jnp.sum(jnp.where(target >= 0, token_log_probs(score, target), 0))

    def moment(carry, given):
        rows, ids, target = given
        carry = jm.stream(bind(program, fixed), carry, rows, program=program)
        return carry, jax.vmap(partial(ask, carry))(ids, target)

    _, lost = jax.lax.scan(moment, init_carry(program), (one.inputs, one.ids, one.target))
    return jnp.sum(lost) / jnp.sum(one.target >= 0)


def close(ours, theirs, rel):
    """Assert that gradients are equal to `rel` of the largest entry of each array."""
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(float(jnp.max(jnp.abs(b))), 1e-6)
        assert float(jnp.max(jnp.abs(a - b))) <= rel * scale, jax.tree_util.keystr(path)


@cache
def step_of(name, mode, **more):
    """Return the program of a memory, and its compiled value and gradient."""
    program = program_of(name)
    loss = objective(program, mode=mode, **more)
    return program, jax.jit(jax.value_and_grad(loss, has_aux=True))


def at(program, memory):
    """Return the streams within the budget of a memory."""
    aux = numbers_of(program, memory)
    return example()._replace(aux=jax.tree.map(lambda x: x[None], aux))


def whole(program):
    """Return the streams within the program's own budget."""
    return example() if program.memory.sized_by_options else at(program, program.memory)


GRADIENTS = ["recent", *(pytest.param(n, marks=pytest.mark.slow) for n in (
    "full", "omnimem", "banked", "snapkv", "hermes", "retention"))]  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_is_that_of_the_plain_loop(name):
    (program, step), params = step_of(name, "through"), weights()
    (loss, metrics), ours = step(params, whole(program))
    plainly = partial(plain, program=program, batch=example())
    want, theirs = jax.jit(jax.value_and_grad(plainly))(params)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    # The two numbers of a head's score are sums over all tokens, in another order.
    close(ours, theirs, 5e-6 if name == "retention" else 1e-6)
    assert float(metrics.loss) == float(loss) and 0 <= metrics.accuracy <= 1


def test_one_compilation_serves_all_budgets_and_each_is_that_of_its_own_memory():
    (program, step), params = step_of("omnimem", "through"), weights()
    memories = {slots: memory_of("omnimem", slots) for slots in (12, 6, 3)}
    found = {n: float(step(params, at(program, m))[0][0]) for n, m in memories.items()}
    assert step._cache_size() == 1 and len(set(found.values())) == 3
    program, each = program_of(memories[6]), []
    carry = jm.start(program)
    for moment, asked in enumerate(ASKED):
        rows = jax.tree.map(lambda x, at=2 * moment: x[at : at + 2], ROWS)
        carry = jm.stream(params, carry, rows, program=program)
        for question, answer in asked:
            rows = question_rows(params, question, program=program)
            each.append(log_prob(params, carry, rows, np.array(answer), program=program))
    np.testing.assert_allclose(found[6], -np.mean(np.concatenate(each)), rtol=1e-5)


EVERY = [n for n in MEMORIES if not MEMORIES[n].sized_by_options]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_numbers_of_a_smaller_budget_are_the_smaller_memory(name):
    """For every memory that does not say otherwise: the same answers, from arrays of one size."""
    large, small_ = program_of(memory_of(name, 24)), program_of(memory_of(name))
    carry = jm.start(large)
    aux = numbers_of(large, small_.memory)
    carry = carry._replace(state=carry.state._replace(aux=aux))
    out = []
    for program, begin in ((large, carry), (small_, jm.start(small_))):
        bound = bind(program, weights())
        after = jm.stream(bound, begin, ROWS, program=program)
        asked = question_rows(weights(), (3, 1, 4), program=program)
        out.append(jm.ask(bound, after, asked, program=program).first)
    np.testing.assert_allclose(*out, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in MEMORIES if n not in EVERY])
def test_what_a_budget_is_beyond_numbers_is_refused(name):
    with pytest.raises(ValueError, match="one budget, or with a program for each"):
        numbers_of(program_of(memory_of(name, 24)), memory_of(name))


NAMES = [n if n in ("omnimem", "moviechat") else
         pytest.param(n, marks=pytest.mark.slow) for n in MEMORIES]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_memory_trains_a_step_or_says_why_not(name):
    """A small step down the gradient lowers the loss; a refusal is one sentence with its repair."""
    program, params, mode = program_of(name), weights(), "through"
    try:
        check_differentiable(program, mode)
    except ValueError as error:
        assert str(error).count(". ") == 0 and 'mode "read"' in str(error)
        assert isinstance(program.memory, FeatureMemory) or "host memory" in str(error)
        mode = "read"
    program, step = step_of(name, mode)
    (before, _), slope = step(params, whole(program))
    size = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(slope)))
    down = jax.tree.map(lambda p, g: p - 0.01 * g / size, params, slope)
    (after, _), _ = step(down, whole(program))
    assert np.isfinite(size) and float(after) < float(before), (name, before, after)


def test_what_has_no_derivative_is_refused_with_the_repair():
    with pytest.raises(ValueError, match="--bank.space device"):
        objective(program_of(jm.WithBank(jm.Recent(SLOTS), 24, block=4, topk=2)))
    with pytest.raises(ValueError, match="rounding has no derivative: train it without bits"):
        objective(program_of(Quantized(jm.Recent(SLOTS), 8)))
    with pytest.raises(ValueError, match='features of frozen encoders.*take mode "read"'):
        objective(program_of("moviechat"))
    with pytest.raises(ValueError, match="mode must be one of through, read, published"):
        objective(program_of("recent"), mode="whole")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["omnimem", "knorm", "keydiff", "expected_attention"])
def test_soft_selection_has_the_same_loss_and_more_gradient(name):
    """What formed the score of a token, too, hears what the token is worth."""
    (program, hard), params = step_of(name, "through"), weights()
    (loss, _), plain = hard(params, whole(program))
    (same, _), soft = step_of(name, "through", selection="soft")[1](params, whole(program))
    assert float(same) == float(loss)
    for slope in jax.tree.leaves(soft):
        assert np.all(np.isfinite(slope))
    size = lambda x: float(jnp.max(jnp.abs(x)))
    part = "k" if name != "omnimem" else "o"  # the first layer's input is the rows, as they are
    mine, theirs = (g["layers"][part]["kernel"] for g in (soft, plain))
    assert size(mine - theirs) > 1e-3 * size(theirs)
    # A memory that drops nothing has nothing to learn about dropping.
    large = program_of(memory_of(name, 192))
    losses = (objective(large, selection=how) for how in ("soft", "hard"))
    soft, plain = (jax.jit(jax.grad(f, has_aux=True))(params, example())[0] for f in losses)
    close(soft, plain, 1e-5)


def test_what_has_no_score_with_a_gradient_is_refused():
    soft = partial(objective, selection="soft")
    for name in ("recent", "h2o", "infinipot_v", "banked", "adakv"):
        with pytest.raises(ValueError, match=r"does not choose by a score.*--selection hard"):
            soft(program_of(name))
    for mode in ("read", "published"):
        with pytest.raises(ValueError, match='take mode "through"'):
            soft(program_of("omnimem"), mode=mode)
    with pytest.raises(ValueError, match="give --selection soft, or leave soft out"):
        objective(program_of(jm.Knorm(SLOTS, soft=0.5)))
    with pytest.raises(ValueError, match="selection must be one of hard, soft"):
        objective(program_of("knorm"), selection="both")  # type: ignore[arg-type]


@pytest.mark.slow
def test_modes_are_cut_where_they_say():
    """ "read" is the gradient of a constant carry; below the middle "published" adds K and V."""
    cfg = small.config(layers=4, axes=1)
    program, params = program_of("omnimem", cfg), weights(cfg)

    found = {
        mode: jax.jit(jax.grad(lambda p, b, m=mode: objective(program, mode=m)(p, b)[0]))(
            params, example()
        )
        for mode in ("through", "read", "published")
    }
    constant = partial(plain, program=program, batch=example(), constant=params)
    close(found["read"], jax.jit(jax.grad(constant))(params), 1e-5)
    first = {mode: jax.tree.map(lambda x: x[0], g["layers"]) for mode, g in found.items()}
    for name in ("q", "o", "up", "down"):
        close(first["published"][name], first["read"][name], 1e-5)
    for name in ("k", "v"):
        a, b = (first[mode][name]["kernel"] for mode in ("published", "read"))
        assert float(jnp.max(jnp.abs(a - b))) > 1e-3 * float(jnp.max(jnp.abs(b)))
    away = found["through"]["layers"]["q"]["kernel"] - found["published"]["layers"]["q"]["kernel"]
    # Nobody reads what the last layer makes of a chunk.
    assert np.all(np.max(np.abs(away), axis=(1, 2))[:-1] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [None, 4])
def test_a_chunk_more_costs_the_keys_and_values_that_are_held(segments):
    """Neither what selection was made by, nor anything inside a layer, is kept of a chunk."""
    cfg = small.config(layers=4, axes=1)
    cfg = replace(cfg, width=64, mlp_width=64, heads=4, kv_heads=4, head_dim=16)
    slots, chunk = 256, 16
    spec = spec_of(cfg, chunk=chunk, frame=(2, 2), audio_tokens=0)
    program = make_program(cfg, jm.OmniMem(slots), spec)
    params = jax.eval_shape(lambda: small.params(cfg))
    carry = jax.eval_shape(lambda: init_carry(program))
    one = jax.eval_shape(lambda: small.stream_rows(cfg, 1, chunk))
    ids = jax.ShapeDtypeStruct((1, 1, 4), jnp.int32)

    def loss(params, carry, example):
        more = {"program": program, "segments": segments}
        return stream_loss(params, bind(program, params), carry, example, **more)[0]

    def temp(count):
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, count, *x.shape[1:]), x.dtype), one)
        given = params, carry, Example(rows, ids, ids)
        return temporary(jax.jit(jax.grad(loss)).lower(*given).compile())

    few, many = 32, 64
    kv = kv_of(carry.state.slots)
    held = kv.k.size * kv.k.dtype.itemsize + kv.v.size * kv.v.dtype.itemsize
    states = few if segments is None else few // segments
    slope = (temp(many) - temp(few)) / states
    assert slope == pytest.approx(held, rel=0.05)
