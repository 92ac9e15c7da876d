"""Which block a full bank gives up, and which blocks a question reads, against plain loops."""

from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from banks import QUERY, SPEC_1, ZERO, reader, start, stepper
from laws import SPEC, compiled, cut, pick

from jaxmem.memory.bank import retrieval, rules
from jaxmem.memory.bank.bank import append, of_layer
from jaxmem.memory.bank.block_table import file_away
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.base import kv_of
from jaxmem.memory.baselines import GOLDEN, Recent
from jaxmem.memory.parts.prioritized import EDGE
from jaxmem.memory.parts.units import Number


@compiled
def inside(bank, index, keep):
    return retrieval.stored(of_layer(bank, ZERO), index, keep, 4)


def rule_by_hand(full, first, number, places):
    """Return the block numbers that a bank of `places` blocks has after `number` came."""
    weyl = lambda i: i * GOLDEN % 2**64 >> 32
    best = {"oldest": lambda i: -i, "newest": lambda i: i, "uniform": weyl}
    coming = [first + i for i in range(number)]
    return sorted(i - first for i in sorted(coming, key=best[full])[:places])


@partial(compiled, static_argnums=0)
def filed(full, table, bank, chunk):
    """Evict one chunk."""
    gone = chunk.tokens._replace(modality=chunk.tokens.modality.astype(jnp.int8))
    table, evicted = file_away(table, gone, full, retrieval.ByMean())
    return table, append(bank, ZERO, evicted)


def number_of(value):
    return Number(jnp.uint32(value % 2**32), jnp.uint32(value >> 32))


# Where the numbers of an order by age are moved down, and, of others, where a word ends.
@pytest.mark.parametrize(
    ("full", "first"),
    [
        *[(full, 0) for full in rules.RULES],
        ("oldest", int(EDGE) - 5),
        *[(full, first) for full in ("newest", "uniform") for first in (2**32 - 5, 2**33 - 5)],
    ],
)
def test_a_full_bank_follows_its_rule(full, first):
    """Everything is evicted in order: block b is tokens 4 b to 4 b + 3."""
    memory = WithBank(Recent(4, sinks=0), 23, block=4)
    assert memory.bank(SPEC_1).capacity == 20
    chunks = cut(laws.stream(100), [10] * 10, 10)
    state, bank = start(memory)
    carry = state.aux.table._replace(written=number_of(first)), bank
    index = np.arange(5, dtype=np.int32)
    for c in range(10):
        carry = filed(full, *carry, pick(chunks, c))
        many = 10 * (c + 1) // 4
        stored = jax.device_get(inside(carry[1], index, index < int(carry[0].used)))
        arrivals = ((stored.index[:, 0] - 1) // 2)[stored.modality[:, 0] != 0].reshape(-1, 4)
        np.testing.assert_array_equal(np.diff(arrivals, axis=1), 1)
        have = sorted((arrivals[:, 0] // 4).tolist())
        if full == "newest" and first + many > 2**32 - 2 and many > 5:
            assert have == [0, 1, 2, 3, 4]  # what came first stays, whatever is counted
        else:
            assert have == rule_by_hand(full, first, many, 5)
        assert int(carry[1].dropped[0]) == 4 * max(many - 5, 0)
        assert int(carry[1].count[0]) == 4 * min(many, 5)


def test_the_count_of_dropped_entries_stops():
    memory = WithBank(Recent(4, sinks=0), 8, block=4)
    chunks = cut(laws.stream(30), [10] * 3, 10)
    state, bank = start(memory)
    carry = state.aux.table, bank._replace(dropped=bank.dropped + (2**31 - 4))
    for c in range(3):
        carry = filed("oldest", *carry, pick(chunks, c))
    np.testing.assert_array_equal(carry[1].dropped, [2**31 - 1])


RECALL = {
    "mean": retrieval.ByMean(),
    "attention": retrieval.ByAttention(),
    "parts": retrieval.ByParts(4),
}


@pytest.mark.parametrize("recall", RECALL)
def test_recall_rules_against_loops(recall):
    rng = np.random.default_rng(0)
    k, q = rng.normal(size=(5, 6, 2, 4)).astype(np.float32), np.asarray(QUERY.q)[:2]
    there = np.array([True, True, True, True, False])
    rule, tokens = RECALL[recall], SPEC.empty(6)
    assert rule == retrieval.RULES[recall]
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


def planted():
    """Return 80 tokens of which four neighbours point where the question looks, and these four."""
    flat, places = laws.stream(80), np.arange(20, 24)
    q = np.asarray(QUERY.q)[:2].mean(0).reshape(2, 2, 4).sum(1)
    flat.tokens.k[places] = 4 * q / np.linalg.norm(q)
    return flat, places


def after_stream(memory, flat):
    carry, chunks = start(memory), cut(flat, [8] * 10, 8)
    for c in range(10):
        carry = stepper(memory)(carry, pick(chunks, c))
    return carry


@pytest.mark.parametrize("space", [pytest.param("device", marks=pytest.mark.slow), "host"])
def test_planted_evidence_comes_back_with_the_bank_and_not_without(space):
    """The window lost it long ago."""
    flat, places = planted()
    memory = WithBank(Recent(8, sinks=0), 64, block=4, topk=1, space=space)
    carry = after_stream(memory, flat)
    read = reader(memory)(*carry).kv
    assert not np.isin(places, (laws.held(kv_of(carry[0].slots)) - 1) // 2).any()
    got = (laws.held(read) - 1) // 2
    np.testing.assert_array_equal(got, [*places, *range(72, 80)])
    np.testing.assert_array_equal(np.asarray(read.k)[:4], flat.tokens.k[places])


@pytest.mark.parametrize("recall", RECALL)
def test_a_question_of_nan_still_reads_blocks(recall):
    """Its scores order nothing, and `topk` blocks are read all the same: not none."""
    memory = WithBank(Recent(8, sinks=0), 64, block=4, topk=3, recall_by=recall)
    carry = after_stream(memory, planted()[0])
    bad = QUERY._replace(q=QUERY.q.at[0, 0, 0].set(jnp.nan))
    read = compiled(lambda s, b: memory.recall(SPEC_1, s, bad, of_layer(b, ZERO)).kv)(*carry)
    numbers = (laws.held(read) - 1) // 2
    assert len(numbers) == 3 * 4 + 8 and (np.diff(numbers) > 0).all()
    assert np.isfinite(read.k).all() and np.isfinite(read.v).all()


def test_a_block_of_nan_comes_after_all_others():
    score = jnp.asarray([1.0, jnp.nan, -3.0, jnp.inf, 2.0, 0.0])
    index, keep = retrieval.best(score, jnp.int32(5), 3, 1)
    np.testing.assert_array_equal(index, [0, 2, 4])
    assert keep.all()
    index, keep = retrieval.best(score, jnp.int32(2), 3, 1)
    np.testing.assert_array_equal(index[keep], [0, 1])
