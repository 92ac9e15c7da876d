"""Banks on the command line: byte budgets count what lies on the device."""

import pytest

from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Spec
from jaxmem.memory.by_name import Budget, contestants
from jaxmem.rope import rope_1d

SPEC = Spec(layers=4, kv_heads=2, head_dim=32, width=128, axes=3, chunk=20, rope=rope_1d(32))
ALLOWED = Budget(None, 1 << 19)
ENTRY = 2 * 2 * 32 * 4 + 3 * 4 + 4 + 1  # keys, values, positions, arrival number, modality
BANK = {"capacity": 1000, "block": 10, "topk": 3, "recall_by": "parts", "evict": "uniform"}


def test_what_the_device_holds_is_priced():
    names = ("recent", "omnimem", "rekv", "full")
    chosen = contestants(names, {"bank": BANK}, ALLOWED, SPEC, 4800, bits=8)
    titles = [one.memory.name for one in chosen]
    assert titles == ["Recent_int8_bank", "OmniMem_int8_bank", "ReKV_int8", "Full"]
    entries = (1000, 1000, 4800 + SPEC.chunk)  # ReKV appends, so one write lies after its capacity
    for one, capacity in zip(chosen, entries, strict=False):
        price = footprint(one.memory, SPEC)
        assert price.device <= 1 << 19 < 1.01 * price.device
        assert price.host == SPEC.layers * capacity * ENTRY
        assert one.options["bits"] == 8
    assert chosen[0].options["bank"]["evict"] == "uniform"
    assert chosen[3].memory.bank(SPEC) is None


def test_entries_on_the_device_count_too():
    """4800 tokens in 4 layers are 10 MB."""
    for names, options in (
        (("rekv",), {"rekv": {"space": "device"}}),
        (("recent",), {"bank": {**BANK, "capacity": 4800, "space": "device"}}),
    ):
        with pytest.raises(ValueError, match="hold no memory"):
            contestants(names, options, ALLOWED, SPEC, 4800)


@pytest.mark.parametrize("option", ["block", "topk", "recall_by", "evict"])
def test_an_option_of_a_bank_without_a_capacity_is_refused(option):
    with pytest.raises(ValueError, match=f"bank.{option} has no effect"):
        contestants(("recent",), {"bank": {option: BANK[option]}}, ALLOWED, SPEC, 4800)
