"""`--help` of every command: its examples stand on lines of their own."""

import itertools
from importlib import import_module

import pytest

from jaxmem.experiments.__main__ import COMMANDS, main


def examples(doc):
    lines = [line.strip() for line in (doc or "").splitlines()]
    return [line for line in lines if line.startswith(("python -m ", "jaxmem "))]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_on_lines_of_their_own(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    try:
        assert main([name, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown[0].startswith(f"usage: python -m jaxmem.experiments.{name} ")
    assert all(line.count("python -m jaxmem") < 2 for line in shown)
    told = examples(import_module(COMMANDS[name]).__doc__)
    listed = [line for line in shown if line in told]
    assert listed == (told if name != "stream" else []), shown[:12]
    assert not any(a == b == "" for a, b in itertools.pairwise(shown))
