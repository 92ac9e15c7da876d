"""Memories by name, as the command line names them, all within one budget.

`jaxmem.memory_for` is the same for one memory and a model, from Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from jaxmem.memory import MEMORIES
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.bank.with_bank import WithBank
from jaxmem.memory.base import AnyMemory, FeatureMemory, Memory, Spec
from jaxmem.memory.features.with_audio import share_slots
from jaxmem.memory.omnimem import avba
from jaxmem.memory.omnimem.budgets import (
    MOST_SLOTS,
    load_table,
    parse_bytes,
    resized,
    slots_for_bytes,
    smallest,
)
from jaxmem.memory.options import (
    MORE,
    NAMES,
    check_options,
    kind_of,
    plain_options,
    whole_options,
)
from jaxmem.memory.transforms.quantized import Quantized

Options = Mapping[str, Mapping[str, Any]]
"""Name of a memory (or "bank") -> options that were set."""


class Budget(NamedTuple):
    """Slots per layer, or bytes over all layers; the other one is None."""

    slots: int | None
    nbytes: int | None


@dataclass(frozen=True)
class Wrapped:
    """What is put around every memory that takes it."""

    bits: int | None = None
    bank: Mapping[str, Any] = field(default_factory=dict)


class Contestant(NamedTuple):
    """A memory in the comparison, with its options."""

    name: str
    memory: AnyMemory
    options: dict[str, Any]  # also "bits" and "bank", where they are around it
    slots: int  # per layer, as `build` took them
    reference: bool  # holds the whole stream, whatever the budget


def parse_budget(text: str) -> Budget:
    """Return what a budget argument means: `96` slots per layer, or `64KiB` over all layers.

    Raises:
      ValueError: if it is neither.
    """
    try:
        if re.fullmatch(r"\s*\d+\s*", text) and 0 < int(text) <= MOST_SLOTS:
            return Budget(int(text), None)
        if text.strip().isdigit():
            raise ValueError
        return Budget(None, parse_bytes(text))
    except (ValueError, OverflowError):
        raise ValueError(
            f"--budget {text!r} is no budget: give slots per layer (96; at most {MOST_SLOTS:,}) or "
            "bytes over all layers (64KiB, 1.5MB)."
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
      wrapped: what is put around it, where it takes it.

    Raises:
      ValueError: if the name is unknown, or the memory refuses slots, options, bits or bank.
    """
    wrapped = wrapped or Wrapped()
    memory = _made(name, slots, spec, whole_options(name, options or {}))
    if wrapped.bits is not None and not why_bare(name, "bits"):
        memory = Quantized(memory, wrapped.bits)
    if wrapped.bank.get("capacity") and not why_bare(name, "bank"):
        memory = WithBank(memory, **wrapped.bank)
    return memory


def _made(name: str, slots: int, spec: Spec, options: dict[str, Any]) -> Any:
    kind: Any = kind_of(name)
    more = {n: options.pop(n, None) for n in MORE.get(name, ())}
    table, profile = more.get("table"), more.get("profile")
    if table is not None and profile is not None:
        raise ValueError("--omnimem.profile has no effect beside --omnimem.table; give one.")
    if table is not None:
        return kind(load_table(table), **options)
    if profile is not None:
        calibrated = avba.stretch(avba.profile(profile), spec.layers)
        return kind(avba.table(calibrated, average=slots), **options)
    if hasattr(kind, "of"):
        return kind.of(slots, **options)
    if any(one.name == "budget" for one in fields(kind)):
        return kind(slots, **options)
    memory, audio = kind(**options), more.get("audio_tokens")
    if not isinstance(memory, FeatureMemory) or audio == 0:
        return resized(memory, slots, spec)
    if audio is not None and not spec.audio_tokens:
        raise ValueError(f"--{name}.audio-tokens {audio} has no effect: the stream has no audio.")
    return share_slots(memory, slots, spec, audio)


