"""Models with a state in the comparison: rows of their own, at their own bytes."""

import json

import pytest
from embedded_states import SMALL, STATES, write

from jaxmem.experiments.evaluate import __main__ as evaluate
from jaxmem.models.tiny import tiny

SIZES = "--seconds 4 --streams 2 --questions 6 --moments 2 --chunk-seconds 1 --timed 1KiB"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights files of untrained models: all layers attend, none does, one of four does."""
    folder = tmp_path_factory.mktemp("weights")
    states = (tiny.sized("mamba2", attend, SMALL) for attend in ("none", "one_in_four"))
    return [write(folder, config) for config in (SMALL, *states)]


def compared(words, out):
    """Return the cells of a comparison by memory and budget, and its tables."""
    assert evaluate.main([*words.split(), "--out", str(out)]) == 0
    document = json.loads((out / "results.json").read_text())
    cells = {(c["memory"], c["budget"]): c for c in document["cells"]}
    assert all(cell["all"]["asked"] == 12 for cell in cells.values())
    return cells, (out / "tables.txt").read_text()


def test_states_are_a_row_at_their_own_bytes(files, tmp_path):
    plain, states, _ = files
    words = f"recall --weights {plain} --memories recent --budgets 39.5KiB {SIZES}"
    cells, tables = compared(f"{words} --states {states}", tmp_path)
    assert sorted(cells) == [("recent", "39.5KiB"), ("tiny-mamba2", "39.5KiB")]
    alone, recent = cells["tiny-mamba2", "39.5KiB"], cells["recent", "39.5KiB"]
    assert alone["nbytes"] == alone["states_nbytes"] == STATES and alone["chunk_ms"] > 0
    assert recent["states_nbytes"] == 0 < recent["nbytes"] <= STATES
    assert "39.5 KiB" in tables and tables.count("tiny-mamba2 ") == 3  # also by type and by age


@pytest.mark.slow
def test_the_budget_of_a_hybrid_holds_its_states(files, tmp_path):
    words = f"recall --memories= --budgets 40KiB {SIZES} --states {files[2]}+recent"
    cells, tables = compared(words, tmp_path)
    both = cells["tiny-mamba2-hybrid+recent", "40KiB"]
    assert 0 < both["states_nbytes"] < both["nbytes"] <= 40 * 1024
    assert "29.6 KiB" in tables


def test_a_budget_below_the_states_is_refused(files, tmp_path, capsys):
    words = f"recall --memories= --budgets 16KiB {SIZES} --states {files[2]}+recent"
    assert evaluate.main([*words.split(), "--out", str(tmp_path)]) == 2
    assert "16384 bytes hold no memory" in " ".join(capsys.readouterr().out.split())


def test_a_model_of_states_alone_is_one_row(files, tmp_path):
    words = f"recall --weights {files[1]} {SIZES} --out {tmp_path}"
    assert evaluate.main(words.split()) == 0
    (cell,) = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert (cell["memory"], cell["budget"]) == ("tiny-mamba2", "39.5KiB")


def test_diagnosis_needs_layers_that_attend(files, capsys):
    assert evaluate.main(["diagnose", "--weights", str(files[1])]) == 2
    assert "no layer of tiny-mamba2 attends" in " ".join(capsys.readouterr().err.split())


def test_rows_say_what_does_not_fit(files, capsys):
    plain, states, hybrid = files
    for named, message in (
        (plain, "all its layers attend; give it as --weights"),
        (f"{states}+recent", "0 of its layers attend; leave the memory out"),
        (hybrid, "1 of its layers attend; say with what memory"),
        ("+omnimem", "no model is named; give MODEL"),
        (f"{hybrid}+elephant", "unknown memory 'elephant'"),
        (f"{states},{states}", "tiny-mamba2 is there twice"),
        ("nowhere", "no weights at nowhere"),
    ):
        assert evaluate.main(["recall", "--memories", "recent", "--states", str(named)]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
