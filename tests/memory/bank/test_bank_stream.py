"""A bank in the streaming loop: recall of everything, two memories, streams side by side."""

from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from banks import banked
from laws import SPEC, compiled

from jaxmem import kv as kvs
from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder import decoder as dec
from jaxmem.decoder.answer import prefill
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.loop import advance, branch, stream
from jaxmem.memory.bank import host_memory
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.base import Memory, kv_of
from jaxmem.memory.baselines import Recent
from jaxmem.memory.flexmem.flexmem import FlexMem
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.memory.sizes import nbytes
from jaxmem.memory.transforms.around import Around
from jaxmem.memory.transforms.quantized import Quantized
from jaxmem.memory.video.rekv import ReKV
from jaxmem.saving import restore, save

CFG = small.config(layers=1)
LENGTHS = [8, 5, 8, 8, 7]
ROWS = small.stream_rows(CFG, 5, 8, lengths=LENGTHS)
WINDOW = Recent(8, sinks=0)


@cache
def weights():
    return small.params(CFG)


@dataclass(frozen=True)
class Stacked(Memory):
    """The same policy over all layers at once."""

    per: ClassVar = "stack"
    memory: Memory = WINDOW

    def init(self, spec, layer=0):
        states = [self.memory.init(spec, i) for i in range(spec.layers)]
        return jax.tree.map(lambda *x: jnp.stack(x), *states)

    def write(self, spec, state, chunk):
        return jax.vmap(lambda s, c: self.memory.write(spec, s, c)[0])(state, chunk), None

    def view(self, spec, state, embeds, bank=None):
        return jax.vmap(lambda one: self.memory.view(spec, one, embeds))(state)

    def kv(self, state):
        return self.memory.kv(state)


def program_of(memory, cfg=CFG):
    return make_program(cfg, memory, spec_of(cfg, chunk=8))


@cache
def watched(per="layer"):
    one = WINDOW if per == "layer" else Stacked()
    program = program_of(WithBank(one, 40, block=4, topk=10))
    return program, stream(weights(), init_carry(program), ROWS, program=program)


@partial(compiled, static_argnums=0)
def prefilled(program, carry, rows):
    return prefill(weights(), program, carry, rows, room=1)[1]


# On the device: test_bank_gradient.py.
@pytest.mark.parametrize("per", ["layer", "stack"])
def test_recall_of_all_blocks_is_full_attention(per):
    """In a decoder of one layer keys do not depend on what was attended to before."""
    program, carry = watched(per)
    question, want = small.asked_in_one_pass(weights(), CFG, ROWS)
    np.testing.assert_allclose(prefilled(program, carry, question), want, atol=1e-4)
    robbed = carry._replace(bank=carry.bank._replace(slots=init_carry(program).bank.slots))
    assert np.abs(prefilled(program, robbed, question) - want).max() > 1e-2


def spaces(carry):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(carry.bank.slots)}


def test_entries_stay_in_host_memory(tmp_path):
    """Through streams, branches and a file; one program for all, which never holds the bank."""
    program, carry = watched()
    assert spaces(carry) == spaces(init_carry(program)) == {host_memory.KIND}
    rest = [*jax.tree.leaves(carry.state), carry.bank.count]
    assert {leaf.sharding.memory_kind for leaf in rest} == {"device"}

    before = stream._cache_size()
    first, carry = branch(carry), branch(carry)
    carry = stream(weights(), carry, ROWS, program=program)
    assert spaces(first) == spaces(carry) == {host_memory.KIND}
    assert int(first.bank.count[0]) == 28 and int(carry.bank.count[0]) == 40
    save(tmp_path / "live", first)
    loaded = restore(tmp_path / "live", program)
    assert spaces(loaded) == {host_memory.KIND}
    again = stream(weights(), loaded, ROWS, program=program)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(carry))
    assert stream._cache_size() == before
    same = stream(weights(), branch(first), ROWS, program=program)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(same), jax.device_get(carry))


@pytest.mark.parametrize("space", ["device", "host"])
def test_neither_stream_nor_question_copies_the_bank(space):
    program = program_of(WithBank(WINDOW, 1 << 16, block=4, topk=2, space=space))
    carry = init_carry(program)
    entries = sum(x.nbytes for x in jax.tree.leaves(carry.bank.slots))
    step = advance.lower(weights(), carry, ROWS, program=program).compile().memory_analysis()
    rows = question_rows(weights(), [3, 1], program=program)
    asked = ask.lower(weights(), carry, rows, program=program).compile().memory_analysis()
    assert entries > 16 << 20
    # The summaries, a quarter of the keys, may be copied by the loop over layers.
    assert max(step.temp_size_in_bytes, asked.temp_size_in_bytes) < entries // 4
    assert step.alias_size_in_bytes > entries


def test_host_memory_lowers_for_cuda():
    program = program_of(WithBank(WINDOW, 64, block=4, topk=2))
    carry = init_carry(program)
    rows = question_rows(weights(), [3, 1], program=program)
    for traced in (
        stream.trace(weights(), carry, ROWS, program=program),
        ask.trace(weights(), carry, rows, program=program),
    ):
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert 'mhlo.memory_kind = "pinned_host"' in text
        assert "annotate_device_placement" in text and "callback" not in text


