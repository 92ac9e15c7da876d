"""FlexMem through the decoder: laws of the loop, both readers, and the fit of an index."""

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from laws import compiled

import jaxmem as jm
from jaxmem.asking import ask
from jaxmem.bound import Bound, probe_rows, question_rows
from jaxmem.decoder.answer import first_pass
from jaxmem.decoder.program import init_carry, layers_of, make_program, spec_of
from jaxmem.decoder.step import chunk_step, make_prefix
from jaxmem.loop import stream
from jaxmem.memory.base import Memory, State
from jaxmem.memory.exchange import Question
from jaxmem.memory.flexmem import memindex
from jaxmem.memory.flexmem.flexmem import FlexMem
from jaxmem.memory.flexmem.memindex import Encoding, MemIndex, fit_layers

CFG = small.config(axes=1)
SIZES = {"window": 3, "context_ratio": 2, "topk": 2, "shallow": 1, "capacity": 40}
READERS = {"encoding": Encoding("a question"), "memindex": MemIndex((0, 1), keys=2)}


@cache
def weights():
    return small.params(CFG)


def decoder_memory(reader="encoding"):
    return FlexMem(11, reader=READERS[reader], **SIZES)


def watch(memory, rows, *, chunk, prefix=None):
    spec = spec_of(CFG, chunk=chunk, prefix=0 if prefix is None else 2)
    program = make_program(CFG, memory, spec)
    asked = [] if program.requires.probes is None else [[3, 1, 4]]
    probes = probe_rows(weights(), asked, program=program) if asked else None
    bound = Bound(weights(), prefix, probes)
    run = compiled(lambda carry, rows: stream(bound, carry, rows, program=program))
    return program, run(init_carry(program), rows), bound


def same(a, b):
    """Equal in integers, and to 1e-5 in floats."""

    def one(x, y):
        close = {"rtol": 1e-5, "atol": 1e-5} if np.issubdtype(x.dtype, np.floating) else {"rtol": 0}
        np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), **close)

    jax.tree.map(one, jax.device_get(a), jax.device_get(b))


LENGTHS = [8, 5, 8, 8, 8, 3, 8]
CLIPS = [8, 5, 8, 8, 11, 8]  # three rows have room in the clip of the eight before them


@cache
def watched(reader):
    """A stream after a prompt of two words."""
    memory = decoder_memory(reader)
    plain = make_program(CFG, memory, spec_of(CFG, chunk=8))
    prompt = question_rows(weights(), [5, 6], program=plain, size=2)
    prefix = compiled(lambda rows: make_prefix(weights(), CFG, rows))(prompt)
    rows = small.stream_rows(CFG, 7, 8, lengths=LENGTHS)
    return rows, *watch(memory, rows, chunk=8, prefix=prefix)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["encoding", "memindex"])
def test_vmap_and_padding(reader):
    """Two streams side by side, in longer chunks, equal one alone (in a loop: laws_everywhere)."""
    rows, program, carry, bound = watched(reader)
    other = small.stream_rows(CFG, 7, 8, seed=2, lengths=LENGTHS[::-1])
    both = jax.tree.map(lambda *x: jnp.stack(x), rows, other)
    padded = lambda x: jnp.pad(
        x, [(0, 0), (0, 0), (0, 3)] + [(0, 0)] * (x.ndim - 3), constant_values=5 * (x.ndim > 3)
    )
    longer = both._replace(x=padded(both.x), pos=padded(both.pos), modality=padded(both.modality))
    program = make_program(CFG, program.memory, spec_of(CFG, chunk=11, prefix=2))
    start = jax.tree.map(lambda x: jnp.stack([x, x]), init_carry(program))
    one = lambda c, r: stream(bound, c, r, program=program)
    alone = jax.tree.map(lambda x: x[0], compiled(jax.vmap(one))(start, longer))
    same(carry._replace(made_by=None), alone._replace(made_by=None))


@pytest.mark.parametrize(
    ("reader", "reindex"),
    [("encoding", True), pytest.param("memindex", False, marks=pytest.mark.slow)],
)
def test_ample_budget_is_full_attention(reader, reindex):
    memory = FlexMem(
        11,
        window=4,
        context_ratio=1,
        local_ratio=1,
        topk=4,
        shallow=1,
        long_term=False,
        reader=READERS[reader],
        capacity=44,
        reindex=reindex,
    )
    rows = small.stream_rows(CFG, 3, 8, lengths=[8, 5, 7])
    program, carry, _ = watch(memory, rows, chunk=8)
    small.assert_full_attention(weights(), rows, program, carry)


