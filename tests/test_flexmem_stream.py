"""FlexMem through the decoder: laws of the loop, both readers, and the fit of an index."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from laws import compiled

from jaxmem.decoder.answer import first_pass, prefill
from jaxmem.decoder.step import chunk_step, make_prefix
from jaxmem.loop import ask, init_carry, make_program, probe_rows, question_rows, spec_of, stream
from jaxmem.memory.base import Question
from jaxmem.memory.flexmem import memindex as relevance
from jaxmem.memory.flexmem.flexmem import flexmem
from jaxmem.memory.flexmem.memindex import MemIndex, fit_layers

CFG = small.config(axes=1)


@cache
def weights():
    return small.params(CFG)


def decoder_memory(reader="encoding"):
    index = MemIndex(CFG.rope, (0, 1), keys=2) if reader == "memindex" else None
    return flexmem(11, window=3, context_ratio=2, topk=2, shallow=1, reader=reader, index=index)


def watch(memory, rows, *, chunk, prefix=None, bank=40):
    spec = spec_of(CFG, chunk=chunk, bank=bank, prefix=0 if prefix is None else 2)
    program = make_program(CFG, memory, spec)
    probes = probe_rows(weights(), [[3, 1, 4]], program=program)
    more = {"prefix": prefix, "probes": probes if memory.requires.probe else None}
    run = compiled(lambda carry, rows: stream(weights(), carry, rows, program=program, **more))
    return program, run(init_carry(program), rows), more


def same(a, b):
    """Equal in integers, and to 1e-5 in floats."""

    def one(x, y):
        close = {"rtol": 1e-5, "atol": 1e-5} if np.issubdtype(x.dtype, np.floating) else {"rtol": 0}
        np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), **close)

    jax.tree.map(one, jax.device_get(a), jax.device_get(b))


LENGTHS = [8, 5, 8, 8, 8, 3, 8]


@cache
def watched(reader):
    """A stream behind a prompt of two words."""
    memory = decoder_memory(reader)
    plain = make_program(CFG, memory, spec_of(CFG, chunk=8))
    prompt = question_rows(weights(), [5, 6], program=plain, size=2)
    prefix = compiled(lambda rows: make_prefix(weights(), CFG, rows))(prompt)
    rows = small.stream_rows(CFG, 7, 8, lengths=LENGTHS)
    return rows, *watch(memory, rows, chunk=8, prefix=prefix)


@pytest.mark.parametrize("reader", [pytest.param("encoding", marks=pytest.mark.slow), "memindex"])
def test_vmap_and_padding(reader):
    """Two streams side by side, in longer chunks, equal one alone (in a loop: laws_everywhere)."""
    rows, program, carry, more = watched(reader)
    other = small.stream_rows(CFG, 7, 8, seed=2, lengths=LENGTHS[::-1])
    both = jax.tree.map(lambda *x: jnp.stack(x), rows, other)
    behind = lambda x: jnp.pad(
        x, [(0, 0), (0, 0), (0, 3)] + [(0, 0)] * (x.ndim - 3), constant_values=5 * (x.ndim > 3)
    )
    longer = both._replace(x=behind(both.x), pos=behind(both.pos), modality=behind(both.modality))
    program = make_program(CFG, program.memory, spec_of(CFG, chunk=11, bank=40, prefix=2))
    start = jax.tree.map(lambda x: jnp.stack([x, x]), init_carry(program))
    one = lambda c, r: stream(weights(), c, r, program=program, **more)
    same(carry, jax.tree.map(lambda x: x[0], compiled(jax.vmap(one))(start, longer)))


@pytest.mark.parametrize(
    ("reader", "positions"),
    [("encoding", "contiguous"), pytest.param("memindex", "keep", marks=pytest.mark.slow)],
)
def test_ample_budget_is_full_attention(reader, positions):
    memory = flexmem(
        11,
        window=4,
        context_ratio=1,
        local_ratio=1,
        topk=4,
        shallow=1,
        long_term=False,
        reader=reader,
        index=MemIndex(CFG.rope, (0, 1), against="clips") if reader == "memindex" else None,
        positions=positions,
    )
    rows = small.stream_rows(CFG, 3, 8, lengths=[8, 5, 7])
    program, carry, _ = watch(memory, rows, chunk=8, bank=44)
    question = small.chunk(small.stream_rows(CFG, 1, 4, seed=1), 0)
    h = compiled(lambda c, r: prefill(weights(), program, c, r, room=1)[1])(carry, question)
    x, pos, end = small.flat(rows)
    x, pos = np.concatenate([x, question.x]), np.concatenate([pos, np.asarray(question.pos) + end])
    np.testing.assert_allclose(h, small.one_pass(weights(), CFG, x, pos)[-4:], atol=1e-4)


def test_a_question_asked_afterwards_reads_by_its_last_row():
    """Memindex through `ask`: the clips of `relevance.scores`, and a carry that stays as it was."""
    _, program, carry, more = watched("memindex")
    memory, prefix = program.memory, more["prefix"]
    before = jax.device_get(carry)
    question = question_rows(weights(), [7, 8, 9], program=program)
    answer = ask(weights(), carry, question, program=program, prefix=prefix, max_new=2)
    assert np.isfinite(answer.first).all()
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(carry))

    short = question_rows(weights(), [7, 8, 9], program=program, size=3)
    picked = []
    index, book = MemIndex(CFG.rope, (0, 1), keys=2), carry.state.aux.book

    @compiled
    def told(carry, rows):
        query = Question(first_pass(weights(), program, rows, prefix), rows.modality != 0, prefix)
        many = jnp.minimum(book.rows, 2)
        score = relevance.scores(index, carry.state.aux.keys, many, query)
        return memory.recall(carry.state, carry.bank, query), score

    for rows in (question, short):  # padding of the question changes nothing
        view, score = told(carry, rows)
        used = np.asarray(view.tokens.modality)[0, :, 0] != 0
        picked.append(np.asarray(view.tokens.index)[0, :, 0][used].tolist())
        best = np.sort(np.argsort(-np.asarray(score)[:7])[:2])
        got = np.unique([int(np.searchsorted(np.cumsum(LENGTHS) + np.arange(7) + 1, o, "right"))
                         for o in picked[-1]])  # fmt: skip
        np.testing.assert_array_equal(got, best)
    assert picked[0] == picked[1]


def test_row_mass_counts_what_the_view_says():
    """`View.counted` through the layer: nothing counted, no mass; without it, some."""
    memory = decoder_memory()
    rows = small.stream_rows(CFG, 2, 8)
    seen = {}
    program, carry, more = watch(memory, small.stream_rows(CFG, 1, 8), chunk=8)
    for name in ("none", "all"):

        def view(*a, name=name):
            out = memory.view(*a)
            empty = jnp.zeros(out.tokens.modality.shape[:2], bool)
            return out._replace(counted=empty if name == "none" else None)

        watched = memory._replace(view=view)
        report = watched._replace(write=lambda s, seen: (s._replace(aux=seen.rows), None))
        reporting = make_program(CFG, report, program.spec)
        step = lambda c, r, p=reporting, m=more: chunk_step(weights(), p, c, r, None, m["probes"])
        seen[name] = np.asarray(compiled(step)(carry, small.chunk(rows, 1))[0].state.aux)
    assert (seen["none"] == 0).all() and (seen["all"] > 0).all()


def test_layers_are_fitted_on_a_stream():
    """Keys of all layers and g from one pass with the question known: what `fit_layers` needs."""
    index = MemIndex(CFG.rope, (0, 1), keys=2, against="clips")
    memory = flexmem(11, window=3, context_ratio=2, local_ratio=2, shallow=1, index=index)
    rows = small.stream_rows(CFG, 7, 8, lengths=LENGTHS)
    program, carry, _ = watch(memory, rows, chunk=8)
    question = question_rows(weights(), [3, 1, 4], program=program)
    notes = carry.state.aux

    @compiled
    def scores(question):
        query = Question(
            first_pass(weights(), program, question, None), question.modality != 0, None
        )
        return relevance.layer_scores(index, notes.keys, jnp.minimum(notes.book.rows, 2), query)

    r = scores(question)
    assert (np.asarray(notes.relevance[:7]) > 0).all() and not np.asarray(notes.relevance[7:]).any()
    alpha = fit_layers(r[:, :7].T, notes.relevance[:7])
    x, y, best = np.asarray(r)[:, :7].T, np.asarray(notes.relevance[:7]), np.asarray(alpha)
    error = lambda a: float(np.sum((x @ a - y) ** 2))
    assert all(error(best) <= error(best + d) + 1e-6 for d in 0.05 * np.eye(2))


def test_the_question_is_one_probe():
    rows = small.stream_rows(CFG, 1, 8)
    program = make_program(CFG, decoder_memory(), spec_of(CFG, chunk=8, bank=40))
    two = probe_rows(weights(), [[3], [4]], program=program)
    with pytest.raises(ValueError, match="alone"):
        stream(weights(), init_carry(program), rows, program=program, probes=two)
