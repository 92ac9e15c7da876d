"""Arrival numbers of 32 bits in streams without an end: what is held, banked and answered stays."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import small
from banks import ZERO, banked, reader, start, stepper
from laws import CUTS, compiled, pick, standard

from jaxmem.asking import ask
from jaxmem.bound import Bound, question_rows
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.kv import KV
from jaxmem.loop import stream
from jaxmem.memory import clock as clocks
from jaxmem.memory.bank.bank import of_layer
from jaxmem.memory.bank.block_table import BlockTable
from jaxmem.memory.bank.epochs import EDGE, FLOOR, STEP, today
from jaxmem.memory.bank.retrieval import stored
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.baselines import Recent
from jaxmem.memory.compression.adakv import AdaKV
from jaxmem.memory.compression.knorm import Knorm
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.memory.transforms.quantized import Quantized

CFG = small.config()
CHUNKS = 12
LENGTHS = [8, 5, 8, 8, 0, 7, 8, 3, 8, 8, 8, 6]
ROWS = small.stream_rows(CFG, CHUNKS, 8, lengths=LENGTHS)
BANK = {"block": 4, "reindex": True}  # what is read is numbered by its order
MEMORIES = {
    "recent": WithBank(Recent(8, sinks=2), 24, topk=4, space="device", **BANK),
    "recent in host memory": WithBank(Recent(8, sinks=2), 24, topk=4, **BANK),
    "evenly": WithBank(Recent(8, sinks=2), 24, topk=4, evict="uniform", **BANK),
    "omnimem": WithBank(OmniMem(10, text=2, audio_share=0.25), 40, topk=4, **BANK),
    "omnimem, positions kept": WithBank(OmniMem(10, text=2), 40, block=4, topk=4),
    "in codes": Quantized(WithBank(Recent(8, sinks=2), 24, topk=4, **BANK)),
}


@cache
def weights():
    return small.params(CFG)


@cache
def program_of(name):
    return make_program(CFG, MEMORIES[name], spec_of(CFG, chunk=8))


def without_numbers(tree):
    """Return the leaves of a carry that do not count arrivals."""
    wanted = lambda x: isinstance(x, KV | BlockTable)

    def one(x):
        if isinstance(x, KV):
            return x._replace(index=None)
        if isinstance(x, BlockTable):
            return x._replace(open=x.open._replace(index=None), epoch=None, epochs=None)
        return x

    return jax.device_get(jax.tree.map(one, tree, is_leaf=wanted))


@cache
def watched(name, clocks_before):
    """Stream chunk by chunk; before some chunks the clock jumps, as if others had come between."""
    program = program_of(name)
    carry, jumps = init_carry(program), dict(clocks_before)
    asked = question_rows(weights(), [3, 1, 4], program=program)
    seen = []
    for c in range(CHUNKS):
        if c in jumps:
            carry = carry._replace(clock=jnp.int32(jumps[c]) + 0 * carry.clock)
        rows = jax.tree.map(lambda x, c=c: x[c : c + 1], ROWS)
        carry = stream(weights(), carry, rows, program=program)
        answer = ask(weights(), carry, asked, program=program)
        told = carry._replace(clock=None)
        seen.append((without_numbers(told), np.asarray(answer.first)))
        assert 0 <= int(carry.clock) < EDGE + 32
    return seen, carry


NEVER_MOVED = ()
ONCE = ((0, EDGE - 20),)
JUMPS = {
    "once": ONCE,
    "three times": ((0, EDGE - 20), (5, EDGE - 10), (9, EDGE + 1)),
    # Nine moves: the sinks fall to the end of the range, and so do the oldest blocks.
    "nine times": tuple((c, EDGE + 3 * c) for c in range(2, 11)),
}


@pytest.mark.parametrize(
    ("name", "jumps"),
    [
        *[pytest.param(n, "once", marks=pytest.mark.slow) for n in ("recent", "omnimem")],
        ("recent", "three times"),
        pytest.param("recent", "nine times", marks=pytest.mark.slow),
        *[pytest.param("evenly", jumps, marks=pytest.mark.slow) for jumps in JUMPS],
        ("omnimem", "three times"),
        ("omnimem, positions kept", "nine times"),
        pytest.param("recent in host memory", "three times", marks=pytest.mark.slow),
        ("in codes", "three times"),
    ],
)
def test_a_stream_that_moves_its_clock_equals_one_that_does_not(name, jumps):
    """After every chunk: what is held, the whole bank, and the answer to a question."""
    (want, plain), (got, moved) = watched(name, NEVER_MOVED), watched(name, JUMPS[jumps])
    for c, (here, there) in enumerate(zip(got, want, strict=True)):
        same = partial(np.testing.assert_array_equal, err_msg=f"after chunk {c}")
        jax.tree.map(same, here[0], there[0])
        # Where a memory holds other tokens than the first, and they are older than 3 * 2^30 others,
        # blocks of that age may come before or after them: only the order of a sum changes.
        close = 1e-5 if (name, jumps) == ("omnimem, positions kept", "nine times") else 0
        np.testing.assert_allclose(here[1], there[1], rtol=0, atol=close)
    table = moved.state.aux.table if name != "in codes" else moved.state.aux.inner.table
    times = {"once": 1, "three times": 3, "nine times": 9}[jumps]
    np.testing.assert_array_equal(table.epoch, times)
    assert plain.bank.count.min() >= 16 and (plain.bank.dropped > 0).all()


def test_hermes_moves_its_clock():
    """The whole stack at once, with summaries that take the number which a chunk leaves free."""
    memory = WithBank(Hermes(12), 40, block=4, topk=2)
    program = make_program(CFG, memory, spec_of(CFG, chunk=8))
    asked = question_rows(weights(), [3, 1], program=program)
    probes = jax.tree.map(lambda x: jnp.stack([x] * memory.requires.probes.count), asked)

    def run(clock):
        carry = init_carry(program)._replace(clock=jnp.int32(clock))
        bound = Bound(weights(), None, probes)
        carry = stream(bound, carry, ROWS, program=program)
        told = without_numbers(carry._replace(clock=None))
        return told, np.asarray(ask(bound, carry, asked, program=program).first), carry

    (want, logits, _), (got, others, carry) = run(0), run(EDGE - 30)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_array_equal(others, logits)
    assert int(carry.clock) < EDGE and (np.asarray(carry.state.aux.table.epoch) == 1).all()


EVERY = tuple(range(len(CUTS)))
READ = {
    "one order": (banked("recent", topk=12), EVERY),
    "heads that hold other tokens": (WithBank(Knorm(8), 48, block=4, topk=12), (2, 4, 6)),
    "heads that hold other numbers": (WithBank(AdaKV(Knorm(8)), 48, block=4, topk=12), (2, 4, 6)),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_comes_in_the_order_of_arrival(name):
    """Memory, open block and blocks, bit by bit, though they are of many epochs."""
    memory, moves = READ[name]
    plain, far, clock = start(memory), start(memory), 0
    for c in range(len(CUTS)):
        chunk = pick(standard(), c)
        plain = stepper(memory)(plain, chunk)
        if c in moves:
            state, clock = clocks.rebase(far[0], jnp.int32(EDGE + 7))
            far = state, far[1]
        moved = chunk.tokens._replace(index=chunk.tokens.index + np.int32(clock))
        far = stepper(memory)(far, chunk._replace(tokens=moved))
        want, got = (reader(memory)(*carry).kv for carry in (plain, far))
        jax.tree.map(
            np.testing.assert_array_equal, got._replace(index=None), want._replace(index=None)
        )
        for head in range(got.modality.shape[1]):
            numbers = laws.held(laws.of_head(got, head)).astype(np.int64)
            assert (np.diff(numbers) > 0).all()
    np.testing.assert_array_equal(far[0].aux.table.epoch, len(moves))


def test_below_the_edge_nothing_moves():
    memory = banked("omnimem")
    state = start(memory)[0]
    for clock in (0, EDGE - 1):
        same, after = clocks.rebase(state, jnp.int32(clock))
        assert int(after) == clock
        jax.tree.map(np.testing.assert_array_equal, same, state)


def test_only_arrival_numbers_move():
    """Those of tokens; empty slots, and all other arrays, are the same ones."""
    memory = banked("recent")
    carry = start(memory)
    for c in range(3):
        carry = stepper(memory)(carry, pick(standard(), c))
    state = carry[0]
    moved, clock = clocks.rebase(state, jnp.int32(EDGE + 9))
    assert int(clock) == EDGE + 9 - STEP
    jax.tree.map(np.testing.assert_array_equal, *(without_numbers(x) for x in (moved, state)))
    for got, old in (
        (memory.kv(moved), memory.kv(state)),
        (moved.aux.table.open, state.aux.table.open),
    ):
        real = np.asarray(old.modality) != 0
        np.testing.assert_array_equal(got.index[real], np.asarray(old.index)[real] - STEP)
        np.testing.assert_array_equal(got.index[~real], np.asarray(old.index)[~real])
    assert int(moved.aux.table.epoch) == 1


def test_numbers_at_the_end_of_their_range_keep_their_order():
    """Held tokens stay strictly ordered however often the clock moves; so do entries of a bank."""
    state = start(banked("recent"))[0]
    number = np.arange(16, dtype=np.int32)[:, None] * 5
    kv = state.slots.kv._replace(index=number, modality=np.ones((16, 1), np.int8))
    move = compiled(lambda kv: clocks.rebase(state._replace(slots=kv), jnp.int32(EDGE))[0].slots)
    for _ in range(8):
        kv = move(kv)
        assert (np.diff(np.asarray(kv.index, np.int64)[:, 0]) > 0).all()
    np.testing.assert_array_equal(kv.index[:, 0], FLOOR + np.arange(16))

    rng = np.random.default_rng(0)
    moves = rng.integers(0, 20, 60).astype(np.int32)
    low = rng.integers(-STEP, EDGE, (60, 2)).astype(np.int32)
    true = low.astype(np.int64) - moves[:, None].astype(np.int64) * STEP
    got = np.asarray(compiled(today)(low, moves), np.int64)
    for head in (0, 1):
        np.testing.assert_array_equal(np.argsort(got[:, head]), np.argsort(true[:, head]))
        inside = true[:, head] >= FLOOR + 2**29
        np.testing.assert_array_equal(got[inside, head], true[inside, head])


def test_blocks_of_all_ages_are_stored_as_they_were_written():
    """A bank is never rewritten: its entries hold the numbers of their own epoch."""
    _, carry = watched("evenly", JUMPS["nine times"])
    table, bank = jax.tree.map(lambda x: x[0], carry.state.aux.table), of_layer(carry.bank, ZERO)
    index = jnp.arange(6, dtype=jnp.int32)
    kv = stored(bank, index, index < table.used, 4)
    epochs = np.asarray(table.epochs)
    assert len(set(epochs)) > 3
    first = np.asarray(kv.index).reshape(6, 4)[epochs == 0]
    assert first.size and (first >= 0).all() and (first < 32).all()


def test_moving_the_clock_costs_no_copy_of_the_state():
    """Only arrival numbers and modalities pass through the condition."""
    program = make_program(CFG, WithBank(Recent(1 << 12), 64, block=4), spec_of(CFG, chunk=8))
    state = init_carry(program).state
    step = jax.jit(clocks.rebase, donate_argnums=0)
    used = step.lower(state, jnp.int32(0)).compile().memory_analysis()
    keys = state.slots.kv.k.nbytes
    assert used.alias_size_in_bytes > 2 * keys and used.temp_size_in_bytes < keys // 4
