"""The Python of every page runs as it is printed, from top to bottom, in an empty folder.

What a page takes for granted (chunks, a model of the reader's own) is made in a comment that the
page does not show: `<!-- invisible-code-block: python ... -->`. What cannot run has the comment
`<!-- skip: next -->` before it, and a line in `SKIPPED`.
"""

import shutil
import warnings
from unittest import SkipTest

import matplotlib
import matplotlib.pyplot as plt
import pytest
from pages import PAGES, ROOT, blocks, name_of
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import jaxmem
from jaxmem.data.world.files import held_out
from jaxmem.models.qwen.tiny_checkpoint import write_tiny

SKIPPED: dict[str, int] = {}
"""Page -> how many of its blocks are not run."""
SECONDS = 12
HUB = "Qwen/Qwen2.5-VL-3B-Instruct"
"""A checkpoint that pages load by its name; here a directory of this name holds a tiny one."""
WITH_PYTHON = [p for p in PAGES if any(b.language == "python" for b in blocks(p))]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """What pages speak of: a video, and checkpoints."""
    folder = tmp_path_factory.mktemp("things")
    held_out(7, SECONDS, folder / "world")[0].rename(folder / "talk.mp4")
    for name in (HUB, "DIR"):
        write_tiny(folder / name)
    shutil.rmtree(folder / "world")
    return folder


def run(page) -> int:
    """Run the blocks of a page in one namespace; return how many were skipped."""
    sybil = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path=str(ROOT))
    document = sybil.parse(page)
    if page.parent.name == "memories":  # as their table says
        document.namespace["jm"] = jaxmem
    skipped = 0
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest:
            skipped += 1
    return skipped


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_runs_as_printed(page, things, tmp_path, monkeypatch):
    matplotlib.use("agg")
    shutil.copytree(things, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # a reader's warnings are not errors
            assert run(page) == SKIPPED.get(name_of(page), 0)
    finally:
        plt.close("all")


def test_every_block_has_a_language_that_is_checked():
    """Python is run, `sh` is parsed; what is neither is meant to be read only."""
    for page in PAGES:
        found = {b.language for b in blocks(page)}
        assert found <= {"python", "sh", "text", "console"}, (name_of(page), found)
        for block in blocks(page):
            if block.language == "text":
                starts = ("import ", "from ", "python", "jaxmem ", "pip ")
                assert not block.text.lstrip().startswith(starts), (name_of(page), block.line)
