"""Budget tables: made, checked, stored, rebuilt from profiles, and priced in bytes."""

import json
from dataclasses import replace

import numpy as np
import pytest

import jaxmem as jm
from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.base import Memory, Spec
from jaxmem.memory.baselines import Recent
from jaxmem.memory.by_name import build
from jaxmem.memory.compression.criticalkv import CriticalKV
from jaxmem.memory.compression.snapkv import SnapKV
from jaxmem.memory.features.ma_lmm import MALMM
from jaxmem.memory.features.simple_stream import SimpleStream
from jaxmem.memory.features.with_audio import WithAudio
from jaxmem.memory.omnimem import avba, budgets
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.memory.sizes import nbytes, slots
from jaxmem.memory.transforms.quantized import Quantized
from jaxmem.memory.transforms.recorded import Recorded
from jaxmem.rope import rope_1d

SPEC = Spec(layers=3, kv_heads=2, head_dim=8, width=16)


def test_an_int_is_split_between_audio_and_vision():
    table = budgets.uniform(64, 2, 0.5)
    np.testing.assert_array_equal(table, [[32, 32]] * 2)
    np.testing.assert_array_equal(budgets.uniform(7, 1, 1 / 6), [[1, 6]])
    assert budgets.share_of_ratio(5) == pytest.approx(1 / 6)
    for bad in ((-1, 0.5), (8, 1.5)):
        with pytest.raises(ValueError):
            budgets.uniform(bad[0], 2, bad[1])


def test_resolve_takes_numbers_and_tables():
    table = ((1, 2), (3, 4), (5, 6))
    np.testing.assert_array_equal(budgets.resolve(table, 3, audio_share=0.5), table)
    np.testing.assert_array_equal(budgets.resolve(table, 3, audio_share=None), [3, 7, 11])
    np.testing.assert_array_equal(budgets.resolve(9, 2, audio_share=None), [9, 9])
    np.testing.assert_array_equal(budgets.resolve((4, 5), 2, audio_share=0.5), [4, 5])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1, 2, 3]], "shape"),
        ([], "shape"),
        ([[1, 2], [3]], "unequal"),
        ([[1, -2]], "whole numbers"),
        ([[1.5, 2]], "whole numbers"),
        ([[np.nan, 2]], "whole numbers"),
    ],
)
def test_bad_tables_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        budgets.check_table(table)


def test_tables_survive_a_file(tmp_path):
    path = tmp_path / "table.json"
    table = avba.table(avba.profile("salmonn-8b"), average=512)
    budgets.save_table(path, table, {"average": 512})
    loaded = budgets.load_table(path)
    np.testing.assert_array_equal(loaded, table)
    assert OmniMem(loaded) == OmniMem(table) and hash(loaded) == hash(OmniMem(table).budget)
    document = json.loads(path.read_text())
    assert document["made"] == {"average": 512}

    for change, message in (
        ({"version": 99}, "version"),
        ({"format": "other"}, "format"),
        ({"caps": [[1, -1]]}, "whole numbers"),
    ):
        path.write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=message):
            budgets.load_table(path)
    del document["caps"]
    for text, message in ((json.dumps(document), "lacks caps"), ("{", "not JSON"), ("[1]", "list")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            budgets.load_table(path)


def test_bytes_buy_the_most_slots():
    for factory in (OmniMem, lambda s: OmniMem(s, text=0, audio_share=None)):
        for budget in (20_000, 123_457):
            n = budgets.slots_for_bytes(factory, SPEC, budget)
            assert nbytes(factory(n), SPEC) <= budget < nbytes(factory(n + 1), SPEC)
    with pytest.raises(ValueError, match="hold no memory"):
        budgets.slots_for_bytes(OmniMem, SPEC, 100)
    for layers, told in ((SPEC.layers, "per layer costs"), (0, "no layer has slots")):
        some = replace(SPEC, layers=layers, state_bytes=4096)
        with pytest.raises(ValueError, match=f"{told}.*4096 bytes are states of layers"):
            budgets.slots_for_bytes(OmniMem, some, 100)


def test_options_that_need_many_slots_take_budgets_in_bytes():
    made = lambda slots: jm.KeyDiff(slots, newest=30)
    plenty = nbytes(made(99), SPEC)
    assert budgets.slots_for_bytes(made, SPEC, plenty) == 99
    assert budgets.slots_for_bytes(made, SPEC, nbytes(made(30), SPEC)) == 30
    with pytest.raises(ValueError, match="30 slots per layer costs"):
        budgets.slots_for_bytes(made, SPEC, nbytes(made(30), SPEC) - 1)
    with pytest.raises(ValueError, match="newest=-1"):
        budgets.slots_for_bytes(lambda slots: jm.KeyDiff(slots, newest=-1), SPEC, plenty)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 64 << 10),
        ("1.5MB", 1_500_000),
        ("300B", 300),
        (" 2 gib ", 2 << 30),
        ("0.5k b", None),
        ("64", None),
        ("KiB", None),
        ("0MB", None),
        ("-1KB", None),
        ("1e3KB", None),
        ("64KiB/layer", None),
    ],
)
def test_sizes_are_read_with_their_units(text, size):
    if size is not None:
        assert budgets.parse_bytes(text) == size
        return
    with pytest.raises(ValueError, match="is no size: write 64KiB"):
        budgets.parse_bytes(text)


