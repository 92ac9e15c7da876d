"""The streaming loop: its laws over every memory, and exactness against plain attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from laws import ALL_MEMORIES, memory_of

from jaxmem import kv as tk
from jaxmem.asking import ask, log_prob
from jaxmem.bound import question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.answer import decode, prefill
from jaxmem.decoder.program import init_carry, make_program
from jaxmem.decoder.step import chunk_step
from jaxmem.loop import branch, stream
from jaxmem.memory import layout as pool
from jaxmem.memory.base import kv_of
from jaxmem.memory.baselines import Full
from jaxmem.report.compilations import count_compilations
from jaxmem.saving import restore, save

SIZE, CHUNKS = 10, 4
CFG = small.config()
WEIGHTS = small.params(CFG)
ROWS = small.stream_rows(CFG, CHUNKS, SIZE, lengths=[10, 10, 7, 10])
SPEC = small.small_spec(CFG, SIZE)


FEW = ("omnimem", "recent")  # of the others these laws are slow tests


@pytest.fixture(
    scope="module",
    params=[n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in ALL_MEMORIES],
)
def program(request):
    return make_program(CFG, memory_of(request.param), SPEC)


def close(a, b, atol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_allclose(x, y, atol=atol, rtol=atol)
        else:
            np.testing.assert_array_equal(jax.random.key_data(x) if _is_key(x) else x, _raw(y))


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x):
    return jax.random.key_data(x) if _is_key(x) else x


def test_scan_equals_loop_and_shapes_stay(program):
    scanned = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    step = jax.jit(lambda c, r: chunk_step(WEIGHTS, program, c, r)[0])
    looped = init_carry(program)
    for i in range(CHUNKS):
        looped = step(looped, small.chunk(ROWS, i))
    close(scanned, looped)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), init_carry(program))
    assert before == jax.tree.map(lambda x: (x.shape, x.dtype), scanned)


def test_padding_changes_nothing(program):
    pad = lambda x, axis: jnp.pad(x, [(0, 3 if a == axis else 0) for a in range(x.ndim)])
    wide = ROWS._replace(x=pad(ROWS.x, 1), pos=pad(ROWS.pos, 1), modality=pad(ROWS.modality, 1))
    a = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    longer = make_program(CFG, program.memory, small.small_spec(CFG, SIZE + 3))
    b = stream(WEIGHTS, init_carry(longer), wide, program=longer)
    close(a, b._replace(made_by=a.made_by))


def test_an_empty_chunk_changes_nothing(program):
    carry = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), ROWS)
    after = stream(WEIGHTS, branch(carry), nothing, program=program)
    close(carry, after)


def test_ask_leaves_the_carry_bit_identical(program):
    carry = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    before = jax.tree.map(lambda x: np.array(_raw(x)), carry)
    question = question_rows(WEIGHTS, np.array([3, 1, 4]), program=program)
    ask(WEIGHTS, carry, question, program=program, max_new=3)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(carry), strict=True):
        np.testing.assert_array_equal(x, np.asarray(_raw(y)))


def test_branches_are_independent(program):
    carry = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    other = branch(carry)
    expected = stream(WEIGHTS, branch(carry), ROWS, program=program)
    stream(WEIGHTS, carry, jax.tree.map(lambda x: x[::-1], ROWS), program=program)
    close(stream(WEIGHTS, other, ROWS, program=program), expected)


def test_slots_are_dense_and_ordered(program):
    carry = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    for state in pool.layers(program.layout, carry.state):
        tokens = kv_of(state.slots)
        valid = np.asarray(tokens.modality[:, 0]) != tk.EMPTY
        n = valid.sum()
        assert valid[:n].all() and not valid[n:].any()
        assert (np.diff(np.asarray(tokens.index[:n, 0])) > 0).all()


def test_one_compilation_for_a_whole_stream(program):
    carry = init_carry(program)
    chunk = jax.tree.map(lambda x: x[:1], ROWS)
    carry = stream(WEIGHTS, carry, chunk, program=program)
    with count_compilations() as counted:
        for i in range(CHUNKS):  # chunk 2 is ragged
            piece = jax.tree.map(lambda x, i=i: x[i : i + 1], ROWS)
            carry = stream(WEIGHTS, carry, piece, program=program)
        jax.block_until_ready(carry)
    assert counted.count == 0


def test_vmap_over_streams_equals_one_by_one(program):
    other = small.stream_rows(CFG, CHUNKS, SIZE, seed=5, lengths=[10, 4, 10, 10])
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), ROWS, other)
    run = lambda carry, rows: stream(WEIGHTS, carry, rows, program=program)
    carries = jax.tree.map(lambda x: jnp.stack([x, x]), init_carry(program))
    together = jax.vmap(run)(carries, both)
    for i, rows in enumerate((ROWS, other)):
        alone = run(init_carry(program), rows)
        close(jax.tree.map(lambda x, i=i: x[i], together), alone, atol=2e-5)


def test_questions_of_different_buckets():
    program = make_program(CFG, Full(64), SPEC)
    carry = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    with count_compilations() as counted:
        for n in (2, 5, 8, 9, 12):
            question = question_rows(WEIGHTS, np.arange(n), program=program)
            ask(WEIGHTS, carry, question, program=program)
    # two buckets (8 and 16), each compiles its embedding and its question pass
    assert counted.count <= 2 * 2 + 6
    with count_compilations() as counted:
        for n in (1, 3, 11, 16):
            question = question_rows(WEIGHTS, np.arange(n), program=program)
            ask(WEIGHTS, carry, question, program=program)
    assert counted.count == 0


@pytest.mark.parametrize("axes,bias,activation", [(3, False, "swiglu"), (1, True, "relu2")])
def test_full_memory_is_full_attention(axes, bias, activation):
    """Streamed rows, question rows and decoded rows equal one causal pass over everything."""
    cfg = small.config(axes=axes, bias=bias, qk_norm=not bias, activation=activation)
    weights = small.params(cfg, seed=3)
    rows = small.stream_rows(cfg, CHUNKS, SIZE, lengths=[10, 6, 10, 9])
    program = make_program(cfg, Full(48), small.small_spec(cfg, SIZE))
    step = jax.jit(lambda carry, chunk: chunk_step(weights, program, carry, chunk))
    carry, streamed = init_carry(program), []
    for i in range(CHUNKS):
        chunk = small.chunk(rows, i)
        carry, h = step(carry, chunk)
        streamed.append(np.asarray(h)[np.asarray(chunk.modality) != 0])
    ids = np.array([3, 1, 4, 1, 5])
    question = question_rows(weights, ids, program=program)
    ask_rows = jax.jit(lambda carry, rows: prefill(weights, program, carry, rows, room=2))
    next_row = jax.jit(lambda dialogue, x: decode(weights, program, dialogue, x))
    dialogue, h = ask_rows(carry, question)
    extra = [np.asarray(h)[:5]]
    for token in (9, 2):
        x = dec.embed(weights, jnp.asarray(token))
        dialogue, out = next_row(dialogue, x)
        extra.append(np.asarray(out)[None])

    x, pos, end = small.flat(rows)
    tail = np.asarray(dec.embed(weights, jnp.asarray([*ids, 9, 2])))
    tail_pos = end + np.arange(7)[:, None]
    expected = small.one_pass(
        weights, cfg, np.concatenate([x, tail]), np.concatenate([pos, tail_pos]).astype(np.float32)
    )
    got = np.concatenate(streamed + extra)
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=2e-4)


def test_positions_stay_exact_after_ten_hours():
    """The same stream, begun at tick 0 and at the tick of hour 10, gives the same outputs."""
    program = make_program(CFG, Full(64), SPEC)
    start = init_carry(program)
    late = start._replace(
        state=start.state._replace(
            aux=start.state.aux._replace(next_pos=start.state.aux.next_pos + 10 * 3600 * 100)
        )
    )
    question = question_rows(WEIGHTS, np.array([3, 1, 4]), program=program)
    answers = []
    for carry in (start, late):
        carry = stream(WEIGHTS, branch(carry), ROWS, program=program)
        answers.append(ask(WEIGHTS, carry, question, program=program).first)
    np.testing.assert_array_equal(*answers)


def test_program_names_what_does_not_fit():
    with pytest.raises(ValueError, match="Spec.kv_heads is 8"):
        make_program(CFG, Full(8), dataclasses.replace(SPEC, kv_heads=8))


def test_log_prob_is_that_of_what_is_drawn(program):
    """The likeliest token has the first logits' log-softmax, and steps follow each other."""
    carry = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    question = question_rows(WEIGHTS, np.array([3, 1, 4]), program=program)
    answer = ask(WEIGHTS, carry, question, program=program, max_new=3)
    got = log_prob(WEIGHTS, carry, question, answer.ids, program=program)
    want = jax.nn.log_softmax(answer.first)[answer.ids[0]]
    np.testing.assert_allclose(got[0], want, atol=1e-5)
    longer = question_rows(WEIGHTS, np.array([3, 1, 4, *answer.ids[:2]]), program=program)
    last = ask(WEIGHTS, carry, longer, program=program)
    np.testing.assert_allclose(got[2], jax.nn.log_softmax(last.first)[answer.ids[2]], atol=1e-4)
    with pytest.raises(ValueError, match="answer is empty"):
        log_prob(WEIGHTS, carry, question, answer.ids[:0], program=program)


