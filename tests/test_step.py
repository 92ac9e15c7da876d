"""What the decoder step offers beyond the plain stream: a prefix, stack scope, reported mass."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from laws import compiled

from jaxmem.decoder import decoder as dec
from jaxmem.decoder.answer import decode, first_pass, prefill
from jaxmem.decoder.step import chunk_step, init_carry, make_prefix, make_program
from jaxmem.loop import question_rows
from jaxmem.memory.base import Embeds, Memory, Requires, State, View
from jaxmem.memory.full import full
from jaxmem.memory.recent import recent

CFG = small.config()
WEIGHTS = small.params(CFG)
SIZE = 8
ROWS = small.stream_rows(CFG, 2, SIZE, lengths=[8, 5])


def stacked(memory: Memory) -> Memory:
    """The same policy with scope "stack": all layers at once."""

    def init(spec):
        states = [memory.init(spec.at(i)) for i in range(spec.layers)]
        return jax.tree.map(lambda *x: jnp.stack(x), *states)

    return memory._replace(
        init=init,
        view=lambda s, bank, rows: jax.vmap(lambda one: memory.view(one, bank, rows))(s),
        write=lambda s, seen: (jax.vmap(lambda a, b: memory.write(a, b)[0])(s, seen), None),
        recall=lambda s, bank, q: jax.vmap(lambda one: memory.recall(one, bank, q))(s),
        scope="stack",
    )


def watch(program, prefix=None):
    """Return the carry after both chunks, and what came out of their rows."""
    step = compiled(lambda carry, rows: chunk_step(WEIGHTS, program, carry, rows, prefix))
    carry, out = init_carry(program), []
    for i in range(2):
        rows = small.chunk(ROWS, i)
        carry, h = step(carry, rows)
        out.append(np.asarray(h)[np.asarray(rows.modality) != 0])
    return carry, out


def run(program, prefix=None):
    """Watch, ask, and answer with one more row."""
    carry, out = watch(program, prefix)
    question = question_rows(WEIGHTS, np.array([3, 1]), program=program)

    @compiled
    def ask(carry, question):
        dialogue, h = prefill(WEIGHTS, program, carry, question, room=1, prefix=prefix)
        x = dec.embed(WEIGHTS, jnp.asarray(5))
        return h, decode(WEIGHTS, program, dialogue, x)[1]

    h, last = ask(carry, question)
    return carry, np.concatenate([*out, np.asarray(h)[:2], np.asarray(last)[None]])


@cache
def everything_kept():
    return run(make_program(CFG, full(16), small.small_spec(CFG, SIZE)))


def test_prefix_is_seen_and_never_moves():
    """Stream, question and answer behind a pinned prompt equal one pass over everything."""
    P = 4
    x = np.random.default_rng(9).normal(size=(P, CFG.width)).astype(np.float32)
    at = np.repeat(np.arange(P)[:, None], 3, 1)
    prompt = small.Embeds(
        jnp.asarray(x), jnp.asarray(at), jnp.ones((P,), jnp.int8), jnp.full((3,), P)
    )
    prefix = compiled(lambda rows: make_prefix(WEIGHTS, CFG, rows))(prompt)
    program = make_program(CFG, full(16), small.small_spec(CFG, SIZE, prefix=P))
    _, got = run(program, prefix)

    stream, pos, end = small.flat(ROWS)
    tail = np.asarray(dec.embed(WEIGHTS, jnp.asarray([3, 1, 5])))
    everything = np.concatenate([x, stream, tail])
    places = np.concatenate([at, pos + P, end + P + np.arange(3)[:, None]]).astype(np.float32)
    expected = small.one_pass(WEIGHTS, CFG, everything, places)
    np.testing.assert_allclose(got, expected[P:], atol=2e-4, rtol=2e-4)


def test_stack_scope_equals_layer_scope():
    memory, spec = recent(10, sinks=2), small.small_spec(CFG, SIZE)
    carry, got = run(make_program(CFG, stacked(memory), spec))
    flat, expected = run(make_program(CFG, memory, spec))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    order = np.asarray(carry.state.slots.tokens.index).reshape(-1)
    np.testing.assert_array_equal(order, np.asarray(flat.state.slots.tokens.index).reshape(-1))


@pytest.mark.parametrize("last", [None, 2])
def test_reported_mass_and_rows(last):
    """Masses of memory and chunk sum to one per counted row; row mass is the memory's part."""
    told = {}
    base = full(16)

    def write(state: State, seen):
        jax.debug.callback(
            lambda m, c, r, layer: told.update({int(layer): (m.sum(), c.sum(), r)}),
            seen.mass.memory,
            seen.mass.chunk,
            seen.rows,
            seen.layer,
        )
        return base.write(state, seen)

    memory = base._replace(write=write, requires=Requires(mass="softmax", rows=True, last=last))
    watch(make_program(CFG, memory, small.small_spec(CFG, SIZE)))
    jax.effects_barrier()
    for on_memory, on_chunk, rows in told.values():  # of the second chunk: 5 real rows
        np.testing.assert_allclose(on_memory + on_chunk, 5 if last is None else last, rtol=1e-5)
        counted = rows[:5] if last is None else rows[3:5]
        np.testing.assert_allclose(np.sum(counted), on_memory, rtol=1e-4)
        assert (rows[:5] > 0).all()
    assert sorted(told) == list(range(CFG.layers))


