"""The installed wheel, in an empty folder and a fresh interpreter: notebooks, and every memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest
import wheel
from nbformat.v4 import new_code_cell

from jaxmem.memory import MEMORIES

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SLOW = "03_train_through_memory"  # compiles gradients
RUNS = [pytest.param(p, marks=pytest.mark.slow if p.stem == SLOW else ()) for p in SCRIPTS]
FEW = ["omnimem", "rekv"]
"""One of each machinery: a key, sketches, probes and a stack, banks, features."""
EVERY_MEMORY = """
import json, sys
import jax, numpy as np
import jaxmem as jm
from jaxmem.data.world.files import held_out
from jaxmem.decoder.scorer import init_scorer
from jaxmem.memory.by_name import build
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded

config = tiny.TinyConfig(
    width=32, layers=3, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
)
tiny.save("small.safetensors", tiny.init(config, jax.random.key(0)), config)
model = embedded("small.safetensors")
model = jm.with_scorer(model, init_scorer(model.decoder, jax.random.key(1)))
video, _ = held_out(3, 4, ".", count=1, scale=1)
question = "what was the last shape?"
found = {}
for name in sys.argv[1:] or jm.MEMORIES:
    memory = build(name, 48, jm.model_spec(model))
    session = jm.Session(model, memory).watch(video)
    before = session.ask(question)
    session.save(f"saved/{name}")
    again = jm.Session.restore(f"saved/{name}", model, build(name, 48, jm.model_spec(model)))
    after = again.ask(question)
    assert again.seconds == session.seconds == 4.0, name
    assert np.array_equal(before.logits, after.logits) and before.text == after.text, name
    assert np.isfinite(before.logits).all(), name
    found[name] = type(memory).__name__
print(json.dumps({"from": jm.__file__, "found": found}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return wheel.install(tmp_path_factory.mktemp("wheel"))


@pytest.mark.parametrize("script", RUNS, ids=lambda p: p.stem)
def test_notebook_runs(script, installed, tmp_path, monkeypatch):
    for name, value in wheel.environment(installed).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAXMEM_NOTEBOOK_SECONDS", "12")
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    check = f"import jaxmem; assert jaxmem.__file__.startswith({str(installed)!r})"
    notebook.cells.insert(0, new_code_cell(check))
    monkeypatch.chdir(tmp_path)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert not os.listdir(tmp_path)


def test_the_page_is_installed(installed):
    """Modules, style, icon: what the server sends is in the wheel, byte for byte."""
    found, made = (folder / "jaxmem" / "serve" / "page" for folder in (installed, FOLDER.parent))
    names = sorted(file.name for file in made.iterdir())
    assert "index.html" in names and names == sorted(file.name for file in found.iterdir())
    assert all((found / name).read_bytes() == (made / name).read_bytes() for name in names)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_notebook_is_paired(script):
    """The .ipynb is the .py converted; run `jupytext --sync` after a change."""
    paired = jupytext.read(script.with_suffix(".ipynb"))
    cells = lambda notebook: [(c.cell_type, c.source) for c in notebook.cells]
    assert cells(paired) == cells(jupytext.read(script))


@pytest.mark.parametrize(
    "names", [FEW, pytest.param([], marks=pytest.mark.slow)], ids=["few", "every"]
)
def test_memories_stream_answer_and_are_restored(names, installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EVERY_MEMORY, *names],
        cwd=tmp_path,
        env=wheel.environment(installed),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["from"].startswith(str(installed))
    assert list(report["found"]) == (names or list(MEMORIES))
