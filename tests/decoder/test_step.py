"""What the decoder step offers beyond the plain stream: prefix, whole stack, attention."""

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from laws import compiled

from jaxmem.bound import bind, question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.answer import decode, first_pass, prefill
from jaxmem.decoder.step import chunk_step, init_carry, make_prefix, make_program
from jaxmem.experiments.benchmark.step_model import chunks_of, program_of
from jaxmem.kernels import segment as segments
from jaxmem.memory.base import FeatureMemory, Memory, State
from jaxmem.memory.baselines import Full, Recent
from jaxmem.memory.exchange import Attention, BankSpec, Embeds, Probes, Requires, Sinks, View
from jaxmem.memory.omnimem.omnimem import OmniMem

CFG = small.config()
WEIGHTS = small.params(CFG)
SIZE = 8
ROWS = small.stream_rows(CFG, 2, SIZE, lengths=[8, 5])


def changed(memory, per=None, **methods):
    """Return the memory with other methods, as a subclass of its own has them."""
    if "requires" in methods:
        asked = methods["requires"]
        methods["requires"] = property(lambda self: asked)
    kind = type("Changed", (type(memory),), methods | ({} if per is None else {"per": per}))
    options = {f.name: getattr(memory, f.name) for f in dataclasses.fields(memory) if f.init}
    return kind(**options)


def stacked(memory: Memory) -> Memory:
    """The same policy over all layers at once."""

    def init(self, spec):
        states = [memory.init(spec, i) for i in range(spec.layers)]
        return jax.tree.map(lambda *x: jnp.stack(x), *states)

    def view(self, spec, state, embeds, bank=None):
        return jax.vmap(lambda one, b: memory.view(spec, one, embeds, b))(state, bank)

    def recall(self, spec, state, question, bank=None):
        return jax.vmap(lambda one, b: memory.recall(spec, one, question, b))(state, bank)

    def write(self, spec, state, chunk):
        return jax.vmap(lambda one, c: memory.write(spec, one, c))(state, chunk)

    return changed(memory, "stack", init=init, view=view, recall=recall, write=write)


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
    return run(make_program(CFG, Full(16), small.small_spec(CFG, SIZE)))


def test_prefix_is_seen_and_never_moves():
    """Stream, question and answer after a pinned prompt equal one pass over everything."""
    P = 4
    x = np.random.default_rng(9).normal(size=(P, CFG.width)).astype(np.float32)
    at = np.repeat(np.arange(P)[:, None], 3, 1)
    prompt = small.Embeds(
        jnp.asarray(x), jnp.asarray(at), jnp.ones((P,), jnp.int8), jnp.full((3,), P)
    )
    prefix = compiled(lambda rows: make_prefix(WEIGHTS, CFG, rows))(prompt)
    program = make_program(CFG, Full(16), small.small_spec(CFG, SIZE, prefix=P))
    _, got = run(program, prefix)

    stream, pos, end = small.flat(ROWS)
    tail = np.asarray(dec.embed(WEIGHTS, jnp.asarray([3, 1, 5])))
    everything = np.concatenate([x, stream, tail])
    places = np.concatenate([at, pos + P, end + P + np.arange(3)[:, None]]).astype(np.float32)
    expected = small.one_pass(WEIGHTS, CFG, everything, places)
    np.testing.assert_allclose(got, expected[P:], atol=2e-4, rtol=2e-4)


def test_a_memory_of_the_whole_stack_equals_one_of_each_layer():
    memory, spec = Recent(10, sinks=2), small.small_spec(CFG, SIZE)
    carry, got = run(make_program(CFG, stacked(memory), spec))
    flat, expected = run(make_program(CFG, memory, spec))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    order = np.asarray(carry.state.slots.kv.index).reshape(-1)
    np.testing.assert_array_equal(order, np.asarray(flat.state.slots.kv.index).reshape(-1))


