"""Every notebook runs, at small size, and its two files say the same."""

from pathlib import Path

import jupytext
import nbclient
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_runs(script, monkeypatch):
    monkeypatch.setenv("JAXMEM_NOTEBOOK_SECONDS", "12")
    notebook = jupytext.read(script)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_paired(script):
    """The .ipynb is the .py converted; run `jupytext --sync` after a change."""
    paired = jupytext.read(script.with_suffix(".ipynb"))
    cells = lambda notebook: [(c.cell_type, c.source) for c in notebook.cells]
    assert cells(paired) == cells(jupytext.read(script))
