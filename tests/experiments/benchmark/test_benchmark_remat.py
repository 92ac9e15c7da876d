"""`benchmark remat`: the command at small size, and what it refuses."""

import json

import pytest

from jaxmem.experiments.benchmark import __main__ as benchmark

SMALL = ["--layers", "8", "--chunk", "512"]


def run(capsys, *words):
    assert benchmark.main(["remat", *SMALL, *words, "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert found["cost"]["stream"] == 64 * 4 + 1  # a row of width 64, and whether it is a token
    return {row["scheme"]: row for row in found["rows"]}


def test_the_command(capsys):
    """At 16,384 tokens the default needs an eighth of per-layer checkpointing at most."""
    rows = run(capsys, "--schemes", "D", "--tokens", "8192", "16384", "--timed", "0")
    assert list(rows) == ["layer", "D"]  # the first is there unasked
    for row in rows.values():
        assert row["slope"] == pytest.approx(row["formula_slope"], rel=0.01)
        assert row["seconds"] is row["time_ratio"] is None
    assert rows["layer"]["memory_ratio"] == 1
    assert rows["D"]["memory_ratio"] <= 1 / 8


@pytest.mark.slow
def test_time(capsys):
    """The default takes at most 1.5 times the CPU seconds of per-layer checkpointing."""
    words = ("--schemes", "D", "--tokens", "4096", "8192", "--rounds", "3")
    rows = run(capsys, *words)
    assert rows["D"]["time_ratio"] == rows["D"]["seconds"] / rows["layer"]["seconds"] <= 1.5


@pytest.mark.slow
def test_all_schemes(capsys):
    """Nothing is run beyond the room; with ids in and loss out, no [S, E] is kept."""
    rows = run(capsys, "--tokens", "4096", "8192", "--timed", "4096", "--room", "0")
    names = ("layer", "off", "layer_chunk", "sqrt", "A", "B", "C", "D", "E", "ids_D", "ids_E")
    assert tuple(rows) == names
    assert all(row["seconds"] is None for row in rows.values())
    for name in ("ids_D", "ids_E"):
        # ids and labels, 8 bytes a token, and the losses of the chunks are in no formula.
        assert rows[name]["slope"] == pytest.approx(rows[name]["formula_slope"], abs=12)
    assert rows["ids_D"]["memory_ratio"] < rows["D"]["memory_ratio"]


@pytest.mark.parametrize(
    "words, message",
    [
        (("--tokens", "1024"), "a slope needs two lengths"),
        (("--tokens", "100", "1024"), "multiples of --chunk 512"),
        (("--width", "40"), "multiple of 32, got 40"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message, capsys):
    assert benchmark.main(["remat", *SMALL, *words]) == 2
    assert message in capsys.readouterr().err
