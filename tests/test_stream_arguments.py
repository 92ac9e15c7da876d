"""Arguments of the main job: memories, budgets, times and sampling, read and refused."""

from pathlib import Path

import pytest

from jaxmem.decoder.sampling import Sampling
from jaxmem.experiments.memories import (
    NAMES,
    Budget,
    Memories,
    OmniMem,
    Setting,
    build,
    choose,
    parse_budget,
    parse_names,
)
from jaxmem.experiments.parsing import split
from jaxmem.experiments.stream.config import StreamConfig, sampling_of
from jaxmem.experiments.stream.questions import END, parse_ask
from jaxmem.memory.base import Spec, nbytes, slots
from jaxmem.memory.omnimem.budgets import save_table
from jaxmem.models.tiny import tiny

SETTING = Setting(tiny.decoder_config(tiny.TinyConfig()).rope, 20, (1, 0, 0))


def test_every_memory_has_a_name():
    from typing import get_args

    from jaxmem.experiments._memory_builders import _BUILD
    from jaxmem.experiments.memories import Name

    assert get_args(Name) == NAMES == tuple(_BUILD)
    for name in NAMES:
        assert build(name, 40, SETTING).name == name
    with pytest.raises(ValueError, match="elephant"):
        build("elephant", 4, SETTING)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("96", Budget(96, None)),
        ("64KiB", Budget(None, 65536)),
        ("1.5 MB", Budget(None, 1500000)),
        ("100b", Budget(None, 100)),
    ],
)
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "1.5", "-3", "KiB", "3 slots", "1KiBB"])
def test_bad_budgets(text):
    with pytest.raises(ValueError, match="budget"):
        parse_budget(text)


def test_equal_bytes_whatever_the_options():
    spec = Spec(layers=4, kv_heads=2, heads=4, head_dim=32, width=128, axes=3, chunk=20)
    options = Memories(omnimem=OmniMem(sketch=32))
    chosen = choose(NAMES[::-1], options, Budget(None, 1 << 18), spec, SETTING.rope, 4800)
    setting = Setting(SETTING.rope, spec.chunk, spec.text_step)
    for one in chosen:
        price = nbytes(one.memory, one.spec)
        if one.reference:
            assert price > 1 << 18
        else:
            more = build(one.name, one.slots + 1, setting, options)
            assert price <= 1 << 18 < nbytes(more, one.spec)
    with pytest.raises(ValueError, match=r"full\.capacity"):
        choose(("full",), options, Budget(96, None), spec, SETTING.rope, None)
    assert parse_names("omnimem, last-frames") == ("omnimem", "last_frames")


def test_a_budget_table_sets_the_bytes(tmp_path):
    spec = Spec(layers=2, kv_heads=2, heads=4, head_dim=32, width=128, axes=3, chunk=20)
    save_table(tmp_path / "table.json", [[10, 20], [30, 40]])
    options = Memories(omnimem=OmniMem(table=tmp_path / "table.json"))
    ours, other = choose(("omnimem", "recent"), options, Budget(8, None), spec, SETTING.rope, None)
    assert slots(ours.memory, spec) == (30, 70)
    spare = nbytes(ours.memory, spec) - nbytes(other.memory, spec)
    assert 0 <= spare < 2 * 700
    with pytest.raises(ValueError, match="first"):
        choose(("recent", "omnimem"), options, Budget(8, None), spec, SETTING.rope, None)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("5: a b", 5),
        ("1:05.5: a b", 65.5),
        ("2:00:01:a b", 7201),
        ("END : a b", END),
        ("75:a b", 75),
    ],
)
def test_asked_times(text, time):
    assert parse_ask(text)[:2] == (time, "a b")


def test_config_is_taken_out_of_the_arguments():
    assert split(["--a", "--config=x.py", "b"]) == (["--a", "b"], Path("x.py"))
    with pytest.raises(ValueError, match="once"):
        split(["--config", "a.py", "--config", "b.py"])


def test_what_answers_are_drawn_with():
    own, some = Sampling(0.7, 0.8), StreamConfig
    assert sampling_of(some(), own) is None
    assert sampling_of(some(sample=True), own) == own
    assert sampling_of(some(sample=True, temperature=0.2), own) == Sampling(0.2, 0.8)
    assert sampling_of(some(temperature=0.2), own) == Sampling(0.2, 1.0)
    assert sampling_of(some(top_p=0.5), own) == Sampling(1.0, 0.5)
    assert sampling_of(some(sample=True, temperature=0.2), None) == Sampling(0.2, 1.0)
    assert sampling_of(some(top_k=5), Sampling(0.7, 0.8, 20, 1.1)) == Sampling(1.0, 1.0, 5)
    whole = Sampling(0.7, 0.8, 20, 1.1)
    assert sampling_of(some(sample=True, top_k=5), whole) == Sampling(0.7, 0.8, 5, 1.1)
    penalty = sampling_of(some(repetition_penalty=1.2), own)  # greedy, as without it
    assert penalty == Sampling(0.0, 1.0, 0, 1.2) and penalty.greedy
    drawn = sampling_of(some(repetition_penalty=1.2, top_p=0.5), own)
    assert drawn == Sampling(1.0, 0.5, 0, 1.2)
    with pytest.raises(ValueError, match="--sample: the model says nothing of sampling"):
        sampling_of(some(sample=True), None)