def test_a_question_asked_afterwards_reads_by_its_last_row():
    """Memindex through `ask`: the clips of `memindex.scores`, and a carry that stays as it was."""
    _, program, carry, bound = watched("memindex")
    memory, spec = program.memory, program.spec
    before = jax.device_get(carry)
    question = question_rows(weights(), [7, 8, 9], program=program)
    answer = ask(bound, carry, question, program=program, max_new=2)
    assert np.isfinite(answer.first).all()
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(carry))

    short = question_rows(weights(), [7, 8, 9], program=program, size=3)
    picked = []
    index, book = READERS["memindex"], carry.state.aux.ledger
    assert book.noted == len(CLIPS) and book.rows[: len(CLIPS)].tolist() == CLIPS

    @compiled
    def found(carry, rows):
        query = first_pass(weights(), program, rows, bound.prefix)
        query = Question(query, rows.modality != 0, bound.prefix)
        many = jnp.minimum(book.rows, 2)
        score = memindex.scores(index, spec, carry.state.aux.keys, many, query)
        return memory.recall(spec, carry.state, query, carry.bank), score

    ends = np.cumsum(np.asarray(LENGTHS) + 1)
    clip_of = np.asarray([0, 1, 2, 3, 4, 4, 5])  # of a chunk
    for rows in (question, short):  # padding of the question changes nothing
        view, score = found(carry, rows)
        used = np.asarray(view.kv.modality)[0, :, 0] != 0
        picked.append(np.asarray(view.kv.index)[0, :, 0][used].tolist())
        best = np.sort(np.argsort(-np.asarray(score)[: len(CLIPS)])[:2])
        got = np.unique(clip_of[np.searchsorted(ends, picked[-1], "right")])
        np.testing.assert_array_equal(got, best)
    assert picked[0] == picked[1]


@dataclass(frozen=True)
class Reporting(Memory):
    """A memory's view, with `counted` as it says or nothing; the rows' mass in place of aux."""

    per = "stack"
    inner: FlexMem
    nothing: bool

    @property
    def requires(self):
        return self.inner.requires

    def init(self, spec, layer=0):
        return self.inner.init(spec, layer)

    def bank(self, spec):
        return self.inner.bank(spec)

    def view(self, spec, state, embeds, bank=None):
        out = self.inner.view(spec, state, embeds, bank)
        empty = jnp.zeros(out.kv.modality.shape[:2], bool)
        return out._replace(counted=empty if self.nothing else None)

    def write(self, spec, state, chunk):
        del spec
        return State(state.slots, chunk.given), None


def test_row_mass_counts_what_the_view_says():
    """`View.counted` through the layer: nothing counted, no mass; without it, some."""
    memory = decoder_memory()
    rows = small.stream_rows(CFG, 2, 8)
    program, carry, bound = watch(memory, small.stream_rows(CFG, 1, 8), chunk=8)
    for nothing in (True, False):
        reporting = make_program(CFG, Reporting(memory, nothing), program.spec)

        @compiled
        def step(carry, rows, reporting=reporting):
            return chunk_step(weights(), reporting, carry, rows, None, bound.probes)[0].state.aux

        given = np.asarray(step(carry, small.chunk(rows, 1)))
        assert (given == 0).all() if nothing else (given > 0).all()


def test_layers_are_fitted_on_a_stream():
    """Keys of all layers and g from one pass with the question known: what `fit_layers` needs."""
    index = MemIndex((0, 1), keys=2, against="clips")
    memory = replace(decoder_memory(), index=index)
    rows = small.stream_rows(CFG, 7, 8, lengths=LENGTHS)
    program, carry, _ = watch(memory, rows, chunk=8)
    question = question_rows(weights(), [3, 1, 4], program=program)
    aux = carry.state.aux

    @compiled
    def scores(question):
        query = first_pass(weights(), program, question, None)
        query = Question(query, question.modality != 0, None)
        many = jnp.minimum(aux.ledger.rows, index.keys)
        return memindex.layer_scores(index, program.spec, aux.keys, many, query)

    r, n = scores(question), int(aux.ledger.noted)
    assert n == len(CLIPS)
    assert (np.asarray(aux.relevance[:n]) > 0).all() and not np.asarray(aux.relevance[n:]).any()
    alpha = fit_layers(r[:, :n].T, aux.relevance[:n])
    x, y, best = np.asarray(r)[:, :n].T, np.asarray(aux.relevance[:n]), np.asarray(alpha)
    error = lambda a: float(np.sum((x @ a - y) ** 2))
    assert all(error(best) <= error(best + d) + 1e-6 for d in 0.05 * np.eye(2))


def test_the_question_is_one_probe():
    rows = small.stream_rows(CFG, 1, 8)
    program = make_program(CFG, decoder_memory(), spec_of(CFG, chunk=8))
    two = probe_rows(weights(), [[3], [4]], program=program)
    with pytest.raises(ValueError, match="scores by 1 probes, got 2"):
        stream(Bound(weights(), probes=two), init_carry(program), rows, program=program)


def test_numbers_without_a_layer_axis_are_shown_whole():
    """What `Session.layers` and reports read: every layer's slots, beside the numbers of all."""
    _, program, carry, _ = watched("memindex")
    for one in (carry, jax.tree.map(np.asarray, carry)):
        layers = layers_of(program, one)
        assert len(layers) == CFG.layers
        for layer, state in enumerate(layers):
            np.testing.assert_array_equal(state.slots.k, one.state.slots.k[layer])
            assert state.aux is one.state.aux


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param(jm.FlexMem(capacity=512), id="memindex"),
        pytest.param(
            jm.FlexMem(reader=Encoding("what was the last shape?"), capacity=512),
            id="encoding",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_session_runs_the_defaults(memory):
    model, rng = jm.load("tiny"), np.random.default_rng(0)
    session = jm.Session(model, memory)
    for _ in range(4):
        frames = rng.integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)
        samples = 0.1 * rng.normal(size=16_000).astype(np.float32)
        session.feed(SimpleNamespace(frames=frames, samples=samples))
    reply = session.ask("what was the last shape?")
    assert np.isfinite(reply.logits).all()
    assert len(session.layers()) == model.decoder.layers