@pytest.mark.parametrize("last", [None, 2])
def test_reported_attention(last):
    """Attention to memory and chunk sums to one per counted row; `given` is the memory's part."""
    found = []

    def write(self, spec, state: State, chunk):
        jax.debug.callback(
            lambda m, c, r: found.append((m.sum(), c.sum(), r)),
            chunk.received.memory,
            chunk.received.chunk,
            chunk.given,
            ordered=True,
        )
        return Full.write(self, spec, state, chunk)

    memory = changed(
        Full(16), write=write, requires=Requires(attention=Attention(last=last), given=True)
    )
    watch(make_program(CFG, memory, small.small_spec(CFG, SIZE)))
    jax.effects_barrier()
    assert len(found) == 2 * CFG.layers
    for on_memory, on_chunk, rows in found[CFG.layers :]:  # of the second chunk: 5 real rows
        np.testing.assert_allclose(on_memory + on_chunk, 5 if last is None else last, rtol=1e-5)
        counted = rows[:5] if last is None else rows[3:5]
        np.testing.assert_allclose(np.sum(counted), on_memory, rtol=1e-4)
        assert (rows[:5] > 0).all()


def test_probes_are_a_pass_after_the_chunk():
    """A causal probe weighs the candidates as a chunk that came next would; nobody sees it."""
    found: list = []

    def write(self, spec, state: State, chunk):
        given = chunk.received if chunk.probed is None else chunk.probed.received
        jax.debug.callback(
            lambda m, c: found.append(np.concatenate([m, c], -1)),
            given.memory,
            given.chunk,
            ordered=True,
        )
        return Full.write(self, spec, state, chunk)

    base, spec = Full(24), small.small_spec(CFG, SIZE)
    words = small.chunk(small.stream_rows(CFG, 1, SIZE, seed=4, lengths=[3]), 0)
    probes = jax.tree.map(lambda x: jnp.stack([x, x]), words)
    probing = changed(base, write=write, requires=Requires(probes=Probes(2)))
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
    from_probe = found[-CFG.layers :]

    found = []
    reporting = changed(base, write=write, requires=Requires(attention=Attention()))
    telling = make_program(CFG, reporting, spec)
    compiled(lambda c, r: chunk_step(WEIGHTS, telling, c, r))(other, words)
    jax.effects_barrier()
    assert len(found) == CFG.layers
    for got, received in zip(from_probe, found, strict=True):
        n = 8 + 5  # the stream lies in memory, where the probe saw 8 in memory and 5 in its chunk
        for twin in range(2):
            mine = np.concatenate([got[twin, 0, :8], got[twin, 0, 24 : 24 + 5]])
            np.testing.assert_allclose(mine, received[0, :n], rtol=1e-4, atol=1e-5)


def test_a_memory_that_scores_by_probes_needs_them():
    probing = changed(Full(8), requires=Requires(probes=Probes(1, "embedding")))
    program = make_program(CFG, probing, small.small_spec(CFG, SIZE))
    with pytest.raises(ValueError, match="scores by 1 probes, got 0"):
        chunk_step(WEIGHTS, program, init_carry(program), small.chunk(ROWS, 0))


def test_a_chunk_and_a_question_have_rows():
    program = make_program(CFG, Full(8), small.small_spec(CFG, SIZE))
    rows = small.chunk(ROWS, 0)
    none = rows._replace(x=rows.x[:0], pos=rows.pos[:0], modality=rows.modality[:0])
    with pytest.raises(ValueError, match="a chunk has no rows: leave it out, or give rows of pad"):
        chunk_step(WEIGHTS, program, init_carry(program), none)
    with pytest.raises(ValueError, match="the question has no rows: ask at least one token"):
        prefill(WEIGHTS, program, init_carry(program), none, room=1)


