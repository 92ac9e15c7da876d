"""Any memory with a bank behind it: nothing is lost, questions bring it back, two memories."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from laws import CUTS, LAWS, SPEC, compiled, cut, memory_of, pick, standard

from jaxmem import kv as tk
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.answer import prefill
from jaxmem.decoder.step import chunk_step
from jaxmem.experiments._memory_options import Bank
from jaxmem.experiments.memories import Budget, Memories, choose
from jaxmem.loop import ask, branch, init_carry, make_program, question_rows, spec_of, stream
from jaxmem.memory.bank import host_memory as store
from jaxmem.memory.bank import retrieval as blocks
from jaxmem.memory.bank.bank import append_spill, footprint, init_bank, of_layer
from jaxmem.memory.bank.bank import nbytes as bank_nbytes
from jaxmem.memory.bank.block_table import shelve
from jaxmem.memory.bank.with_bank import RULES, bank
from jaxmem.memory.base import Memory, Question, Requires, Spec, held, kv_of, nbytes
from jaxmem.memory.compression.adakv import adakv
from jaxmem.memory.compression.snapkv import snapkv
from jaxmem.memory.flash_vstream.flash_vstream import flash_vstream
from jaxmem.memory.flexmem.flexmem import flexmem
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.memory.hermes.hermes import hermes
from jaxmem.memory.parts.scored import evict
from jaxmem.memory.recent import recent
from jaxmem.memory.transforms.quantized import quantized, unpack
from jaxmem.memory.video.rekv import rekv
from jaxmem.saving import restore, save

ZERO = np.zeros((), np.int32)
TOLD = ("order", "kind")
INNER = (*laws.ALL_MEMORIES, "snapkv")
USUAL = ("recent", "omnimem", "snapkv")  # one of each kind: order, layers by score, heads by score
ANY = [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in INNER]
SHARED = ("static_and_ordered", "subset", "ample_budget", "view")  # one compilation for all


@cache
def inner(name: str) -> Memory:
    if name == "snapkv":
        return snapkv(16, window=4, audio_share=0.25)
    return memory_of(name)


@cache
def banked(name: str, capacity: int = 48, coded: bool = False, **options) -> Memory:
    memory = quantized(inner(name), 8) if coded else inner(name)
    return bank(memory, capacity, block=4, topk=options.pop("topk", 2), **options)


@pytest.mark.parametrize("law", SHARED)
@pytest.mark.parametrize("name", ANY)
def test_law(name, law):
    LAWS[law](banked(name))


@pytest.mark.parametrize("law", [law for law in LAWS if law not in SHARED])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "omnimem" else n for n in USUAL]
)
def test_law_of_more_runs(name, law):
    LAWS[law](banked(name))


def test_laws_under_codes():
    LAWS["scan_vmap_and_loop"](quantized(banked("recent"), 8))


@pytest.mark.slow
def test_laws_over_codes():
    LAWS["static_and_ordered"](banked("recent", coded=True))


def loop(memory, carry, chunk):
    """Write one chunk as the loop does: state and bank."""
    state, bank = carry
    state, spill = memory.write(state, laws.see(memory, state, chunk))
    return state, append_spill(bank, ZERO, spill)


@cache
def stepper(memory):
    return compiled(partial(loop, memory))


@partial(compiled, static_argnums=0)
def everything(memory, state, bank):
    """What the memory holds, what waits in the open block, and what the bank has."""
    mine, shelf = of_layer(bank, ZERO), state.aux.shelf
    many = shelf.priority.shape[0]
    index = jnp.arange(many, dtype=jnp.int32)
    stored = blocks.stored(mine, index, index < shelf.used, shelf.open.modality.shape[0])
    return held(memory, state), shelf.open, stored


SPEC_1 = replace(SPEC, layers=1)


@pytest.mark.parametrize("name", ANY)
def test_nothing_is_lost_while_there_is_room(name):
    """After every chunk each written token is in one place, as it came, in every KV head."""
    memory = banked(name)
    carry, step = (memory.init(SPEC_1), init_bank(memory, SPEC_1)), stepper(memory)
    flat, away = laws.stream(sum(CUTS)).tokens, 0
    for c, seen in enumerate(np.cumsum(CUTS)):
        carry = step(carry, pick(standard(), c))
        parts = jax.device_get(everything(memory, *carry))
        for head in range(parts[0].modality.shape[1]):
            mine = [laws.of_head(part, head) for part in parts]
            numbers = [laws.held(part) for part in mine]
            np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), flat.index[:seen, 0])
            for part, order in zip(mine, numbers, strict=True):
                real = part.modality[:, 0] != 0
                source = laws.of_head(laws.spread(flat, parts[0].modality.shape[1]), head)
                for name_ in tk.KV._fields:
                    written = np.asarray(getattr(source, name_))[(order - 1) // 2]
                    np.testing.assert_array_equal(getattr(part, name_)[real], written)
        away = len(numbers[2])
    assert away >= 16 and int(carry[1].lost[0]) == 0 and int(carry[1].count[0]) == away


def uneven(pool):
    """Attention received, of which head 0 receives more."""
    return pool.received * jnp.asarray([[1.5], [1.0]])


def test_heads_that_hold_different_numbers_have_blocks_of_their_own():
    """Ada-KV: each head's tokens are where its own shelf says, and a question reads them all."""
    reads = Requires(mass="softmax")
    memory = bank(adakv(8, uneven, reads=reads), 48, block=4, topk=12, positions="contiguous")
    carry, step = (memory.init(SPEC_1), init_bank(memory, SPEC_1)), stepper(memory)
    assert carry[1].slots.k.shape == (1, 2 * 48, 1, SPEC.head_dim)
    assert bank_nbytes(memory, SPEC_1) == bank_nbytes(banked("recent"), SPEC_1) + 48 * 17
    for c in range(len(CUTS)):
        carry = step(carry, pick(standard(), c))
    state, stored = carry
    read = compiled(lambda s, b: memory.recall(s, of_layer(b, ZERO), QUERY))
    view = jax.device_get(read(state, stored))
    flat = laws.stream(sum(CUTS)).tokens
    away = [laws.held(laws.of_head(held(memory, state), head)).size for head in (0, 1)]
    assert away[0] != away[1] and sum(away) == 16
    entries = np.asarray(stored.slots.modality)[0, :, 0].reshape(2, 48)
    many = (entries != 0).sum(1)
    assert int(stored.count[0]) == many.sum() and many[0] != many[1] and not stored.lost[0]
    for head in (0, 1):
        real = view.tokens.modality[:, head] != 0
        np.testing.assert_array_equal(view.tokens.index[real, head], flat.index[:, 0])
        np.testing.assert_array_equal(view.tokens.k[real, head], flat.k[:, head])
        np.testing.assert_array_equal(view.tokens.v[real, head], flat.v[:, head])
        np.testing.assert_array_equal(view.tokens.pos[real, head, 0], np.arange(sum(CUTS)))
    np.testing.assert_array_equal(view.base, [sum(CUTS)] * 3)


