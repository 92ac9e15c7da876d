"""Options of memories on a command line: `--NAME.OPTION VALUE`, and the help of each."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any

import tyro

from jaxmem.memory.options import NAMES, attributes, check_options, kind_of, worded

MemoryOptions = Annotated[Mapping[str, Mapping[str, Any]], tyro.conf.Suppress]
"""Options of memories by name, as --NAME.OPTION and --bank.OPTION set them."""


@cache
def options_class(name: str) -> type:
    """Return a dataclass of the options of a memory, or of "bank", that words may set."""
    kind = kind_of(name)
    texts, specs = attributes(kind), []
    for key, option in worded(name).items():
        arg = tyro.conf.arg(help=option.text or texts.get(key, ""))
        specs.append((key, Annotated[option.type, arg], dataclasses.field(default=option.default)))
    made = dataclasses.make_dataclass(f"{kind.__name__}Options", specs, frozen=True)
    made.__doc__ = (inspect.getdoc(kind) or "").partition("\nAttributes:")[0]
    return made


def split_options(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the arguments without `--NAME.OPTION VALUE ...`, and these by NAME.

    Raises:
      ValueError: if a name is unknown.
    """
    rest: list[str] = []
    found: dict[str, list[str]] = {}
    here = rest
    for word in argv:
        if word.startswith("--"):
            name, dot, option = word[2:].partition(".")
            here = rest
            if dot and "=" not in name:
                name = name.replace("-", "_")
                if name not in (*NAMES, "bank"):
                    raise ValueError(
                        f"{word}: unknown memory {name!r}; use {', '.join(NAMES)}, or bank."
                    )
                here = found.setdefault(name, [])
                word = f"--{option}"
        here.append(word)
    return rest, found


def parse_options(name: str, words: Sequence[str], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--NAME.OPTION VALUE ...` sets, beside what was set before.

    Raises:
      ValueError: if an option has no effect.
      SystemExit: if an option is unknown or does not parse.
    """
    kind = options_class(name)
    known = {one.name for one in dataclasses.fields(kind)}
    named = {w[2:].partition("=")[0].replace("-", "_") for w in words if w.startswith("--")}
    named = {w.removeprefix("no_") if w not in known else w for w in named}
    check_options(name, dict.fromkeys(named & set(getattr(kind_of(name), "sized", ()))))
    parsed = tyro.cli(kind, args=list(words), prog=f"--{name}.OPTION", add_help=False)
    return {**before, **{key: getattr(parsed, key) for key in known & named}}


def read_options(words: Mapping[str, Sequence[str]], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of all memories by name: those of the words, beside those before.

    Raises:
      ValueError: if an option has no effect.
      SystemExit: if an option is unknown or does not parse.
    """
    read = {name: parse_options(name, mine, before.get(name, {})) for name, mine in words.items()}
    return {**before, **read}


def help_of(name: str) -> None:
    """Print the options of a memory, and exit.

    Raises:
      SystemExit: always.
      ValueError: if the name is unknown.
    """
    tyro.cli(options_class(name), args=["--help"], prog=f"--{name}.OPTION")
