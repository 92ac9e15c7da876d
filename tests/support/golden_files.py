"""Golden files as cases of tests."""

from pathlib import Path

import pytest


def found(config, pattern):
    """Files of the folder of golden vectors (`--golden`) that match a pattern, by name."""
    given = config.getoption("--golden")
    folder = config.rootpath / "tests/golden/data" if given is None else given
    return sorted(Path(folder).glob(pattern))


def cases(config, files, slow=()):
    """Cases of golden files; those named `slow` are slow tests, unless a folder is given."""
    slow = slow if config.getoption("--golden") is None else ()
    mark = lambda f: pytest.mark.slow if f.stem in slow else ()
    return [pytest.param(f, id=f.stem, marks=mark(f)) for f in files]
