"""Lines typed on a terminal while something else runs, and what the screen shows of them."""

import io
import os
import queue
import sys
from functools import partial

import pytest
import waiting
from rich.console import Console

from jaxmem.experiments.stream import terminal as _typed
from jaxmem.experiments.stream.screen import Bar, Screen
from jaxmem.experiments.stream.terminal import Terminal, typed_lines

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")


wait_for = partial(waiting.wait_for, seconds=20.0)


def test_lines_are_taken_without_waiting_and_then_waited_for():
    lines = queue.Queue()
    typed = Terminal(lines.get)
    assert typed.taken() == []
    for line in ("  one ", "", "two"):
        lines.put(line)
    taken = []
    wait_for(lambda: taken.extend(typed.taken()) or len(taken) == 2)
    assert taken == ["one", "two"]
    ready = []
    for line in ("three", "four", "", "never"):
        lines.put(line)
    assert list(typed.until_empty(lambda: ready.append(1))) == ["three", "four"]
    assert len(ready) == 3
    lines.put(None)
    wait_for(lambda: typed.taken() == [] and list(typed.until_empty(lambda: None)) == [])


def test_an_interrupt_leaves():
    def interrupted():
        raise KeyboardInterrupt

    typed = Terminal(queue.Queue().get)
    assert list(typed.until_empty(interrupted)) == []


@pytest.fixture
def keyboard(monkeypatch):
    """Standard input on a pseudo-terminal; returns what types there, and the terminal's number."""
    master, slave = pty.openpty()
    with open(slave, closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(_typed, "in_foreground", lambda number: True)
        yield lambda data: os.write(master, data), slave
    os.close(master)
    os.close(slave)


def test_a_terminal_is_read_while_it_shows_nothing(keyboard):
    types, number = keyboard
    shows = lambda: bool(termios.tcgetattr(number)[3] & termios.ECHO)
    assert shows()
    with typed_lines(wanted=True, hidden=True) as typed:
        assert typed is not None and not shows()
        types("né\x1b[A".encode())
        wait_for(lambda: typed.unfinished == "né")
        types("😀".encode()[:2])
        types("😀".encode()[2:] + b"x\x7f!")
        wait_for(lambda: typed.unfinished == "né😀!")
        assert typed.taken() == []
        types(b"\rwrong\x15right\n")
        taken = []
        wait_for(lambda: taken.extend(typed.taken()) or len(taken) == 2)
        assert taken == ["né😀!", "right"] and typed.unfinished == ""
        prompts = typed.until_empty(lambda: None)
        types(b"after the end\n")
        assert next(prompts) == "after the end" and shows()
        types(b"\x04")
        assert list(prompts) == []
    assert shows()


def test_a_terminal_is_restored_whatever_happens(keyboard):
    _, number = keyboard
    before = termios.tcgetattr(number)
    with pytest.raises(KeyboardInterrupt), typed_lines(wanted=True, hidden=True):
        raise KeyboardInterrupt
    assert termios.tcgetattr(number) == before


def test_nothing_is_read_that_is_no_terminal_or_not_wanted(keyboard, monkeypatch):
    with typed_lines(wanted=False, hidden=True) as typed:
        assert typed is None
    monkeypatch.setattr(_typed, "in_foreground", lambda number: False)
    with typed_lines(wanted=True, hidden=True) as typed:
        assert typed is None
    monkeypatch.setattr(sys, "stdin", io.StringIO("a line\n"))
    with typed_lines(wanted=True, hidden=True) as typed:
        assert typed is None


def test_the_screen_shows_what_is_written_and_typed():
    file, typing = io.StringIO(), ["what"]
    console = Console(file=file, force_terminal=True, width=40, color_system=None)
    screen = Screen(console, ("omnimem",), lambda: typing[0])
    with Bar(screen) as bar:
        bar.add_task("", total=4, at="00:01", speed="")
        screen.wrote("omnimem", "Who?", "A man")
        screen.wrote("omnimem", "Who?", " in red")
        bar.refresh()
        assert "Who?  A man in red" in file.getvalue() and "> what" in file.getvalue()
        screen.wrote("omnimem", "Why?", "w " * 200)
        below = screen.__rich__().plain
        assert below.startswith("  Why?  … w") and len(below) < 5 * 40 and "A man" not in below
        screen.refused("no such word")
    assert "no such word" in file.getvalue()