SEEN = replace(SPEC, chunk=16, rope=rope_1d(8), frame=(2, 2), audio_tokens=2)
WRAPPED = {
    "quantized": Quantized(Recent(64), 4),
    "bank": WithBank(OmniMem(64), 256),
    "quantized in a bank": WithBank(Quantized(OmniMem(64)), 256),
    "recorded": Recorded(Recent(64)),
    "recorder": avba.Recorder(OmniMem(64)),
    "table": OmniMem([[1, 9], [0, 60], [40, 300]]),
    "joint table": OmniMem([9, 60, 340], audio_share=None),
    "critical": CriticalKV(SnapKV(64, window=4)),
    "audio": WithAudio(MALMM(8), 4, tokens=1),
}


@pytest.mark.parametrize("name", [*MEMORIES, *WRAPPED])
def test_within_takes_the_most_slots_that_fit(name):
    options = {"capacity": 256} if name in ("rekv", "flexmem") else None
    memory = WRAPPED[name] if name in WRAPPED else build(name, 64, SEEN, options)
    found = budgets.within(memory, SEEN, 60_000)
    assert type(found) is type(memory)
    least = 0 if name == "simple_stream" else 30_000  # it holds no more than four frames
    assert least < footprint(found, SEEN).device <= 60_000
    if isinstance(found, Memory) and name not in ("hermes", "flexmem"):
        more = budgets.resized(found, 1 + max(slots(found, SEEN)), SEEN)
        assert footprint(more, SEEN).device > 60_000


def test_within_keeps_every_option():
    memory = Quantized(OmniMem(7, lam=0.5, newest=3, text=2), 4)
    found = budgets.within(memory, SPEC, "64KiB")
    slots_ = found.memory.budget
    assert found == Quantized(OmniMem(slots_, lam=0.5, newest=3, text=2), 4)
    assert found == budgets.within(found, SPEC, 64 << 10)  # its own slots do not matter
    assert footprint(found, SPEC).device <= 64 << 10
    assert footprint(budgets.resized(found, slots_ + 1, SPEC), SPEC).device > 64 << 10


def test_tables_are_scaled_in_proportion():
    table = ((1, 9), (0, 60), (40, 300), (0, 0))
    assert budgets.scaled(table, 410) == table
    assert budgets.scaled(table, 820) == ((2, 18), (0, 120), (80, 600), (0, 0))
    assert budgets.scaled(table, 4) == ((0, 1), (0, 1), (0, 2), (0, 0))
    assert budgets.scaled((9, 60, 340), 4) == (1, 1, 3)


def test_what_cannot_be_resized_says_so():
    with pytest.raises(ValueError, match="hold no memory"):
        budgets.within(OmniMem(64), SPEC, 100)
    with pytest.raises(ValueError, match="cannot be resized"):
        budgets.within(Memory(), SPEC, 100)
    with pytest.raises(ValueError, match="is no size"):
        budgets.within(OmniMem(64), SPEC, "lots")


def test_redundancy_vectors_are_paid_for():
    n = 100
    token = 2 * 2 * 8 * 4 + 4 + 4 + 1  # k, v; pos, index, modality
    extra = 4 + 16 * 4  # importance, redundancy vector
    aux = 3 * (4 + 4 + 3 * 4 + 4)
    assert nbytes(OmniMem(n, text=0), SPEC) == 3 * n * (token + extra) + aux


def test_a_memory_that_is_full_from_some_slots_on_has_no_more():
    """Four frames of rows: whatever the bytes, and no search without an end."""
    full = budgets.slots_for_bytes(SimpleStream, SPEC, 1 << 30)
    assert full == 4 * SPEC.chunk
    assert nbytes(SimpleStream(full - 1), SPEC) < nbytes(SimpleStream(full), SPEC)
    assert nbytes(SimpleStream(full + 1), SPEC) == nbytes(SimpleStream(full), SPEC)
