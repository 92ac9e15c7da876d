"""ruff (lint and format) and pyright over the package, as part of the tests."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "pyright"],
    ],
    ids=["lint", "format", "types"],
)
def test_style(root, command):
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
