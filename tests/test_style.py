"""ruff, in a second; CI runs pyright beside the tests, which takes most of a minute."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command", [["check"], ["format", "--check"]], ids=lambda command: command[0]
)
def test_style(root, command):
    line = [sys.executable, "-m", "ruff", *command, "."]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
