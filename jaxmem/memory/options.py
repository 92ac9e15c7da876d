"""Options of memories by their names: read from the classes, checked, and put together."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.with_bank import WithBank

NAMES: tuple[str, ...] = tuple(MEMORIES)


class Option(NamedTuple):
    """Something that can be set by name."""

    type: Any
    default: Any
    text: str  # what it is, where the class does not say


_AUDIO = Option(
    int | None, None, "rows of audio that are merged as one piece; None: a second of it; 0: no "
    "audio is kept, as published."
)  # fmt: skip
MORE: Mapping[str, Mapping[str, Option]] = {
    "full": {"capacity": Option(int | None, None, "tokens per layer; None: the whole stream's.")},
    "omnimem": {
        "table": Option(Path | None, None, "budget table (JSON, per layer and modality) in place "
                        "of a budget."),
        "profile": Option(str | None, None, "calibrated profile (salmonn-8b, salmonn-4b) that "
                          "spreads the budget over the layers."),
    },
    "flash_vstream": {"audio_tokens": _AUDIO},
    "flash_vstream_qwen": {"audio_tokens": _AUDIO},
    "moviechat": {"audio_tokens": _AUDIO},
    "ma_lmm": {"audio_tokens": _AUDIO},
    "memory_vla": {"audio_tokens": _AUDIO},
}  # fmt: skip
"""Options that a memory has by name only; None unless given."""
_PLAIN = (bool, int, float, str, Path, type(None))


def kind_of(name: str) -> type:
    """Return the class of a memory by its name, or that of "bank".

    Raises:
      ValueError: if the name is unknown.
    """
    if name not in (*NAMES, "bank"):
        raise ValueError(f"unknown memory {name!r}: use {', '.join(NAMES)}, or bank.")
    return WithBank if name == "bank" else MEMORIES[name]


@functools.cache
def options_of(name: str) -> Mapping[str, Option]:
    """Return the options of a memory, or of "bank", as its class takes them; not its budget."""
    kind = kind_of(name)
    found = {n: Option(*o, "") for n, o in _fields(kind)} | dict(MORE.get(name, {}))
    if name == "bank":
        found["capacity"] = Option(int, 0, "")
    return found


def _fields(kind: type) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield name, type and default of what a class takes as options."""
    not_options = {"budget", "inner", "memory", *getattr(kind, "sized", ())}
    hints = typing.get_type_hints(kind)
    maker = getattr(kind, "of", None)
    if maker is not None:
        types = typing.get_type_hints(maker)
        for name, parameter in inspect.signature(maker).parameters.items():
            if parameter.default is not parameter.empty and name not in not_options:
                yield name, (types[name], parameter.default)
    for one in fields(kind):
        if one.init and one.name not in not_options and one.default is not MISSING:
            yield one.name, (hints[one.name], one.default)


@functools.cache
def worded(name: str) -> Mapping[str, Option]:
    """Return the options of a memory that words can set.

    An option whose default is a dataclass is set by its fields (`reader_keys`), one that is a name
    or an object by the name; one that is an object or None is for Python.
    """
    found: dict[str, Option] = {}
    for key, option in options_of(name).items():
        kinds = members(option.type)
        plain = [k for k in kinds if k in _PLAIN or get_origin(k) in (tuple, Literal)]
        if len(plain) == len(kinds) or set(plain) - {type(None)}:
            found[key] = option._replace(type=functools.reduce(operator.or_, plain))
        found |= {full: part.as_option for full, part in _parts(name).items() if part.of == key}
    return found


def members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


class _Part(NamedTuple):
    """A field of a dataclass that is an option."""

    of: str  # the option
    kind: type
    field: str
    as_option: Option


@functools.cache
def _parts(name: str) -> Mapping[str, _Part]:
    """Return the fields of the dataclasses that are options of a memory, by their full names."""
    found = {}
    for key, option in options_of(name).items():
        for kind in members(option.type) if is_dataclass(option.default) else ():
            hints, texts = typing.get_type_hints(kind), attributes(kind)
            for one in fields(kind):
                default = getattr(option.default, one.name, None)
                hint = hints[one.name] if default is not None else hints[one.name] | None
                text = f"{kind.__name__}: {texts.get(one.name, '')}"
                as_option = Option(hint, default, text)
                found[f"{key}_{one.name}"] = _Part(key, kind, one.name, as_option)
    return found


def attributes(kind: type) -> dict[str, str]:
    """Return what the docstring of a class says of each attribute."""
    doc = inspect.getdoc(kind) or ""
    section = doc.partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def check_options(name: str, values: Mapping[str, Any]) -> None:
    """Refuse options that a memory does not have.

    Raises:
      ValueError: naming them, and those that it has.
    """
    known = {**options_of(name), **worded(name)}
    for key in sorted(set(values) - set(known)):
        if key in getattr(kind_of(name), "sized", ()):
            raise ValueError(
                f"--{name}.{key} has no effect: the budget decides it; leave it out, or give "
                "another --budget."
            )
        raise ValueError(f"{name} has no option {key}; it has {', '.join(sorted(known))}.")


def whole_options(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the class takes them: those set by their fields put together.

    Raises:
      ValueError: if there is no such option, or fields of two dataclasses are given for one.
    """
    check_options(name, values)
    parts = _parts(name)
    out = {k: v for k, v in values.items() if k not in parts}
    for key in dict.fromkeys(parts[k].of for k in values if k in parts):
        mine = {k: v for k, v in values.items() if k in parts and parts[k].of == key}
        kinds = {parts[k].kind for k in mine}
        if len(kinds) > 1:
            raise ValueError(f"--{name}: {' and '.join(mine)} exclude each other; give one.")
        (kind,) = kinds
        before = out.get(key, options_of(name)[key].default)
        given = {parts[k].field: v for k, v in mine.items()}
        out[key] = replace(before, **given) if isinstance(before, kind) else kind(**given)
    return out


def plain_options(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a memory as plain data, for a report."""
    defaults = {key: option.default for key, option in options_of(name).items()}
    return {k: _plain(v) for k, v in {**defaults, **whole_options(name, own)}.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
