"""Any memory with a bank: its laws, and no token is lost while there is room."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from banks import (
    QUERY,
    SPEC_1,
    ZERO,
    banked,
    everything,
    reader,
    start,
    stepper,
    watched,
    write,
)
from laws import CUTS, LAWS, SPEC, compiled, pick, standard

from jaxmem import kv as kvs
from jaxmem.memory.bank.bank import footprint, of_layer
from jaxmem.memory.bank.retrieval import ByParts
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.base import Memory, kv_of
from jaxmem.memory.baselines import Recent
from jaxmem.memory.compression.adakv import AdaKV
from jaxmem.memory.exchange import Attention, Requires
from jaxmem.memory.flash_vstream.flash_vstream import FlashVStream
from jaxmem.memory.flexmem.flexmem import FlexMem
from jaxmem.memory.omnimem.budgets import resized
from jaxmem.memory.parts.scored import Scored
from jaxmem.memory.transforms.quantized import Quantized, unpack
from jaxmem.memory.transforms.recorded import Recorded
from jaxmem.memory.video.rekv import ReKV

INNER = (*laws.ALL_MEMORIES, "snapkv")
USUAL = ("recent", "omnimem", "snapkv")  # one of each kind: order, layers by score, heads by score
ANY = [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in INNER]
SHARED = ("static_and_ordered", "subset", "ample_budget", "view")  # one compilation for all


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
    LAWS["scan_vmap_and_loop"](Quantized(banked("recent"), 8))


@pytest.mark.slow
def test_laws_over_codes():
    LAWS["static_and_ordered"](banked("recent", coded=True))


@pytest.mark.parametrize("name", ANY)
def test_nothing_is_lost_while_there_is_room(name):
    """After every chunk each written token is in one place, as it came, in every KV head."""
    memory = banked(name)
    carry, flat, away = start(memory), laws.stream(sum(CUTS)).tokens, 0
    for c, seen in enumerate(np.cumsum(CUTS)):
        carry = stepper(memory)(carry, pick(standard(), c))
        parts = jax.device_get(everything(memory, *carry))
        for head in range(parts[0].modality.shape[1]):
            mine = [laws.of_head(part, head) for part in parts]
            numbers = [laws.held(part) for part in mine]
            np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), flat.index[:seen, 0])
            for part, number in zip(mine, numbers, strict=True):
                real = part.modality[:, 0] != 0
                source = laws.of_head(laws.spread(flat, parts[0].modality.shape[1]), head)
                for field in kvs.KV._fields:
                    written = np.asarray(getattr(source, field))[(number - 1) // 2]
                    np.testing.assert_array_equal(getattr(part, field)[real], written)
        away = len(numbers[2])
    assert away >= 16 and int(carry[1].dropped[0]) == 0 and int(carry[1].count[0]) == away


@dataclass(frozen=True)
class Uneven(Scored):
    """Attention received, of which head 0 receives more."""

    @property
    def requires(self):
        return Requires(attention=Attention("softmax"))

    def score(self, candidates):
        return candidates.received * jnp.asarray([[1.5], [1.0]])


def test_heads_that_hold_different_numbers_have_blocks_of_their_own():
    """Ada-KV: each head's tokens are where its own table says, and a question reads them all."""
    memory = WithBank(AdaKV(Uneven(8)), 48, block=4, topk=12, reindex=True)
    assert start(memory)[1].slots.k.shape == (1, 2 * 48, 1, SPEC.head_dim)
    # As large as the bank of a memory whose heads hold the same, but for positions and modalities.
    usual = footprint(banked("recent"), SPEC_1).host
    assert footprint(memory, SPEC_1).host == usual + 48 * 17
    state, stored = watched(memory)
    view = jax.device_get(reader(memory)(state, stored))
    flat = laws.stream(sum(CUTS)).tokens
    held = memory.kv(state)
    away = [laws.held(laws.of_head(held, head)).size for head in (0, 1)]
    assert away[0] != away[1] and sum(away) == 16
    entries = np.asarray(stored.slots.modality)[0, :, 0].reshape(2, 48)
    many = (entries != 0).sum(1)
    assert int(stored.count[0]) == many.sum() and many[0] != many[1] and not stored.dropped[0]
    for head in (0, 1):
        real = view.kv.modality[:, head] != 0
        np.testing.assert_array_equal(view.kv.index[real, head], flat.index[:, 0])
        np.testing.assert_array_equal(view.kv.k[real, head], flat.k[:, head])
        np.testing.assert_array_equal(view.kv.v[real, head], flat.v[:, head])
        np.testing.assert_array_equal(view.kv.pos[real, head, 0], np.arange(sum(CUTS)))
    np.testing.assert_array_equal(view.base, [sum(CUTS)] * 3)


