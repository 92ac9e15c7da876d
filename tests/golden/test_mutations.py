"""Golden tests can fail: in a copy of the package one formula is changed, and they must notice.

    pytest -m slow tests/golden/test_mutations.py

Each line names a method, its file, a piece of a formula (which must be there exactly once), what it
becomes, and the golden test that must fail.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERMES, KV, KV2 = "test_hermes_golden.py", "test_kvpress_golden.py", "test_kvpress2_golden.py"
FLASH, FLEX = "test_flash_vstream_golden.py", "test_flexmem_golden.py"
MUTATIONS = [
    ("omnimem", "scores", "jnp.maximum(1.0 - redundancy, 0.0)", "(2.0 - redundancy)",
     "test_omnimem_golden.py"),
    ("avba", "avba", "profile.delta.max()) / temperature", "0) * temperature",
     "test_omnimem_golden.py"),
    ("hermes: recency", "hermes", "jnp.exp(-k *", "jnp.exp(-2 * k *", HERMES),
    ("hermes: smoothing", "bands", "(1.0 - weight) * own", "own", HERMES),
    ("hermes: closed positions", "positions", "+ jnp.stack(ranks", "+ 1 + jnp.stack(ranks", HERMES),
    ("flexmem: rows", "flexmem", "chunk.given + received", "received - chunk.given", FLEX),
    ("flexmem: memindex", "memindex", "clip - sink_mass", "clip + sink_mass", FLEX),
    ("flexmem: uniform picks", "clips", "maximum(count - 1, 1)", "maximum(count, 1)", FLEX),
    ("rekv", "retrieval", "q / jnp.maximum(jnp.sum(question.valid), 1)", "-q",
     "test_rekv_golden.py"),
    ("infinipot_v", "infinipot_v", "tar = -similarity", "tar = similarity",
     "test_infinipot_golden.py"),
    ("snapkv", "snapkv", "scores.smooth(mean, self.kernel)", "mean", KV),
    ("tova", "tova", "scores.protect(received(self, candidates), candidates.newest(1))",
     "received(self, candidates)", KV),
    ("knorm", "knorm", "return -jnp.linalg.norm", "return jnp.linalg.norm", KV),
    ("keydiff", "keydiff", "return scores.unlike_mean", "return -scores.unlike_mean", KV),
    ("expected_attention", "expected_attention", "/ (2 * dim)", "/ dim", KV2),
    ("criticalkv", "criticalkv", "(self.first * lent)", "(0.9 * lent)", KV2),
    ("adakv", "adakv", "(self.alpha * even)", "(0.9 * even)", KV2),
    ("flash_vstream: k-means", "clusters", "member * mass[:, None]).T", "member).T", FLASH),
    ("flash_vstream: abstract", "semantic", "1 - ratio * jnp.sum", "1 - jnp.sum", FLASH),
    ("flash_vstream_qwen", "synopsis", "jnp.round(times)", "jnp.floor(times)", FLASH),
]  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory, root) -> Path:
    """A copy of the package and its tests, which Python finds before the installed one."""
    folder = tmp_path_factory.mktemp("mutated")
    for name in ("jaxmem", "tests"):
        skip = shutil.ignore_patterns("__pycache__", "data" if name == "tests" else "*.pyc")
        shutil.copytree(root / name, folder / name, ignore=skip)
    shutil.copy(root / "pyproject.toml", folder)
    return folder


def run(folder: Path, data: Path, test: str) -> subprocess.CompletedProcess:
    line = ["-m", "pytest", "-x", "-p", "no:cacheprovider", f"tests/golden/{test}"]
    line += [f"--golden={data}"]  # as one word: apart, the folder's own conftest is read, too
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-B", *line], cwd=folder, env=clean, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("file", "old"), [m[1:3] for m in MUTATIONS], ids=[m[0] for m in MUTATIONS]
)
def test_formulas_stand_where_they_are_changed(root, file, old):
    """What the slow test below changes is still there."""
    assert (next((root / "jaxmem" / "memory").rglob(f"{file}.py"))).read_text().count(old) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "test"), [m[1:] for m in MUTATIONS], ids=[m[0] for m in MUTATIONS]
)
def test_a_changed_formula_is_noticed(copy, golden, file, old, new, test):
    path = next((copy / "jaxmem" / "memory").rglob(f"{file}.py"))
    text = path.read_text()
    try:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}.py"
        path.write_text(text.replace(old, new))
        done = run(copy, golden, test)
    finally:
        path.write_text(text)
    assert done.returncode == 1, done.stdout[-2000:]  # 1: tests ran and some failed
    assert " failed" in done.stdout


@pytest.mark.slow
def test_the_copy_is_what_runs_and_passes(copy, golden):
    code = "import jaxmem, pathlib; print(pathlib.Path(jaxmem.__file__).parent.parent)"
    where = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert Path(where.stdout.strip()).resolve() == copy.resolve()
    done = run(copy, golden, "test_rekv_golden.py")
    assert done.returncode == 0, done.stdout[-2000:]