def test_an_empty_question_is_refused():
    program = make_program(CFG, Full(8), SPEC)
    with pytest.raises(ValueError, match="question is empty"):
        question_rows(WEIGHTS, np.array([], int), program=program)


def test_saved_and_restored_goes_on_identically(program, tmp_path):
    carry = stream(WEIGHTS, init_carry(program), ROWS, program=program)
    save(tmp_path / "live", carry)
    again = restore(tmp_path / "live", program)
    for x, y in zip(jax.tree.leaves(carry), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(_raw(x), _raw(y))
    on, on_again = (stream(WEIGHTS, c, ROWS, program=program) for c in (branch(carry), again))
    for x, y in zip(jax.tree.leaves(on), jax.tree.leaves(on_again), strict=True):
        np.testing.assert_array_equal(_raw(x), _raw(y))
    with pytest.raises(ValueError, match="exists already"):
        save(tmp_path / "live", carry)


def test_restore_names_what_does_not_fit(tmp_path):
    program = make_program(CFG, Full(8), SPEC)
    with pytest.raises(ValueError, match="no saved stream"):
        restore(tmp_path / "nothing", program)
    save(tmp_path / "live", init_carry(program))
    with pytest.raises(ValueError, match=r"int32 \(16, 1\) there and int32 \(24, 1\) here"):
        restore(tmp_path / "live", make_program(CFG, Full(12), SPEC))


SLOW_GRADIENTS = {*ALL_MEMORIES} - {"omnimem"}  # minutes together


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW_GRADIENTS else ())
        for name in sorted(ALL_MEMORIES)
    ],
    indirect=True,
)
def test_gradient_flows_through_what_is_kept(program):
    """The gradient of an answer by the stream's embeddings is the slope of finite differences."""
    question = question_rows(WEIGHTS, np.array([3, 1, 4]), program=program)

    def answer(x):
        def body(carry, chunk):
            return chunk_step(WEIGHTS, program, carry, chunk)[0], None

        carry = jax.lax.scan(body, init_carry(program), ROWS._replace(x=x))[0]
        _, h = prefill(WEIGHTS, program, carry, question, room=1)
        return jnp.sum(jnp.tanh(h[2])), discrete_of(carry)

    (_, kept), slope = jax.jit(jax.value_and_grad(answer, has_aux=True))(ROWS.x)
    direction = jnp.where(jnp.abs(slope) > 0, jnp.sign(slope), 0.0)
    step = 1e-4  # small enough that the kept set stays, where the slope is defined
    (up, kept_up), (down, kept_down) = (
        jax.jit(answer)(ROWS.x + sign * step * direction) for sign in (1, -1)
    )
    np.testing.assert_array_equal(kept, kept_up)  # else the slope is not defined here
    np.testing.assert_array_equal(kept, kept_down)
    assert float(jnp.sum(jnp.abs(slope))) > 0
    expected = jnp.sum(slope * direction)
    np.testing.assert_allclose((up - down) / (2 * step), expected, rtol=0.05)


def discrete_of(carry):
    return kv_of(carry.state.slots).index