def test_what_leaves_a_quantised_memory_is_what_it_held():
    memory = banked("recent", coded=True)
    carry = watched(memory)
    kept, _, stored = jax.device_get(everything(memory, *carry))
    flat = laws.stream(sum(CUTS)).tokens
    number = laws.held(stored)
    real = stored.modality[:, 0] != 0
    assert stored.k.dtype == np.float32 and len(number) == 24
    error = np.abs(stored.k[real] - flat.k[(number - 1) // 2])
    assert 0 < error.max() < 0.05
    inside = kv_of(unpack(carry[0]._replace(aux=carry[0].aux.inner), 8).slots)
    np.testing.assert_allclose(kept.k, inside.k, atol=1e-6)


@dataclass(frozen=True)
class Burst(Scored):
    """Holds everything until it has more than 28 tokens, and then only the newest."""

    def score(self, candidates):
        newest = jnp.where(candidates.newest(1), 1.0, -jnp.inf)
        return newest * (candidates.n > 28)


def test_bursts_become_several_blocks():
    """A memory that drops everything at once evicts more than a chunk."""
    memory = WithBank(Burst(32, per_head=False), 64, block=4)
    carry = watched(memory)
    assert memory.name == "Burst_bank" and int(carry[1].count[0]) > 8


def test_positions_that_are_reindexed_number_all_that_is_read():
    memory = WithBank(Recent(8, sinks=0), 64, block=4, topk=2, reindex=True)
    spec = replace(SPEC_1, prefix=3)
    carry = start(memory, spec)
    for c in range(4):
        carry = stepper(memory)(carry, pick(standard(), c))
    view = reader(memory, spec)(*carry)
    n = int(kvs.count(view.kv))
    assert n == 8 + 2 + 8  # two blocks, what waits, and the window: 22 tokens have come
    for axis in range(3):
        np.testing.assert_array_equal(view.kv.pos[:n, 0, axis], 3 + np.arange(n))
    np.testing.assert_array_equal(view.base, [3 + n] * 3)
    assert (np.diff(view.kv.index[:n, 0]) > 0).all()


def test_banks_side_by_side():
    """Writing and reading under `vmap`, from host memory, against one stream alone."""
    memory = banked("recent")
    alone = start(memory)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), alone)
    both = compiled(jax.vmap(partial(write, memory)))
    for c in range(len(CUTS)):
        chunks = [pick(standard(seed), c) for seed in (0, 1)]
        alone, many = stepper(memory)(alone, chunks[1]), both(many, laws.side_by_side(*chunks))
    want = reader(memory)(*alone)
    read = lambda s, b: memory.recall(SPEC_1, s, QUERY, of_layer(b, ZERO))
    got = compiled(jax.vmap(read))(*many)
    laws.assert_same(pick((many, got), 1), (alone, want), "stream 1")
    assert not np.array_equal(got.kv.k[0], got.kv.k[1])


def test_equal_options_are_equal_and_the_inner_memory_decides_the_rest():
    assert banked("recent") == banked("recent") != banked("recent", topk=3)
    assert (
        len({banked("recent", recall_by=ByParts(2)), banked("recent", recall_by=ByParts(2))}) == 1
    )
    memory = banked("recent")
    assert memory.per == "layer" and memory.requires == Requires(question="layer")
    assert memory.name == "Recent_bank" and memory.prompts() == ()
    assert resized(memory, 5, SPEC) == replace(memory, memory=replace(memory.memory, budget=5))
    asked = memory.bank(SPEC)
    assert asked.capacity == 48 and asked.space == "host"
    assert banked("recent", capacity=51, space="device").bank(SPEC)[::2] == (48, "device")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WithBank(Recent(8), 3, block=4), "capacity of at least 4, got capacity=3"),
        (lambda: WithBank(Recent(8), 8, block=4, topk=0), "topk=0"),
        (lambda: WithBank(Recent(8), 32, evict="best"), "'best'"),
        (lambda: WithBank(Recent(8), 32, recall_by="dense"), "'dense'"),
        (lambda: WithBank(Recent(8), 32, space="disk"), "'disk'"),
        (lambda: WithBank(ReKV(8), 32), "ReKV has a bank of its own"),
        (lambda: WithBank(Quantized(ReKV(8)), 32), "a bank of its own"),
        (lambda: WithBank(FlexMem(8), 32), "FlexMem has a bank of its own"),
        (lambda: WithBank(Quantized(FlexMem(8)), 32), "a bank of its own"),
        (lambda: WithBank(Recorded(banked("recent")), 32), "a bank of its own"),
        (lambda: WithBank(FlashVStream(), 32), "memory of keys and values"),
        (lambda: ByParts(0), "parts of at least 1"),
        (lambda: banked("recent").recall(SPEC, banked("recent").init(SPEC), None), "jaxmem.ask"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_every_memory_inside_keeps_its_own_options():
    """A wrapper in between changes nothing of what is asked of the decoder."""
    for name in USUAL:
        plain: Memory = banked(name).memory
        wanted = plain.requires._replace(question="layer")
        assert banked(name).requires == banked(name, coded=True).requires == wanted
