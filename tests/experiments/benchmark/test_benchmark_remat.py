"""`benchmark remat`: the command at small size, and what it refuses."""

import json

import pytest

from jaxmem.experiments.benchmark import __main__ as benchmark

SMALL = ["--layers", "4", "--width", "32", "--chunk", "64", "--timed", "128", "--rounds", "1"]


def run(capsys, *words):
    assert benchmark.main(["remat", *SMALL, *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def check(found, *names):
    rows = {row["scheme"]: row for row in found["rows"]}
    assert list(rows) == ["layer", *names] and found["cost"]["stream"] == 32 * 4 + 1
    for row in rows.values():
        # ids and labels, 8 bytes a token, and the losses of the chunks are in no formula.
        assert row["slope"] == pytest.approx(row["formula_slope"], rel=0.01, abs=12)
    assert rows["layer"]["memory_ratio"] == 1
    return rows


def test_the_command(capsys):
    """Measured slopes are the formulas', and per-layer checkpointing is there unasked."""
    words = ("--schemes", "D", "--tokens", "1024", "2048", "--timed", "1024")
    rows = check(run(capsys, *words), "D")
    assert rows["D"]["memory_ratio"] < 1 and rows["layer"]["time_ratio"] == 1
    assert rows["D"]["time_ratio"] == rows["D"]["seconds"] / rows["layer"]["seconds"]


@pytest.mark.slow
def test_all_schemes(capsys):
    """Nothing is run beyond the room; with ids in and loss out, no [S, E] is kept."""
    rows = check(
        run(capsys, "--tokens", "1024", "4096", "--room", "0"),
        *("off", "layer_chunk", "sqrt", "A", "B", "C", "D", "E", "ids_D", "ids_E"),
    )
    assert all(row["seconds"] is None for row in rows.values())
    assert rows["ids_D"]["memory_ratio"] < rows["D"]["memory_ratio"]
    assert rows["ids_E"]["slope"] < rows["ids_D"]["slope"]


@pytest.mark.parametrize(
    "words, message",
    [
        (("--tokens", "1024"), "a slope needs two lengths"),
        (("--tokens", "100", "1024"), "multiples of --chunk 64"),
        (("--width", "40"), "multiple of 32, got 40"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message, capsys):
    assert benchmark.main(["remat", *SMALL, *words]) == 2
    assert message in capsys.readouterr().err
