"""The face of the package: its names, their words, and what importing it costs."""

import inspect
import subprocess
import sys

import pytest

import jaxmem
from jaxmem.memory import CLASSES


def test_every_memory_has_a_public_class():
    assert set(CLASSES) <= set(dir(jaxmem))


@pytest.mark.parametrize("name", sorted(n for n in dir(jaxmem) if not n.startswith("_")))
def test_every_public_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(jaxmem, name))


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="elephant"):
        jaxmem.elephant  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    program = (
        "import sys, jaxmem; sys.exit(any(m in sys.modules for m in "
        "('flax', 'optax', 'orbax', 'av', 'matplotlib', 'transformers', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