def banked(capacity, question=None, found=None) -> Memory:
    """Holds nothing itself: everything is evicted, and read back from the bank."""

    def view(self, spec, state, embeds, bank=None):
        return View(bank.slots, state.aux.next_pos)

    def recall(self, spec, state, question, bank=None):
        if found is not None:
            jax.debug.callback(lambda q: found.append(np.asarray(q)), question.q, ordered=True)
        return View(bank.slots, state.aux.next_pos)

    def write(self, spec, state, chunk):
        return state._replace(aux=state.aux._replace(next_pos=chunk.next_pos)), chunk.kv

    # The memory reads the bank's slots itself, so they are on the device.
    bank = lambda self, spec: BankSpec(capacity, spec.empty(spec.chunk), "device")
    more = {"view": view, "recall": recall, "write": write, "bank": bank}
    return changed(Full(1), requires=Requires(question=question), **more)


def test_a_gate_on_attention():
    """The output projection takes attention's output times sigmoid(x W), x being normalised."""
    cfg = dataclasses.replace(small.config(layers=1), attn_gate=True)
    layer = dec.layer_at(small.params(cfg), 0)
    h, attn = jax.random.normal(jax.random.key(3), (3, 24)), jnp.arange(192.0).reshape(3, 4, 16)
    x = h / np.sqrt(np.mean(h**2, -1, keepdims=True) + cfg.norm_eps)
    x = x * layer["attn_norm"]["scale"][None]
    gate = 1 / (1 + np.exp(-x @ layer["attn_gate"]["kernel"]))
    after = h + (attn.reshape(3, -1) * gate) @ layer["o"]["kernel"]
    plain = dec.finish(layer, dataclasses.replace(cfg, attn_gate=False), h, attn)
    found = dec.finish(layer, cfg, h, attn)
    np.testing.assert_allclose(found, dec.feed_forward(layer, cfg, after), rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain).max() > 1


@pytest.mark.parametrize("per", ["layer", "stack"])
def test_a_bank_with_room_is_full_attention(per):
    memory = banked(16) if per == "layer" else stacked(banked(16))
    carry, got = run(make_program(CFG, memory, small.small_spec(CFG, SIZE)))
    np.testing.assert_allclose(got, everything_kept()[1], atol=1e-5)
    np.testing.assert_array_equal(carry.bank.count, [13, 13])
    np.testing.assert_array_equal(carry.bank.dropped, [0, 0])


def test_a_full_bank_keeps_the_oldest_and_counts():
    carry, _ = watch(make_program(CFG, banked(10), small.small_spec(CFG, SIZE)))
    np.testing.assert_array_equal(carry.bank.count, [10, 10])
    np.testing.assert_array_equal(carry.bank.dropped, [3, 3])
    np.testing.assert_array_equal(carry.bank.slots.index[0, :8, 0], np.arange(8))


@pytest.mark.parametrize("question", ["layer", "pass"])
def test_a_question_reports_its_queries(question):
    """Not rotated; "layer": of the pass that is under way, "pass": of one that saw no stream."""
    found = []
    program = make_program(CFG, banked(16, question, found), small.small_spec(CFG, SIZE))
    run(program)
    jax.effects_barrier()
    rows = question_rows(WEIGHTS, np.array([3, 1]), program=program)
    first = dec.qkv(dec.layer_at(WEIGHTS, 0), CFG, rows.x.at[2:].set(0))[0]  # padding holds nothing
    np.testing.assert_allclose(found[0], first, atol=1e-5)
    alone = first_pass(WEIGHTS, program, rows, None)
    differs = np.abs(found[1][:2] - np.asarray(alone[1])[:2]).max()
    assert differs < 1e-5 if question == "pass" else differs > 1e-3


def test_sinks_join_under_one_softmax():
    """Sinks whose queries stand where the question stands are no different from the others."""

    def recall(self, spec, state, question, bank=None):
        kv, end = Full.recall(self, spec, state, question, bank)[:2]
        first = jax.tree.map(lambda x: x[:3], kv)
        rest = jax.tree.map(lambda x: jnp.roll(x, -3, 0).at[-3:].set(0), kv)
        return View(rest, end, sinks=Sinks(first, end))

    program = make_program(CFG, changed(Full(16), recall=recall), small.small_spec(CFG, SIZE))
    _, expected = everything_kept()
    carry = init_carry(program)._replace(state=everything_kept()[0].state)
    rows = question_rows(WEIGHTS, np.array([3, 1]), program=program)
    got = compiled(lambda c, r: prefill(WEIGHTS, program, c, r, room=1)[1])(carry, rows)
    np.testing.assert_allclose(got[0], expected[-3], atol=1e-5)  # the row at the sinks' position


