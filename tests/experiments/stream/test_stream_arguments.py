"""Arguments of the main job: memories, budgets, times and sampling, read and refused."""

import dataclasses
from pathlib import Path

import pytest
import small

from jaxmem.decoder.sampling import Sampling
from jaxmem.experiments.memories import parse_options, split_options
from jaxmem.experiments.parsing import split
from jaxmem.experiments.stream.config import StreamConfig, sampling_of
from jaxmem.experiments.stream.questions import END, parse_ask
from jaxmem.memory import MEMORIES
from jaxmem.memory.by_name import Budget, Wrapped, build, contestants, parse_budget, parse_names
from jaxmem.memory.omnimem.budgets import save_table
from jaxmem.memory.options import NAMES
from jaxmem.memory.sizes import nbytes, slots

SPEC = small.tiny_spec()


@pytest.mark.parametrize("name", NAMES)
def test_every_memory_is_built_by_its_name(name):
    memory = build(name, 40, SPEC)
    assert type(getattr(memory, "memory", memory)) is MEMORIES[name]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="elephant"):
        build("elephant", 4, SPEC)


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


@pytest.mark.parametrize("nbytes_", [1 << 18, pytest.param(1 << 22, marks=pytest.mark.slow)])
def test_equal_bytes_whatever_the_options(nbytes_):
    options = {"omnimem": {"sketch": 32}}
    if nbytes_ < 1 << 22:  # the tables of a whole stream's blocks and clips alone are more
        options |= {name: {"capacity": 64} for name in ("rekv", "flexmem")}
    chosen = contestants(NAMES[::-1], options, Budget(None, nbytes_), SPEC, 4800)
    assert [one.name for one in chosen] == [*NAMES[::-1]]
    for one in chosen:
        price = nbytes(one.memory, SPEC)
        if one.reference:
            assert price > nbytes_  # whatever the budget
        else:
            more = build(one.name, one.slots + 1, SPEC, options.get(one.name))
            full = one.name == "simple_stream"  # it holds no more than four frames
            assert price <= nbytes_, one.name
            assert (nbytes(more, SPEC) == price) if full else (nbytes(more, SPEC) > nbytes_)
    with pytest.raises(ValueError, match=r"full\.capacity"):
        contestants(("full",), {}, Budget(96, None), SPEC, None)
    assert parse_names("omnimem, last-frames") == ("omnimem", "last_frames")


def test_a_budget_table_sets_the_bytes(tmp_path):
    spec = dataclasses.replace(SPEC, layers=2)
    save_table(tmp_path / "table.json", [[10, 20], [30, 40]])
    options = {"omnimem": {"table": tmp_path / "table.json"}}
    ours, other = contestants(("omnimem", "recent"), options, Budget(8, None), spec, None)
    assert slots(ours.memory, spec) == (30, 70)
    spare = nbytes(ours.memory, spec) - nbytes(other.memory, spec)
    assert 0 <= spare < 2 * 700
    with pytest.raises(ValueError, match="first"):
        contestants(("recent", "omnimem"), options, Budget(8, None), spec, None)


def test_options_are_taken_out_of_the_arguments():
    rest, found = split_options(["--budget", "96", "--omnimem.lam", "0.5", "--model", "tiny"])
    assert rest == ["--budget", "96", "--model", "tiny"]
    assert parse_options("omnimem", found["omnimem"], {}) == {"lam": 0.5}


def test_options_without_an_effect_are_refused():
    with pytest.raises(ValueError, match=r"--rekv\.\* has no effect"):
        contestants(("recent",), {"rekv": {"topk": 3}}, Budget(8, None), SPEC, None)
    with pytest.raises(ValueError, match=r"--bank\.topk has no effect without --bank\.capacity"):
        contestants(("recent",), {"bank": {"topk": 3}}, Budget(8, None), SPEC, None)
    with pytest.raises(ValueError, match="has no option lamb"):
        build("omnimem", 8, SPEC, {"lamb": 1})


@pytest.mark.parametrize("name", NAMES)
def test_every_memory_is_built_with_bits_and_a_bank(name):
    """What cannot take them says so, as the same memory without them."""
    wrapped = Wrapped(8, {"capacity": 64})
    memory = build(name, 40, SPEC, None, wrapped)
    assert nbytes(memory, SPEC) > 0


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