def test_probes_are_a_pass_behind_the_chunk():
    """A causal probe weighs the pool as a chunk that came next would; nobody sees it."""
    told: dict[int, list] = {}
    base = full(24)

    def write(state: State, seen):
        given = seen.mass if seen.probe is None else seen.probe
        jax.debug.callback(
            lambda m, c, layer: told.setdefault(int(layer), []).append(np.concatenate([m, c], -1)),
            given.memory,
            given.chunk,
            seen.layer,
        )
        return base.write(state, seen)

    spec = small.small_spec(CFG, SIZE)
    words = small.chunk(small.stream_rows(CFG, 1, SIZE, seed=4, lengths=[3]), 0)
    probes = jax.tree.map(lambda x: jnp.stack([x, x]), words)
    probing = base._replace(write=write, requires=Requires(probe="causal"))
    program = make_program(CFG, probing, spec)
    step = compiled(lambda c, r: chunk_step(WEIGHTS, program, c, r, probes=probes))
    plain = make_program(CFG, base, spec)
    without = compiled(lambda c, r: chunk_step(WEIGHTS, plain, c, r))
    carry, other = init_carry(program), init_carry(plain)
    for i in range(2):
        carry, h = step(carry, small.chunk(ROWS, i))
        other, expected = without(other, small.chunk(ROWS, i))
        np.testing.assert_allclose(h, expected, atol=1e-5)
    jax.effects_barrier()
    from_probe = {layer: masses[-1] for layer, masses in told.items()}

    told.clear()
    telling = make_program(CFG, base._replace(write=write, requires=Requires(mass="softmax")), spec)
    compiled(lambda c, r: chunk_step(WEIGHTS, telling, c, r))(other, words)
    jax.effects_barrier()
    for layer, masses in told.items():
        n = 8 + 5  # the stream lies in memory, where the probe saw 8 in memory and 5 in its chunk
        expected = masses[-1][0, :n]
        got = from_probe[layer]
        for twin in range(2):
            mine = np.concatenate([got[twin, 0, :8], got[twin, 0, 24 : 24 + 5]])
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def test_a_memory_that_reads_probes_needs_them():
    program = make_program(
        CFG, full(8)._replace(requires=Requires(probe="embedding")), small.small_spec(CFG, SIZE)
    )
    with pytest.raises(ValueError, match="pass probes="):
        chunk_step(WEIGHTS, program, init_carry(program), small.chunk(ROWS, 0))


SPACE = {"bank_space": "device"}  # the memory below reads the bank's slots itself


def banked(ask=None, told=None) -> Memory:
    """Holds nothing itself: everything is spilled, and read back from the bank."""
    base = full(1)

    def view(state, bank, rows):
        return View(bank.slots, state.aux.next_pos)

    def recall(state, bank, query):
        if ask is not None:
            jax.debug.callback(lambda q: told.append(np.asarray(q)), query.q, ordered=True)
        return view(state, bank, None)

    def write(state, seen):
        return state._replace(aux=state.aux._replace(next_pos=seen.next_pos)), seen.tokens

    return base._replace(
        view=view,
        recall=recall,
        write=write,
        spill=lambda spec: spec.empty(spec.chunk),
        requires=Requires(ask=ask),
        name="banked",
    )


@pytest.mark.parametrize("scope", ["layer", "stack"])
def test_a_bank_with_room_is_full_attention(scope):
    memory = banked() if scope == "layer" else stacked(banked())
    if scope == "stack":
        one = banked()
        write = lambda s, seen: jax.vmap(one.write)(s, seen)
        view = lambda s, bank, rows: jax.vmap(lambda a, b: one.view(a, b, rows))(s, bank)
        recall = lambda s, bank, q: view(s, bank, None)
        memory = memory._replace(write=write, view=view, recall=recall)
    carry, got = run(make_program(CFG, memory, small.small_spec(CFG, SIZE, bank=16, **SPACE)))
    np.testing.assert_allclose(got, everything_kept()[1], atol=1e-5)
    np.testing.assert_array_equal(carry.bank.count, [13, 13])
    np.testing.assert_array_equal(carry.bank.lost, [0, 0])