class Filled(NamedTuple):
    capacity: jax.Array
    count: jax.Array


@dataclass(frozen=True)
class AllFeatures(FeatureMemory):
    """Every row of a short stream, numbered without gaps."""

    def init(self, spec):
        slots = Embeds(
            jnp.zeros((24, spec.width)), jnp.zeros((24, 3), jnp.int32), jnp.zeros(24, jnp.int8),
            jnp.zeros(3, jnp.int32),
        )  # fmt: skip
        return State(slots, Filled(jnp.array(24), jnp.array(0)))

    def write(self, spec, state, embeds):
        at = state.aux.count
        x = jax.lax.dynamic_update_slice(state.slots.x, embeds.x, (at, 0))
        modality = jax.lax.dynamic_update_slice(state.slots.modality, embeds.modality, (at,))
        count = at + jnp.sum(embeds.modality != 0)
        pos = jnp.repeat(jnp.arange(24)[:, None], 3, 1)
        slots = Embeds(x, pos, modality, jnp.full((3,), count))
        return State(slots, Filled(state.aux.capacity, count))

    def read(self, spec, state):
        return state.slots


def test_features_answer_from_embeddings():
    """Features held before the decoder are prefilled with the question: one pass over both."""
    program = make_program(CFG, AllFeatures(), small.small_spec(CFG, SIZE))
    _, got = run(program)
    stream, _, _ = small.flat(ROWS)
    tail = np.asarray(dec.embed(WEIGHTS, jnp.asarray([3, 1, 5])))
    everything = np.concatenate([stream, tail])
    places = np.repeat(np.arange(len(everything))[:, None], 3, 1).astype(np.float32)
    expected = small.one_pass(WEIGHTS, CFG, everything, places)
    np.testing.assert_allclose(got[-3:], expected[-3:], atol=2e-4, rtol=2e-4)


def test_a_memory_of_the_whole_stack_cannot_recall_layer_by_layer():
    memory = changed(stacked(Full(8)), requires=Requires(question="layer"))
    with pytest.raises(ValueError, match='use per "layer"'):
        make_program(CFG, memory, small.small_spec(CFG, SIZE))


def test_statistics_need_no_array_of_rows_by_pool():
    """A chunk step of 2048 rows over 8192 slots compiles to far less than rows times pool."""
    cfg = small.config()
    program = make_program(cfg, OmniMem(8192, text=0), small.small_spec(cfg, 2048))
    rows = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], small.stream_rows(cfg, 1, 2048)))
    carry = jax.eval_shape(lambda: init_carry(program))
    weights = jax.eval_shape(lambda: small.params(cfg))
    step = jax.jit(lambda w, c, r: chunk_step(w, program, c, r)[0], donate_argnums=1)
    used = step.lower(weights, carry, rows).compile().memory_analysis().temp_size_in_bytes
    assert used < 2048 * (2048 + 8192) * 4 // 2


@pytest.mark.parametrize("name", ["hermes", "streammem", "livevlm", "snapkv", "recent"])
def test_slots_are_turned_once_for_all_that_read_them(name, monkeypatch):
    """The chunk, the attention that is read, and every probe attend to the same turned keys."""
    program = program_of(CFG, name, 64, 16)
    bound, carry, chunk = bind(program, WEIGHTS), init_carry(program), chunks_of(program, 1)
    turned, turn = [], segments.turn
    monkeypatch.setattr(segments, "turn", lambda x, *by: turned.append(len(x)) or turn(x, *by))
    step = lambda c, r: chunk_step(WEIGHTS, program, c, small.chunk(r, 0), probes=bound.probes)
    jax.eval_shape(step, carry, chunk)
    assert sum(rows > 16 for rows in turned) == 1
