"""Golden files as cases of tests."""

import pytest


def cases(files, given, slow):
    """Cases of golden files; those named `slow` are slow tests, unless a folder is given."""
    mark = lambda f: pytest.mark.slow if given is None and f.stem in slow else ()
    return [pytest.param(f, id=f.stem, marks=mark(f)) for f in files]