def test_a_full_bank_keeps_the_oldest_and_counts():
    carry, _ = watch(make_program(CFG, banked(), small.small_spec(CFG, SIZE, bank=10, **SPACE)))
    np.testing.assert_array_equal(carry.bank.count, [10, 10])
    np.testing.assert_array_equal(carry.bank.lost, [3, 3])
    np.testing.assert_array_equal(carry.bank.slots.index[0, :8, 0], np.arange(8))


@pytest.mark.parametrize("ask", ["layer", "pass"])
def test_a_question_tells_its_queries(ask):
    """Not rotated; "layer": of the pass that is under way, "pass": of one that saw no stream."""
    told = []
    program = make_program(CFG, banked(ask, told), small.small_spec(CFG, SIZE, bank=16, **SPACE))
    run(program)
    jax.effects_barrier()
    rows = question_rows(WEIGHTS, np.array([3, 1]), program=program)
    first = dec.qkv(dec.layer_at(WEIGHTS, 0), CFG, rows.x)[0]
    np.testing.assert_allclose(told[0], first, atol=1e-5)
    alone = first_pass(WEIGHTS, program, rows, None)
    differs = np.abs(told[1][:2] - np.asarray(alone[1])[:2]).max()
    assert differs < 1e-5 if ask == "pass" else differs > 1e-3


def test_far_tokens_join_under_one_softmax():
    """A far segment whose queries stand where the question stands is no different from near."""
    base = full(16)

    def recall(state, bank, query):
        tokens, end = base.recall(state, bank, query)[:2]
        far = jax.tree.map(lambda x: x[:3], tokens)
        near = jax.tree.map(lambda x: jnp.roll(x, -3, 0).at[-3:].set(0), tokens)
        return View(near, end, far=far, far_pos=end)

    program = make_program(CFG, base._replace(recall=recall), small.small_spec(CFG, SIZE))
    carry, expected = everything_kept()
    rows = question_rows(WEIGHTS, np.array([3, 1]), program=program)
    got = compiled(lambda c, r: prefill(WEIGHTS, program, c, r, room=1)[1])(carry, rows)
    np.testing.assert_allclose(got[0], expected[-3], atol=1e-5)  # the row at `far_pos`


def test_feature_scope_answers_from_embeddings():
    """Features held before the decoder are prefilled with the question: one pass over both."""

    class Notes(NamedTuple):
        capacity: jax.Array
        count: jax.Array

    def init(spec):
        slots = Embeds(
            jnp.zeros((24, spec.width)), jnp.zeros((24, 3), jnp.int32), jnp.zeros(24, jnp.int8),
            jnp.zeros(3, jnp.int32),
        )  # fmt: skip
        return State(slots, Notes(jnp.array(24), jnp.array(0)))

    def write(state, seen):
        at = state.aux.count
        x = jax.lax.dynamic_update_slice(state.slots.x, seen.hidden, (at, 0))
        kind = jax.lax.dynamic_update_slice(state.slots.modality, seen.modality, (at,))
        count = at + jnp.sum(seen.modality != 0)
        rel = jnp.repeat(jnp.arange(24)[:, None], 3, 1)
        slots = Embeds(x, rel, kind, jnp.full((3,), count))
        return State(slots, Notes(state.aux.capacity, count)), None

    memory = Memory(
        init, lambda *a: None, write, lambda s, bank, q: s.slots, scope="feature", name="features"
    )
    program = make_program(CFG, memory, small.small_spec(CFG, SIZE))
    _, got = run(program)
    stream, _, _ = small.flat(ROWS)
    tail = np.asarray(dec.embed(WEIGHTS, jnp.asarray([3, 1, 5])))
    everything = np.concatenate([stream, tail])
    places = np.repeat(np.arange(len(everything))[:, None], 3, 1).astype(np.float32)
    expected = small.one_pass(WEIGHTS, CFG, everything, places)
    np.testing.assert_allclose(got[-3:], expected[-3:], atol=2e-4, rtol=2e-4)


def test_stack_scope_cannot_recall_layer_by_layer():
    memory = stacked(full(8))._replace(requires=Requires(ask="layer"))
    with pytest.raises(ValueError, match="use scope 'layer'"):
        make_program(CFG, memory, small.small_spec(CFG, SIZE))


def test_statistics_need_no_array_of_rows_by_pool():
    """A chunk step of 2048 rows over 8192 slots compiles to far less than rows times pool."""
    from jaxmem.memory.omnimem.omnimem import omnimem

    cfg = small.config()
    program = make_program(cfg, omnimem(8192, text=0), small.small_spec(cfg, 2048))
    rows = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], small.stream_rows(cfg, 1, 2048)))
    carry = jax.eval_shape(lambda: init_carry(program))
    weights = jax.eval_shape(lambda: small.params(cfg))
    step = jax.jit(lambda w, c, r: chunk_step(w, program, c, r)[0], donate_argnums=1)
    used = step.lower(weights, carry, rows).compile().memory_analysis().temp_size_in_bytes
    assert used < 2048 * (2048 + 8192) * 4 // 2
