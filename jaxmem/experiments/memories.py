"""Memories by name on a command line: options read from their classes, all within one budget."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.base import AnyMemory, FeatureMemory, Memory, Spec
from jaxmem.memory.features.with_audio import share_slots
from jaxmem.memory.flexmem.memindex import Encoding
from jaxmem.memory.omnimem import avba
from jaxmem.memory.omnimem.budgets import (
    load_table,
    parse_bytes,
    resized,
    slots_for_bytes,
    smallest,
)
from jaxmem.memory.transforms.quantized import Quantized

NAMES: tuple[str, ...] = tuple(MEMORIES)
Options = Mapping[str, Mapping[str, Any]]
"""Name of a memory (or "bank") -> options that were set."""
NOT_OPTIONS = {"budget", "inner", "memory", "sizes"}
"""Fields that the budget decides, or that a command line has no words for."""
MORE: Mapping[str, tuple[tuple[str, Any, str], ...]] = {
    "full": (("capacity", int | None, "Tokens per layer; None: as many as the stream has."),),
    "omnimem": (
        ("table", Path | None, "Budget table (JSON, per layer and modality) in place of --budget."),
        ("profile", str | None, "Calibrated profile (salmonn-8b, salmonn-4b) that spreads --budget "
         "over the layers."),
    ),
    "flexmem": (("question", str | None, "Known while watching, in place of a MemIndex: the reader "
                 "is Encoding(question)."),),
}  # fmt: skip
"""Options that only a command line has: name, type, help; None unless given."""


class Budget(NamedTuple):
    """Slots per layer, or bytes over all layers; the other one is None."""

    slots: int | None
    nbytes: int | None


@dataclass(frozen=True)
class Wrapped:
    """What is put around every memory but `full`."""

    bits: int | None = None
    bank: Mapping[str, Any] = field(default_factory=dict)


class Contestant(NamedTuple):
    """A memory in the comparison, with its options."""

    name: str
    memory: AnyMemory
    options: dict[str, Any]
    slots: int  # per layer, as `build` took them
    reference: bool  # holds the whole stream, whatever the budget


def parse_budget(text: str) -> Budget:
    """Return what a budget argument means: `96` slots per layer, or `64KiB` over all layers.

    Raises:
      ValueError: if it is neither.
    """
    try:
        if re.fullmatch(r"\s*\d+\s*", text) and int(text) > 0:
            return Budget(int(text), None)
        return Budget(None, parse_bytes(text))
    except ValueError:
        raise ValueError(
            f"--budget {text!r} is no budget: give slots per layer (96) or bytes over all layers "
            "(64KiB, 1.5MB)."
        ) from None


def parse_names(text: str) -> tuple[str, ...]:
    """Return the memories of a comma-separated list, in order.

    Raises:
      ValueError: if a name is unknown or comes twice.
    """
    names = tuple(name.strip().replace("-", "_") for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ValueError(f"unknown memory {', '.join(unknown) or text!r}: use {', '.join(NAMES)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"a memory is named twice in {text!r}; each can be set up once.")
    return names


@cache
def options_class(name: str) -> type:
    """Return a dataclass of the options that a command line may set, made from the memory's own.

    Args:
      name: of a memory, or "bank".
    """
    kind = WithBank if name == "bank" else MEMORIES[name]
    found = dict(_fields(kind))
    found |= {n: (t, None) for n, t, _ in MORE.get(name, ())}
    if name == "bank":
        found["capacity"] = (int, 0)
    specs = [(n, t, field(default=default)) for n, (t, default) in found.items()]
    made = dataclasses.make_dataclass(f"{kind.__name__}Options", specs, frozen=True)
    made.__doc__ = inspect.getdoc(kind)
    for option, _, text in MORE.get(name, ()):
        made.__doc__ = (made.__doc__ or "").replace(
            "Attributes:\n", f"Attributes:\n  {option}: {text}\n", 1
        )
    return made


def _fields(kind: type) -> Iterable[tuple[str, tuple[Any, Any]]]:
    """Yield name, type and default of what a memory's class takes as options."""
    hints = typing.get_type_hints(kind)
    maker = getattr(kind, "of", None)
    if maker is not None:
        known = typing.get_type_hints(maker)
        for name, parameter in inspect.signature(maker).parameters.items():
            if parameter.default is not parameter.empty and name not in NOT_OPTIONS:
                yield name, (known[name], parameter.default)
    for one in dataclasses.fields(kind):
        if one.init and one.name not in NOT_OPTIONS and one.default is not dataclasses.MISSING:
            words = _in_words(hints[one.name], one.default)
            if words is not None:
                yield one.name, (words, one.default)


