"""Budget tables: made, checked, stored, rebuilt from profiles, and priced in bytes."""

import json

import numpy as np
import pytest

from jaxmem.memory.base import Spec, nbytes
from jaxmem.memory.omnimem import avba, budgets
from jaxmem.memory.omnimem.omnimem import OmniMem

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
    np.testing.assert_array_equal(budgets.load_table(path), table)
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


def test_redundancy_vectors_are_paid_for():
    n = 100
    token = 2 * 2 * 8 * 4 + 4 + 4 + 1  # k, v; pos, order, kind
    extra = 4 + 16 * 4  # importance, redundancy vector
    notes = 3 * (4 + 4 + 3 * 4 + 4)
    assert nbytes(OmniMem(n, text=0), SPEC) == 3 * n * (token + extra) + notes