def test_what_leaves_a_quantised_memory_is_what_it_held():
    memory = banked("recent", coded=True)
    carry, step = (memory.init(SPEC_1), init_bank(memory, SPEC_1)), stepper(memory)
    for c in range(len(CUTS)):
        carry = step(carry, pick(standard(), c))
    kept, _, stored = jax.device_get(everything(memory, *carry))
    flat = laws.stream(sum(CUTS)).tokens
    order = laws.held(stored)
    real = stored.modality[:, 0] != 0
    assert stored.k.dtype == np.float32 and len(order) == 24
    error = np.abs(stored.k[real] - flat.k[(order - 1) // 2])
    assert 0 < error.max() < 0.05
    inside = kv_of(unpack(carry[0]._replace(aux=carry[0].aux.inner), 8).slots)
    np.testing.assert_allclose(kept.k, inside.k, atol=1e-6)


@compiled
def inside(bank, index, keep):
    return blocks.stored(of_layer(bank, ZERO), index, keep, 4)


def rule_by_hand(evict, number, places):
    """Return the block numbers that a bank of `places` blocks has after `number` came."""
    weyl = [i * 2654435769 % 2**32 for i in range(number)]
    best = {"oldest": lambda i: -i, "newest": lambda i: i, "uniform": lambda i: weyl[i]}
    best["odd"] = lambda i: (i % 2 == 0, i)
    return sorted(sorted(range(number), key=best[evict])[:places])


def odd_first(number, seed=None):
    return number + (number % 2 == 0).astype(jnp.uint32) * np.uint32(1 << 20)


@compiled
def shelved(which, shelf, bank, chunk):
    """Evict one chunk under rule number `which`."""
    rules = [*RULES.values(), odd_first]
    rule = lambda number, seed=None: jax.lax.switch(which, rules, number)
    gone = chunk.tokens._replace(modality=chunk.tokens.modality.astype(jnp.int8))
    shelf, spill = shelve(shelf, gone, rule, blocks.by_mean())
    return shelf, append_spill(bank, ZERO, spill)


@pytest.mark.parametrize("evict", [*RULES, "odd"])
def test_a_full_bank_follows_its_rule(evict):
    """Everything is evicted in order: block b is tokens 4 b to 4 b + 3."""
    memory = bank(recent(4, sinks=0), 23, block=4)
    assert memory.bank == 20
    chunks = cut(laws.stream(100), [10] * 10, 10)
    carry = (memory.init(SPEC_1).aux.shelf, init_bank(memory, SPEC_1))
    index = np.arange(5, dtype=np.int32)
    for c in range(10):
        carry = shelved([*RULES, "odd"].index(evict), *carry, pick(chunks, c))
        full = 10 * (c + 1) // 4
        stored = jax.device_get(inside(carry[1], index, index < int(carry[0].used)))
        arrivals = ((stored.index[:, 0] - 1) // 2)[stored.modality[:, 0] != 0].reshape(-1, 4)
        np.testing.assert_array_equal(np.diff(arrivals, axis=1), 1)
        have = sorted((arrivals[:, 0] // 4).tolist())
        assert have == rule_by_hand(evict, full, 5)
        assert int(carry[1].lost[0]) == 4 * max(full - 5, 0)
        assert int(carry[1].count[0]) == 4 * min(full, 5)


QUERY = Question(jnp.asarray(np.random.default_rng(5).normal(size=(3, 4, 4)), jnp.float32),
              jnp.asarray([True, True, False]), None)  # fmt: skip


@pytest.mark.parametrize("recall", ["mean", "attention", "parts"])
def test_recall_rules_against_loops(recall):
    rng = np.random.default_rng(0)
    k, q = rng.normal(size=(5, 6, 2, 4)).astype(np.float32), np.asarray(QUERY.q)[:2]
    there = np.array([True, True, True, True, False])
    rule = {
        "mean": blocks.by_mean(),
        "attention": blocks.by_attention(),
        "parts": blocks.by_parts(4),
    }[recall]
    tokens = SPEC.empty(6)
    known = lambda k: jax.vmap(lambda one: rule.summary(tokens._replace(k=one)))(k)
    got = compiled(lambda k: rule.score(known(k), jnp.asarray(there), QUERY))(k)
    want = np.zeros(5)
    if recall == "attention":
        for row in q:
            for h in range(4):
                logits = np.array([row[h] @ k[b, :, h // 2].mean(0) / 2 for b in range(4)])
                want[:4] += np.exp(logits) / np.exp(logits).sum() / 4
    else:
        cuts = [slice(0, 6)] if recall == "mean" else [slice(0, 1), slice(1, 2), slice(2, 3)]
        cuts += [] if recall == "mean" else [slice(3, 6)]
        for b in range(5):
            each = [
                sum(q.mean(0)[h] @ k[b, part, h // 2].mean(0) for h in range(4)) for part in cuts
            ]
            want[b] = max(each)
    np.testing.assert_allclose(np.asarray(got)[there], want[there], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", [pytest.param("device", marks=pytest.mark.slow), "host"])
def test_planted_evidence_comes_back_with_the_bank_and_not_without(space):
    """Four neighbours of 80 point where the question looks; the window lost them long ago."""
    flat = laws.stream(80)
    q = np.asarray(QUERY.q)[:2].mean(0).reshape(2, 2, 4).sum(1)
    planted = np.arange(20, 24)
    flat.tokens.k[planted] = 4 * q / np.linalg.norm(q)
    chunks = cut(flat, [8] * 10, 8)
    memory = bank(recent(8, sinks=0), 64, block=4, topk=1)
    spec = replace(SPEC_1, bank_space=space)
    carry, step = (memory.init(spec), init_bank(memory, spec)), stepper(memory)
    for c in range(10):
        carry = step(carry, pick(chunks, c))
    read = compiled(lambda s, b: memory.recall(s, of_layer(b, ZERO), QUERY).tokens)(*carry)
    alone = kv_of(carry[0].slots)
    assert not np.isin(planted, (laws.held(alone) - 1) // 2).any()
    got = (laws.held(read) - 1) // 2
    np.testing.assert_array_equal(got, [*planted, *range(72, 80)])
    np.testing.assert_array_equal(np.asarray(read.k)[:4], flat.tokens.k[planted])


CFG = small.config(layers=1)
ROWS = small.stream_rows(CFG, 5, 8, lengths=[8, 5, 8, 8, 7])


@cache
def weights():
    return small.params(CFG)


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


def program_of(memory, space="host", cfg=CFG, **more):
    return make_program(cfg, memory, spec_of(cfg, chunk=8, bank_space=space, **more))


@cache
def watched(scope="layer"):
    one = recent(8, sinks=0) if scope == "layer" else stacked(recent(8, sinks=0))
    program = program_of(bank(one, 40, block=4, topk=10))
    return program, stream(weights(), init_carry(program), ROWS, program=program)


@partial(compiled, static_argnums=0)
def prefilled(program, carry, rows):
    return prefill(weights(), program, carry, rows, room=1)[1]


# On the device: test_bank_gradient.py.
@pytest.mark.parametrize("scope", ["layer", "stack"])
def test_recall_of_all_blocks_is_full_attention(scope):
    """In a decoder of one layer keys do not depend on what was attended to before."""
    program, carry = watched(scope)
    question = small.chunk(small.stream_rows(CFG, 1, 4, seed=1), 0)
    x, pos, end = small.flat(ROWS)
    x, pos = np.concatenate([x, question.x]), np.concatenate([pos, np.asarray(question.pos) + end])
    want = np.asarray(small.one_pass(weights(), CFG, x, pos))[-4:]
    np.testing.assert_allclose(prefilled(program, carry, question), want, atol=1e-4)
    robbed = carry._replace(bank=carry.bank._replace(slots=init_carry(program).bank.slots))
    assert np.abs(prefilled(program, robbed, question) - want).max() > 1e-2


def test_contiguous_positions_number_all_that_is_read():
    memory = bank(recent(8, sinks=0), 64, block=4, topk=2, positions="contiguous")
    spec = replace(SPEC_1, prefix=3)
    carry, step = (memory.init(spec), init_bank(memory, spec)), stepper(memory)
    for c in range(4):
        carry = step(carry, pick(standard(), c))
    view = compiled(lambda s, b: memory.recall(s, of_layer(b, ZERO), QUERY))(*carry)
    n = int(tk.count(view.tokens))
    assert n == 8 + 2 + 8  # two blocks, what waits, and the window: 22 tokens have come
    for axis in range(3):
        np.testing.assert_array_equal(view.tokens.pos[:n, 0, axis], 3 + np.arange(n))
    np.testing.assert_array_equal(view.base, [3 + n] * 3)
    assert (np.diff(view.tokens.index[:n, 0]) > 0).all()


def kinds(carry):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(carry.bank.slots)}


def test_entries_stay_in_host_memory(tmp_path):
    """Through streams, branches and a file; one program for all, which never holds the bank."""
    program, carry = watched()
    assert kinds(carry) == kinds(init_carry(program)) == {store.KIND}
    rest = [*jax.tree.leaves(carry.state), carry.bank.count]
    assert {leaf.sharding.memory_kind for leaf in rest} == {"device"}

    before = stream._cache_size()
    first, carry = branch(carry), branch(carry)
    carry = stream(weights(), carry, ROWS, program=program)
    assert kinds(first) == kinds(carry) == {store.KIND}
    assert int(first.bank.count[0]) == 28 and int(carry.bank.count[0]) == 40
    save(tmp_path / "live", first)
    loaded = restore(tmp_path / "live", program)
    assert kinds(loaded) == {store.KIND}
    again = stream(weights(), loaded, ROWS, program=program)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(carry))
    assert stream._cache_size() == before
    same = stream(weights(), branch(first), ROWS, program=program)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(same), jax.device_get(carry))


@pytest.mark.parametrize("space", ["device", "host"])
def test_neither_stream_nor_question_copies_the_bank(space):
    program = program_of(bank(recent(8, sinks=0), 1 << 16, block=4, topk=2), space)
    carry = init_carry(program)
    entries = bank_nbytes(program.memory, program.spec)
    step = stream.lower(weights(), carry, ROWS, program=program).compile().memory_analysis()
    rows = question_rows(weights(), [3, 1], program=program)
    asked = ask.lower(weights(), carry, rows, program=program).compile().memory_analysis()
    assert entries > 16 << 20
    # The summaries, a quarter of the keys, may be copied by the loop over layers.
    assert max(step.temp_size_in_bytes, asked.temp_size_in_bytes) < entries // 4
    assert step.alias_size_in_bytes > entries


def test_host_memory_lowers_for_cuda():
    program = program_of(bank(recent(8, sinks=0), 64, block=4, topk=2))
    carry = init_carry(program)
    rows = question_rows(weights(), [3, 1], program=program)
    for traced in (
        stream.trace(weights(), carry, ROWS, program=program),
        ask.trace(weights(), carry, rows, program=program),
    ):
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert 'mhlo.memory_kind = "pinned_host"' in text
        assert "annotate_device_placement" in text and "callback" not in text


def test_banks_side_by_side():
    """Writing and reading under `vmap`, from host memory, against one stream alone."""
    memory, start = banked("recent"), banked("recent").init(SPEC_1)
    alone = start, init_bank(memory, SPEC_1)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), alone)
    step, read = partial(loop, memory), lambda s, b: memory.recall(s, of_layer(b, ZERO), QUERY)
    one, both = stepper(memory), compiled(jax.vmap(step))
    for c in range(len(CUTS)):
        chunks = [pick(standard(seed), c) for seed in (0, 1)]
        alone, many = one(alone, chunks[1]), both(many, laws.side_by_side(*chunks))
    want, got = compiled(read)(*alone), compiled(jax.vmap(read))(*many)
    laws.assert_same(pick((many, got), 1), (alone, want), "stream 1")
    assert not np.array_equal(got.tokens.k[0], got.tokens.k[1])


@pytest.mark.slow
def test_streams_side_by_side():
    program, one = watched()
    other = small.stream_rows(CFG, 5, 8, seed=2, lengths=[8, 5, 8, 8, 7])
    both = jax.tree.map(lambda *x: jnp.stack(x), ROWS, other)
    start = jax.tree.map(lambda x: jnp.stack([x, x]), init_carry(program))
    many = jax.vmap(lambda c, r: stream(weights(), c, r, program=program))(start, both)
    np.testing.assert_array_equal(many.bank.slots.index[0], one.bank.slots.index)
    np.testing.assert_allclose(many.bank.slots.k[0], one.bank.slots.k, atol=1e-5)
    rows = question_rows(weights(), [3, 1], program=program)
    answers = jax.vmap(lambda c: ask(weights(), c, rows, program=program))(many)
    alone = ask(weights(), one, rows, program=program)
    np.testing.assert_allclose(answers.first[0], alone.first, atol=1e-4)


def published(name, space):
    cfg = small.config(axes=1)
    memory, room = rekv(16, block=4, topk=2, sinks=2), 24
    if name == "flexmem":
        index = MemIndex(cfg.rope, (0, 1), keys=2, against="clips", query="behind")
        sizes = {"window": 3, "context_ratio": 2, "topk": 2, "shallow": 1}
        memory, room = flexmem(8, reader="memindex", index=index, **sizes), 16
    program = program_of(memory, space, cfg, bank=room)
    rows = small.stream_rows(cfg, 6, 8, lengths=[8, 5, 8, 8, 7, 8])
    params = small.params(cfg)
    carry = stream(params, init_carry(program), rows, program=program)
    question = question_rows(params, [3, 1, 4], program=program)
    return carry, ask(params, carry, question, program=program)


@pytest.mark.slow  # on the device: test_bank_gradient.py; in host memory: the files of the methods
@pytest.mark.parametrize("name", ["rekv", "flexmem"])
def test_methods_with_a_bank_work_from_either_memory(name):
    here, there = published(name, "device"), published(name, "host")
    assert kinds(there[0]) == {store.KIND} and kinds(here[0]) == {"device"}
    laws.assert_same(jax.device_get(here), jax.device_get(there), "host")
    assert (here[0].bank.lost > 0).all()


@pytest.mark.parametrize("space", ["device", "host"])
def test_footprint_is_what_a_carry_holds(space):
    cfg = small.config()
    for memory in (banked("recent"), quantized(banked("omnimem"), 4), rekv(16, block=4)):
        program = program_of(memory, space, cfg, bank=40)
        carry = jax.eval_shape(partial(init_carry, program))
        price = footprint(memory, program.spec)
        weigh = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        entries, total = weigh(carry.bank.slots), weigh((carry.state, carry.bank))
        on_device = total - entries if space == "host" else total
        assert price == (on_device, total - on_device)
        assert price.device >= nbytes(memory, program.spec)
    assert footprint(recent(8), SPEC) == (nbytes(recent(8), SPEC), 0)


def test_hermes_with_a_bank_loses_nothing():
    """Scope "stack", layers that keep different tokens, and summaries, which are not banked."""
    cfg = small.config(layers=3)
    params, rows = small.params(cfg), small.stream_rows(cfg, 5, 8, lengths=[8, 5, 8, 8, 7])
    memory = bank(hermes(12, positions="keep"), 40, block=4, topk=2)
    program = program_of(memory, cfg=cfg)
    question = question_rows(params, [3, 1], program=program)
    probes = jax.tree.map(lambda x: jnp.stack([x, x]), question)
    step = jax.jit(lambda c, r: chunk_step(params, program, c, r, None, probes)[0])
    carry = init_carry(program)
    for i in range(5):
        carry = step(carry, small.chunk(rows, i))
    parts = (carry.state.slots.tokens, carry.state.aux.shelf.open, carry.bank.slots)
    order, kind = (np.concatenate([getattr(p, n)[..., 0] for p in parts], 1) for n in TOLD)
    written = np.delete(np.arange(41), [8, 14, 23, 32, 40])  # one number a chunk stays free
    for layer in range(3):
        own = (kind[layer] != tk.EMPTY) & (kind[layer] != tk.SUMMARY)
        np.testing.assert_array_equal(np.sort(order[layer][own]), written)
    assert (kind[2] == tk.SUMMARY).any() and not (carry.bank.slots.modality == tk.SUMMARY).any()


@pytest.mark.slow
def test_evidence_decides_an_answer():
    """In the loop: a question looks for its own word, which a window has lost."""
    params = jax.tree.map(lambda x: x, weights())
    layers = params["layers"]
    own = layers["q"]["kernel"].reshape(1, CFG.width, 2, 2, 16).mean(3).reshape(1, CFG.width, 32)
    layers["k"]["kernel"] = own
    rows = small.stream_rows(CFG, 5, 8)
    word = dec.embed(params, jnp.asarray(3))
    rows = rows._replace(x=rows.x.at[1, 0:4].set(word[None]))
    heard = []

    def told(memory):
        def recall(state, bank, query):
            view = memory.recall(state, bank, query)
            jax.debug.callback(lambda x: heard.append(np.asarray(x)), view.tokens.index)
            return view

        return memory._replace(recall=recall)

    for memory in (recent(8, sinks=0), bank(recent(8, sinks=0), 40, block=4, topk=1)):
        program = program_of(told(memory))
        carry = stream(params, init_carry(program), rows, program=program)
        ask(params, carry, question_rows(params, [3], program=program), program=program)
    jax.effects_barrier()
    planted = 9 + np.arange(4)  # one number after each chunk stays free
    assert not np.isin(planted, heard[0]).any() and np.isin(planted, heard[1]).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bank(recent(8), 3, block=4), "capacity=3, block=4"),
        (lambda: bank(recent(8), 8, block=4, topk=0), "topk=0"),
        (lambda: bank(recent(8), 32, evict="best"), "'best'"),
        (lambda: bank(recent(8), 32, positions="dense"), "'dense'"),
        (lambda: bank(rekv(8), 32), "a bank of its own, a sliding window"),
        (lambda: bank(flash_vstream(), 32), "scope 'feature'"),
        (lambda: blocks.by_parts(0), "at least 1 part"),
        (lambda: banked("recent").recall(banked("recent").init(SPEC), None, None), "stream.ask"),
        (lambda: store.zeros((1,), jnp.float32, "disk"), "'disk'"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_command_line_prices_what_the_device_holds():
    spec = Spec(layers=4, kv_heads=2, heads=4, head_dim=32, width=128, axes=3, chunk=20)
    rope, allowed = CFG.rope, Budget(None, 1 << 19)
    names = ("recent", "omnimem", "rekv", "full")
    around = Bank(capacity=1000, block=10, topk=3, recall="parts", evict="uniform")
    chosen = choose(names, Memories(bank=around, bits=8), allowed, spec, rope, 4800)
    titles = [one.memory.name for one in chosen]
    assert titles == ["recent_int8_bank", "omnimem_int8_bank", "rekv_int8", "full"]
    for one in chosen[:3]:
        price = footprint(one.memory, one.spec)
        assert price.device <= 1 << 19 < 1.01 * price.device and one.spec.bank_space == "host"
        assert price.host == bank_nbytes(one.memory, one.spec) - 4 * 2 * 4
        assert one.options["bits"] == 8
    assert chosen[0].options["bank"]["evict"] == "uniform" and chosen[3].memory.bank is None
    # Of a bank on the device the entries count too: 4800 tokens in 4 layers are 10 MB.
    with pytest.raises(ValueError, match="hold no memory"):
        choose(("rekv",), Memories(bank=Bank(space="device")), allowed, spec, rope, 4800)
    with pytest.raises(ValueError, match="scope 'feature'"):
        choose(("moviechat",), Memories(bank=around), allowed, spec, rope, 4800)


def test_a_device_without_host_memory_is_told(monkeypatch):
    monkeypatch.setattr(store, "KIND", "moon")
    with pytest.raises(ValueError, match='bank_space="device"'):
        store.zeros((1,), jnp.float32, "host")


def test_bursts_become_several_blocks():
    """A memory that drops everything at once spills more than a chunk."""
    drop = evict(
        32, lambda pool: jnp.where(pool.newest(1), 1.0, -jnp.inf) * (pool.n > 28), name="burst"
    )
    memory = bank(drop, 64, block=4)
    carry, step = (memory.init(SPEC_1), init_bank(memory, SPEC_1)), stepper(memory)
    for c in range(len(CUTS)):
        carry = step(carry, pick(standard(), c))
    assert memory.name == "burst_bank" and int(carry[1].count[0]) > 8