def contestants(
    names: Sequence[str],
    options: Options,
    budget: Budget,
    spec: Spec,
    capacity: int | None,
    *,
    presets: Options | None = None,
    bits: int | None = None,
) -> list[Contestant]:
    """Return the named memories, all within the bytes of the first one (`full` excepted).

    Args:
      names: of the memories.
      options: that were set, by name; "bank": of a bank around each.
      budget: of the first one that is not `full`.
      spec: of the model.
      capacity: tokens that the stream has at most, None where that is unknown.
      presets: options that suit the model, where none was set.
      bits: that keys and values are stored in; None: as they come.

    Raises:
      ValueError: if the budget holds no memory, `full` cannot know its capacity, or an option has
        no effect.
    """
    presets = presets or {}
    for name in names:
        kind_of(name)
    wrapped = Wrapped(bits, _bank(names, options, presets))
    check_around(names, wrapped)
    allowed, out = budget.nbytes, []
    for name in names:
        own = {**presets.get(name, {}), **options.get(name, {})}
        given = {"capacity": capacity} if name == "full" or _has_bank(name) else {}
        if _has_bank(name):
            given["space"] = options.get("bank", {}).get("space")
        own = {k: v for k, v in given.items() if v is not None} | own
        own = whole_options(name, own)
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
        plain = plain_options(name, own) | _around(name, wrapped)
        out.append(Contestant(name, memory, plain, slots, name == "full"))
    return out


def _bank(names: Sequence[str], options: Options, presets: Options) -> Mapping[str, Any]:
    """Return the options of the bank around memories; refuse options without an effect."""
    idle = sorted(set(options) - set(names) - {"bank"})
    if idle:
        raise ValueError(
            f"--{idle[0]}.* has no effect: {idle[0]} is not among the memories of this run "
            f"({', '.join(names)})."
        )
    bank = dict(options.get("bank", {}))
    check_options("bank", bank)
    if not bank or bank.get("capacity"):
        return {**presets.get("bank", {}), **bank} if bank else {}
    if set(bank) == {"space"} and any(_has_bank(name) for name in names):
        return {}
    raise ValueError(
        f"--bank.{min(bank)} has no effect without --bank.capacity TOKENS; give a capacity, or "
        "leave it out."
    )


def check_around(names: Sequence[str], wrapped: Wrapped) -> list[str]:
    """Return in words which memories have no bits or no bank around them, though others have.

    Raises:
      ValueError: if no memory takes what is to be put around them.
    """
    notes = []
    for around, asked in (("bits", wrapped.bits), ("bank", wrapped.bank.get("capacity"))):
        bare = {name: why for name in names if (why := why_bare(name, around))}
        reasons = "; ".join(f"{name} {why}" for name, why in bare.items())
        if asked and len(bare) == len(names):
            raise ValueError(f"--{around} has no effect here: {reasons}. Leave it out.")
        if asked and bare:
            notes.append(f"without --{around}: {reasons}.")
    return notes


def why_bare(name: str, around: str) -> str:
    """Return why a memory takes no "bits" or no "bank"; empty if it takes them."""
    if name == "full":
        return "keeps the whole stream as it is"
    if issubclass(MEMORIES[name], FeatureMemory):
        return "keeps features before the decoder, no keys and values"
    if around == "bank" and getattr(MEMORIES[name], "logits", False):
        return "is what its decoder attends to, and what it drops is not seen again"
    own = around == "bank" and _has_bank(name)
    return f"has a bank of its own (--{name}.capacity)" if own else ""


def _has_bank(name: str) -> bool:
    """Return whether a memory of keys and values has a bank of its own."""
    kind = MEMORIES[name]
    return issubclass(kind, Memory) and kind.bank is not Memory.bank


def _around(name: str, wrapped: Wrapped) -> dict[str, Any]:
    """Return the options of what `build` puts around a memory."""
    bank = dict(wrapped.bank) if wrapped.bank.get("capacity") else None
    asked = {"bits": wrapped.bits, "bank": bank}
    return {k: v for k, v in asked.items() if v is not None and not why_bare(name, k)}


def _known(capacity: int | None) -> int:
    if capacity is None:
        raise ValueError(
            "the length of this stream is unknown, so `full` cannot know its size: give "
            "--full.capacity TOKENS."
        )
    return capacity