@pytest.mark.slow
def test_streams_side_by_side():
    program, one = watched()
    other = small.stream_rows(CFG, 5, 8, seed=2, lengths=LENGTHS)
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
    if name == "rekv":
        memory = ReKV(16, block=4, topk=2, sinks=2, capacity=24, space=space)
    else:
        index = MemIndex((0, 1), keys=2, against="clips", query="after")
        sizes = {"window": 3, "context_ratio": 2, "topk": 2, "shallow": 1, "capacity": 16}
        memory = FlexMem(8, reader=index, space=space, **sizes)
    program = program_of(memory, cfg)
    rows = small.stream_rows(cfg, 6, 8, lengths=[*LENGTHS, 8])
    params = small.params(cfg)
    carry = stream(params, init_carry(program), rows, program=program)
    question = question_rows(params, [3, 1, 4], program=program)
    return carry, ask(params, carry, question, program=program)


@pytest.mark.slow  # on the device: test_bank_gradient.py; in host memory: the files of the methods
@pytest.mark.parametrize("name", ["rekv", "flexmem"])
def test_methods_with_a_bank_work_from_either_memory(name):
    here, there = published(name, "device"), published(name, "host")
    assert spaces(there[0]) == {host_memory.KIND} and spaces(here[0]) == {"device"}
    unmade = lambda found: (found[0]._replace(made_by=None), found[1])
    laws.assert_same(*(jax.device_get(unmade(x)) for x in (here, there)), "host")
    assert (here[0].bank.dropped > 0).all()


@pytest.mark.parametrize("space", ["device", "host"])
def test_footprint_is_what_a_carry_holds(space):
    cfg = small.config()
    more = {"capacity": 40, "space": space}
    for memory in (
        banked("recent", **more),
        Quantized(banked("omnimem", **more), 4),
        ReKV(16, block=4, **more),
    ):
        program = program_of(memory, cfg)
        carry = jax.eval_shape(partial(init_carry, program))
        price = footprint(memory, program.spec)
        weigh = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        entries, total = weigh(carry.bank.slots), weigh((carry.state, carry.bank))
        on_device = total - entries if space == "host" else total
        assert price == (on_device, total - on_device)
        assert price.device >= nbytes(memory, program.spec)
    assert footprint(Recent(8), SPEC) == (nbytes(Recent(8), SPEC), 0)


def test_hermes_with_a_bank_loses_nothing():
    """The whole stack, layers that keep different tokens, and summaries, which are not banked."""
    cfg = small.config(layers=3)
    params, rows = small.params(cfg), small.stream_rows(cfg, 5, 8, lengths=LENGTHS)
    memory = WithBank(Hermes(12), 40, block=4, topk=2)
    program = program_of(memory, cfg)
    question = question_rows(params, [3, 1], program=program)
    count = memory.requires.probes.count
    probes = jax.tree.map(lambda x: jnp.stack([x] * count), question)
    step = jax.jit(lambda c, r: chunk_step(params, program, c, r, None, probes)[0])
    carry = init_carry(program)
    for i in range(5):
        carry = step(carry, small.chunk(rows, i))
    parts = (kv_of(carry.state.slots), carry.state.aux.table.open, carry.bank.slots)
    number, kind = (
        np.concatenate([getattr(p, n)[..., 0] for p in parts], 1) for n in ("index", "modality")
    )
    written = np.delete(np.arange(41), [8, 14, 23, 32, 40])  # one number a chunk stays free
    for layer in range(3):
        own = (kind[layer] != kvs.EMPTY) & (kind[layer] != kvs.SUMMARY)
        np.testing.assert_array_equal(np.sort(number[layer][own]), written)
    assert (kind[2] == kvs.SUMMARY).any() and not (carry.bank.slots.modality == kvs.SUMMARY).any()


READ = []


@dataclass(frozen=True)
class Overheard(Around):
    """A memory that notes which tokens a question reads."""

    def inner(self, state):
        return state

    def init(self, spec, layer=0):
        return self.memory.init(spec, layer)

    def write(self, spec, state, chunk):
        return self.memory.write(spec, state, chunk)

    def recall(self, spec, state, question, bank=None):
        view = self.memory.recall(spec, state, question, bank)
        jax.debug.callback(lambda x: READ.append(np.asarray(x)), view.kv.index)
        return view


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
    READ.clear()
    for memory in (WINDOW, WithBank(WINDOW, 40, block=4, topk=1)):
        program = program_of(Overheard(memory))
        carry = stream(params, init_carry(program), rows, program=program)
        ask(params, carry, question_rows(params, [3], program=program), program=program)
    jax.effects_barrier()
    planted = 9 + np.arange(4)  # one number after each chunk stays free
    assert not np.isin(planted, READ[0]).any() and np.isin(planted, READ[1]).all()


def test_a_device_without_host_memory_is_told(monkeypatch):
    monkeypatch.setattr(host_memory, "KIND", "moon")
    with pytest.raises(ValueError, match='space="device"'):
        host_memory.zeros((1,), jnp.float32, "host")


def test_a_third_memory_is_refused():
    with pytest.raises(ValueError, match="'disk'"):
        host_memory.zeros((1,), jnp.float32, "disk")
