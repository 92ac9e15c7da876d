"""What commands share: configs from a file and the command line, checks, and exit statuses."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

C = TypeVar("C")

LONGEST = 4096
"""Characters of an argument; no path may have more."""


def shortened(text: str, most: int = 200) -> str:
    """Return an error's text with words of more than `most` characters cut in the middle."""

    def cut(found: re.Match[str]) -> str:
        word = found[0]
        return f"{word[: most // 2]}...({len(word):,} characters)...{word[-most // 4 :]}"

    return re.sub(rf"\S{{{most + 1},}}", cut, text)


class Shown(TypedDict):
    """What tyro says of a command above its options."""

    prog: str
    description: str


def shown(name: str, doc: str | None) -> Shown:
    """Return what tyro says of a command above its options, from the docstring of its module.

    Commands in it stay on lines of their own: tyro joins lines that begin with a letter, and makes
    two blank lines of one before a line that does not.
    """
    lines: list[str] = []
    for line in (line.strip() for line in (doc or "").strip().splitlines()):
        example = line.startswith(("python -m ", "jaxmem "))
        while example and lines and not lines[-1]:
            lines.pop()
        lines.append(f"    {line}" if example else line)
    return {"prog": f"python -m jaxmem.experiments.{name}", "description": "\n".join(lines)}


def parse(kind: type[C], argv: Sequence[str], *, prog: str, description: str | None = None) -> C:
    """Return a config from arguments; `--config FILE` gives the values that they start from.

    `description` is what --help says; None: the docstring of the class.

    Raises:
      ValueError: if the config file is missing or makes something else.
      SystemExit: 2 for arguments that do not parse, 0 for --help.
    """
    long = [word for word, before in zip(argv, ("", *argv), strict=False) if before != "--ask"]
    if any(len(word) > LONGEST and not word.startswith("--ask=") for word in long):
        word = max(long, key=len)
        raise ValueError(
            f"an argument has {len(word):,} characters, expected at most {LONGEST:,}: "
            f"{shortened(word)}"
        )
    rest, path = split(argv)
    default = kind() if path is None else load(kind, path)
    return tyro.cli(kind, args=rest, default=default, prog=prog, description=description)


def split(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the arguments without `--config FILE`, and FILE.

    Raises:
      ValueError: if it comes twice or without a file.
    """
    rest, path, words = [], None, iter(argv)
    for word in words:
        if word != "--config" and not word.startswith("--config="):
            rest.append(word)
            continue
        value = word.partition("=")[2] if "=" in word else next(words, "")
        if not value or path is not None:
            raise ValueError("--config takes one Python file, once: --config configs/x.py")
        path = Path(value)
    return rest, path


def load(kind: type[C], path: Path) -> C:
    """Return what `read` returns, with the file's path in the field `config`."""
    return kind(**{**vars(read(kind, path)), "config": path})


def read(kind: type[C], path: Path) -> C:
    """Return what `get_config()` of a Python file makes.

    Raises:
      ValueError: if there is no such file or function, or it makes something else.
    """
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file.")
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except KeyError as error:
        raise ValueError(f"--config {path}: it has no function get_config() ({error}).") from error
    except Exception as error:
        raise ValueError(f"--config {path}: {type(error).__name__}: {error}") from error
    # By name: run as a program, the config's module has the name __main__ as well as its own.
    if type(config).__qualname__ != kind.__qualname__:
        raise ValueError(
            f"--config {path}: get_config() made a {type(config).__name__}, expected "
            f"{kind.__name__}."
        )
    _check_types(config, path)
    return config


def _check_types(config: object, path: Path) -> None:
    """Refuse values of a config file that are not of their field's type."""
    hints = get_type_hints(type(config))
    for one in fields(config):  # type: ignore[arg-type]
        value = getattr(config, one.name)
        if not _fits(value, hints[one.name]):
            raise ValueError(
                f"--config {path}: {one.name} is {shortened(repr(value))} "
                f"({type(value).__name__}), expected {_word(hints[one.name])}."
            )


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value is of a type as configs have them."""
    kind, args = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in args)
    if kind is Literal:
        return value in args
    if kind is tuple:
        ends = args[-1:] == (Ellipsis,)
        return isinstance(value, tuple | list) and (
            all(_fits(one, args[0]) for one in value)
            if ends
            else len(value) == len(args) and all(map(_fits, value, args))
        )
    if kind is not None and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, args[1]) for one in value.values())
    if hint is Any:
        return True
    allowed = {float: (int, float), Path: (str, Path)}.get(hint, hint)
    return isinstance(value, allowed) and (hint is bool or not isinstance(value, bool))


def _word(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def refusing(run: Callable[[], object]) -> int:
    """Run a command and return its exit status: 0, or 2 if it refuses its arguments."""
    try:
        run()
    except ValueError as error:
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        return 2
    return 0


def whole_pieces(name: str, seconds: float, piece: float) -> int:
    """Return how many of a model's pieces an option's seconds are.

    Raises:
      ValueError: if that is no whole number of at least 1.
    """
    count = round(seconds / piece)
    if count < 1 or abs(count * piece - seconds) > 1e-6:
        raise ValueError(
            f"--{name} {seconds:g}: the model takes pieces of {piece:g} s, give a multiple."
        )
    return count