def _in_words(hint: Any, default: Any) -> Any:
    """Return what a command line may set an option to; None: nothing but its default.

    Of words and objects it has the words; of objects that of the default's kind.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is typing.Union:
        kinds = typing.get_args(hint)
    thing = lambda kind: dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
    kept = [kind for kind in kinds if not thing(kind) or isinstance(default, kind)]
    if kept in ([], [type(None)]):
        return None
    return typing.Union[tuple(kept)]  # noqa: UP007


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


def parse_options(name: str, words: Sequence[str], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--NAME.OPTION VALUE ...` sets, beside what was set before.

    Raises:
      ValueError: if a value makes no sense.
      SystemExit: if an option is unknown or does not parse.
    """
    kind = options_class(name)
    before = make_options(name, default)
    parsed = tyro.cli(
        kind, args=list(words), default=before, prog=f"--{name}.OPTION", add_help=False
    )
    same, found = vars(make_options(name, {})), vars(parsed)
    # What was said counts, even if it is the class's default: a model may have presets of its own.
    said = {_option(word, found) for word in words if word.startswith("--")}
    return {k: v for k, v in found.items() if k in said or k in default or v != same.get(k)}


def _option(word: str, known: Mapping[str, Any]) -> str:
    """Return the option that a word such as --no-reindex, --topk=3 or --reader.keys sets."""
    name = re.split(r"[.=]", word[2:])[0].replace("-", "_")
    return name if name in known else name.removeprefix("no_")


def make_options(name: str, values: Mapping[str, Any]) -> Any:
    """Return the options of a memory with some values set.

    Raises:
      ValueError: if it has no such option.
    """
    kind = options_class(name)
    known = {one.name for one in dataclasses.fields(kind)}
    unknown = set(values) - known
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}."
        )
    return kind(**values)


def help_of(name: str) -> None:
    """Print the options of a memory, and exit.

    Raises:
      SystemExit: always.
      ValueError: if the name is unknown.
    """
    if name not in (*NAMES, "bank"):
        raise ValueError(f"unknown memory {name!r}: use {', '.join(NAMES)}, or bank.")
    tyro.cli(options_class(name), args=["--help"], prog=f"--{name}.OPTION")


def build(
    name: str,
    slots: int,
    spec: Spec,
    options: Mapping[str, Any] | None = None,
    wrapped: Wrapped | None = None,
) -> AnyMemory:
    """Return the memory of that name with `slots` per layer, in as many bits and with a bank.

    Args:
      name: in `MEMORIES`.
      slots: per layer.
      spec: of the model.
      options: of the memory.
      wrapped: what is put around it.

    Raises:
      ValueError: if the name is unknown, or the memory refuses slots, options, bits or bank.
    """
    if name not in NAMES:
        raise ValueError(f"unknown memory {name!r}: use {', '.join(NAMES)}.")
    options, wrapped = dict(options or {}), wrapped or Wrapped()
    make_options(name, options)
    memory = _made(name, slots, spec, options)
    if name == "full" or isinstance(memory, FeatureMemory):
        return memory
    if wrapped.bits is not None:
        memory = Quantized(memory, wrapped.bits)
    if not wrapped.bank.get("capacity") or memory.bank(spec) is not None:
        return memory
    return WithBank(memory, **wrapped.bank)


def _made(name: str, slots: int, spec: Spec, options: dict[str, Any]) -> Any:
    kind: Any = MEMORIES[name]
    more = {n: options.pop(n, None) for n, *_ in MORE.get(name, ())}
    if more.get("table") is not None and more.get("profile") is not None:
        raise ValueError(f"--{name}.table and --{name}.profile both say how the budget is spread.")
    if more.get("table") is not None:
        return kind(load_table(more["table"]), **options)
    if more.get("profile") is not None:
        profile = avba.stretch(avba.profile(more["profile"]), spec.layers)
        return kind(avba.table(profile, average=slots), **options)
    if hasattr(kind, "of"):
        return kind.of(slots, **options)
    if any(one.name == "budget" for one in dataclasses.fields(kind)):
        return kind(slots, **options)
    if issubclass(kind, FeatureMemory):
        return share_slots(kind(**options), slots, spec)
    return resized(kind(**options), slots, spec)


