"""The one table of memories by name, and which of them take part within a budget."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from jaxmem.experiments import _memory_options as opt
from jaxmem.experiments._memory_builders import PROBES, Setting, build
from jaxmem.experiments._memory_options import NAMES, Memories, Name, OmniMem
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Memory, Spec
from jaxmem.memory.omnimem.budgets import slots_for_bytes
from jaxmem.rope import Rope


class Budget(NamedTuple):
    """Slots per layer, or bytes over all layers; the other one is None."""

    slots: int | None
    nbytes: int | None


class Makes(Protocol):
    """What a model makes of a stream beside pictures; see `jaxmem.models.base`."""

    @property
    def audio_tokens(self) -> int: ...
    @property
    def stamps(self) -> bool: ...


class Chosen(NamedTuple):
    """A memory that takes part, and how it was set."""

    name: str
    memory: Memory
    spec: Spec
    options: dict[str, Any]
    slots: int  # per layer, as `build` took them
    reference: bool  # holds the whole stream, whatever the budget


_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def parse_budget(text: str) -> Budget:
    """Return what a budget argument means: `96` slots per layer, or `64KiB` over all layers.

    Raises:
      ValueError: if it is neither.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmg]i?)?b)?\s*", text, re.IGNORECASE)
    number = float(found[1]) if found else 0.0
    in_bytes = found is not None and found[0].strip().lower().endswith("b")
    if found is None or number <= 0 or (not in_bytes and number != int(number)):
        raise ValueError(
            f"--budget {text!r} is no budget: give slots per layer (96) or bytes over all layers "
            "(64KiB, 1.5MB)."
        )
    if not in_bytes:
        return Budget(int(number), None)
    return Budget(None, int(number * _UNITS[(found[2] or "").lower()]))


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


def choose(
    names: tuple[str, ...],
    options: Memories,
    budget: Budget,
    spec: Spec,
    rope: Rope,
    capacity: int | None,
    model: Makes | None = None,
) -> list[Chosen]:
    """Return the named memories, all within the bytes of the first one (`full` excepted).

    Args:
      names: of the memories.
      options: of all of them.
      budget: of the first one that is not `full`.
      spec: of the model.
      rope: of the model.
      capacity: tokens that the stream has at most, None where that is unknown.
      model: what makes the stream's rows; None: one that is deaf and writes no time stamps.

    Raises:
      ValueError: if the budget holds no memory, or `full` cannot know its capacity.
    """
    allowed, out = budget.nbytes, []
    setting = Setting(rope, spec.chunk, spec.text_step)
    if model is not None:
        setting = setting._replace(audio=model.audio_tokens, stamps=model.stamps)
    for name in names:
        make = partial(build, name, setting=setting, options=options)
        fixed = name == "omnimem" and options.omnimem.table is not None
        mine = _with_bank(name, options, spec, capacity)
        if name == "full":
            slots = options.full.capacity or _known(capacity, "full", "capacity")
        elif fixed:
            slots = 0
        elif allowed is not None:
            slots = slots_for_bytes(make, mine, allowed)
        else:
            slots = budget.slots or 1
        memory = make(slots)
        if name != "full":
            price = footprint(memory, mine).device
            if fixed and allowed is not None and price > allowed:
                raise ValueError(
                    f"the budget table {options.omnimem.table} needs {price} bytes, {allowed} are "
                    "allowed: name its memory first, so that the others take its bytes."
                )
            allowed = price if allowed is None else allowed
        plain = asdict(getattr(options, name)) | _around(name, memory, options)
        out.append(Chosen(name, memory, mine, plain, slots, name == "full"))
    return out


def _around(name: str, memory: Memory, options: Memories) -> dict[str, Any]:
    """Return the options of what was put around a memory."""
    coded = options.bits is not None and name != "full"
    around = {"bits": options.bits} if coded else {}
    return around if memory.bank is None else around | {"bank": asdict(options.bank)}


def _with_bank(name: str, options: Memories, spec: Spec, capacity: int | None) -> Spec:
    """Return the spec with the bank of a memory that has one, and where it lies."""
    chosen = getattr(options, name)
    if options.bank.capacity and name != "full":
        spec = replace(spec, bank_space=options.bank.space)
    if not hasattr(chosen, "bank"):
        return spec
    spec = replace(spec, bank_space=options.bank.space)
    if chosen.bank is None:
        capacity = _known(capacity, name, "bank")
        share = chosen.local_ratio if isinstance(chosen, opt.FlexMem) else 1
        return replace(spec, bank=-(-capacity // share))
    return replace(spec, bank=chosen.bank)


def _known(capacity: int | None, name: str, option: str) -> int:
    if capacity is None:
        raise ValueError(
            f"the length of this stream is unknown, so `{name}` cannot know its size: give "
            f"--{name}.{option} TOKENS."
        )
    return capacity


__all__ = [
    "NAMES",
    "PROBES",
    "Budget",
    "Chosen",
    "Memories",
    "Name",
    "OmniMem",
    "Setting",
    "build",
    "choose",
    "parse_budget",
    "parse_names",
]