def contestants(
    names: Sequence[str],
    options: Options,
    budget: Budget,
    spec: Spec,
    capacity: int | None,
    *,
    presets: Options | None = None,
    wrapped: Wrapped | None = None,
) -> list[Contestant]:
    """Return the named memories, all within the bytes of the first one (`full` excepted).

    Args:
      names: of the memories.
      options: that were set, by name.
      budget: of the first one that is not `full`.
      spec: of the model.
      capacity: tokens that the stream has at most, None where that is unknown.
      presets: options that suit the model, where none was set.
      wrapped: what is put around each.

    Raises:
      ValueError: if the budget holds no memory, `full` cannot know its capacity, or an option has
        no effect.
    """
    wrapped = _checked(names, options, wrapped or Wrapped(), presets or {})
    allowed, out = budget.nbytes, []
    for name in names:
        own = {**(presets or {}).get(name, {}), **options.get(name, {})}
        if _has_bank(name):
            given = {"capacity": capacity, "space": options.get("bank", {}).get("space")}
            own = {k: v for k, v in given.items() if v is not None} | own
        if own.get("question") is not None:
            if "reader" in options.get(name, {}):
                raise ValueError(f"--{name}.question takes the place of --{name}.reader: give one.")
            own["reader"] = Encoding(own["question"])
        make = lambda slots, name=name, own=own: build(name, slots, spec, own, wrapped)
        fixed = own.get("table") is not None
        if name == "full":
            slots = own.get("capacity") or _known(capacity)
        elif fixed:
            slots = 0
        elif allowed is not None:
            least = smallest(MEMORIES[name], spec)
            slots = slots_for_bytes(make, spec, allowed, smallest=least)
        else:
            slots = budget.slots or 1
        memory = make(slots)
        if name != "full":
            price = footprint(memory, spec).device
            if fixed and allowed is not None and price > allowed:
                raise ValueError(
                    f"the budget table {own['table']} needs {price} bytes, {allowed} are allowed: "
                    "name its memory first, so that the others take its bytes."
                )
            allowed = price if allowed is None else allowed
        plain = plain_options(name, own) | _around(name, memory, spec, wrapped)
        out.append(Contestant(name, memory, plain, slots, name == "full"))
    _check_wrapped(out, wrapped)
    return out


def _check_wrapped(chosen: Sequence[Contestant], wrapped: Wrapped) -> None:
    """Refuse bits, and a bank, that no memory of a run takes."""
    names = ", ".join(one.name for one in chosen)
    if wrapped.bits is not None and not any("bits" in one.options for one in chosen):
        raise ValueError(
            f"--bits has no effect on {names}: it is for memories of keys and values other than "
            "full."
        )
    if wrapped.bank.get("capacity") and not any("bank" in one.options for one in chosen):
        raise ValueError(
            f"--bank.capacity has no effect on {names}: full and memories of features have no "
            "bank, rekv and flexmem one of their own (--NAME.capacity)."
        )


def _checked(names: Sequence[str], options: Options, wrapped: Wrapped, presets: Options) -> Wrapped:
    """Return what is put around memories, with presets; refuse options without an effect."""
    idle = sorted(set(options) - set(names) - {"bank"})
    if idle:
        raise ValueError(
            f"--{idle[0]}.* has no effect: {idle[0]} is not among the memories of this run "
            f"({', '.join(names)})."
        )
    bank = dict(options.get("bank", wrapped.bank))
    if not bank:
        return wrapped
    if not bank.get("capacity"):
        if any(_has_bank(name) for name in names) and set(bank) == {"space"}:
            return wrapped
        raise ValueError(
            f"--bank.{min(bank)} has no effect without --bank.capacity TOKENS; give a capacity, or "
            "leave it out."
        )
    return replace(wrapped, bank={**presets.get("bank", {}), **bank})


def _has_bank(name: str) -> bool:
    kind = MEMORIES[name]
    return issubclass(kind, Memory) and any(
        one.name == "capacity" for one in dataclasses.fields(kind)
    )


def plain_options(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a memory as plain data, for a report."""
    return {k: _plain(v) for k, v in asdict(make_options(name, own)).items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _around(name: str, memory: AnyMemory, spec: Spec, wrapped: Wrapped) -> dict[str, Any]:
    """Return the options of what was put around a memory."""
    if name == "full" or isinstance(memory, FeatureMemory):
        return {}
    around: dict[str, Any] = {} if wrapped.bits is None else {"bits": wrapped.bits}
    if isinstance(memory, WithBank):
        around["bank"] = dict(wrapped.bank)
    return around


def _known(capacity: int | None) -> int:
    if capacity is None:
        raise ValueError(
            "the length of this stream is unknown, so `full` cannot know its size: give "
            "--full.capacity TOKENS."
        )
    return capacity
