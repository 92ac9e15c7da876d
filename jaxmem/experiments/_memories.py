"""The one table of memories by name, with the options that a command line may set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxmem.memory.base import Memory, Spec, nbytes
from jaxmem.memory.budgets import load_table, slots_for_bytes
from jaxmem.memory.full import full
from jaxmem.memory.last_frames import last_frames
from jaxmem.memory.omnimem import omnimem
from jaxmem.memory.random import random
from jaxmem.memory.recent import recent
from jaxmem.memory.uniform import uniform


@dataclass(frozen=True)
class Full:
    """The whole stream: the exact reference. It takes what it needs, whatever the budget."""

    capacity: int | None = None
    """Tokens per layer; None: as many as the stream has, if its length is known."""


@dataclass(frozen=True)
class Recent:
    """The first tokens and the newest ones."""

    sinks: int = 4
    """Tokens held from the start of the stream."""


@dataclass(frozen=True)
class LastFrames:
    """The last whole frames with their sound, and nothing else."""

    frames: int | None = None
    """Frames held at most; None: as many as fit."""
    tokens_per_frame: int | None = None
    """Vision tokens of a frame, where kinds and times do not tell frames apart."""


@dataclass(frozen=True)
class Uniform:
    """Tokens evenly spaced over everything seen so far."""

    unit: Literal["token", "frame"] = "token"
    """What is spaced: single tokens, or whole frames with their sound."""


@dataclass(frozen=True)
class Random:
    """A uniform random sample of everything seen so far."""

    unit: Literal["token", "frame"] = "token"
    """What is drawn."""
    key: int = 0
    """Seed of the draw."""
    per_layer: bool = False
    """Draw in every layer independently."""


@dataclass(frozen=True)
class OmniMem:
    """OmniMem (arXiv 2606.07577): what is attended to and not repeated by its neighbours."""

    audio_share: float = 0.5
    """Audio's part of the budget; the released tables give it 1/6."""
    joint: bool = False
    """Audio and vision compete for one cap."""
    text: int = 0
    """Slots for text tokens; the streams of this command carry none."""
    importance: Literal["mean_logit", "exact"] = "mean_logit"
    """Softmax of head-averaged logits (as released), or mean of the exact weights."""
    lam: float = 0.02
    """Exponent of importance; 0: redundancy alone."""
    power: float = 0.5
    """Exponent of 1 - redundancy: 0.5 as released, 1 as published."""
    carry: float = 0.5
    """Weight of the stored importance when a token is seen again."""
    form: Literal["product", "sum"] = "product"
    """How importance and redundancy are joined."""
    global_factor: float = 0.0
    """Weight of the redundancy with whole blocks."""
    sketch: int | None = 128
    """Numbers per redundancy vector; None: the whole layer input."""
    table: Path | None = None
    """Budget table (JSON, per layer and kind) in place of --budget."""


@dataclass(frozen=True)
class Memories:
    """The options of every memory; the names of the fields are the names on the command line."""

    full: Full = Full()
    recent: Recent = Recent()
    last_frames: LastFrames = LastFrames()
    uniform: Uniform = Uniform()
    random: Random = Random()
    omnimem: OmniMem = OmniMem()


Name = Literal["full", "recent", "last_frames", "uniform", "random", "omnimem"]
NAMES: tuple[str, ...] = tuple(f.name for f in fields(Memories))


def _omnimem(o: OmniMem, slots: int) -> Memory:
    options = {k: v for k, v in asdict(o).items() if k != "table"}
    return omnimem(slots if o.table is None else load_table(o.table), **options)


_BUILD: Mapping[str, Callable[[Any, int], Memory]] = {
    "full": lambda o, slots: full(slots),
    # One slot must be a memory too, or no byte budget could be divided among slots.
    "recent": lambda o, slots: recent(slots, min(o.sinks, slots - 1)),
    "last_frames": lambda o, slots: last_frames(o.frames, o.tokens_per_frame, budget=slots),
    "uniform": lambda o, slots: uniform(slots, o.unit),
    "random": lambda o, slots: random(
        slots, jax.random.key(o.key), unit=o.unit, per_layer=o.per_layer
    ),
    "omnimem": _omnimem,
}
"""(options, slots per layer) -> memory."""


def build(name: str, slots: int, options: Memories | None = None) -> Memory:
    """Return the memory of that name with `slots` per layer.

    Raises:
      ValueError: if the name is unknown, or the memory refuses the slots or its options.
    """
    if name not in NAMES:
        raise ValueError(f"unknown memory {name!r}: use {', '.join(NAMES)}.")
    return _BUILD[name](getattr(options or Memories(), name), slots)


class Budget(NamedTuple):
    """Slots per layer, or bytes over all layers; the other one is None."""

    slots: int | None
    nbytes: int | None


class Chosen(NamedTuple):
    """A memory that takes part, and how it was set."""

    name: str
    memory: Memory
    options: dict[str, Any]
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
    names: tuple[str, ...], options: Memories, budget: Budget, spec: Spec, capacity: int | None
) -> list[Chosen]:
    """Return the named memories, all within the bytes of the first one (`full` excepted).

    Args:
      names: of the memories.
      options: of all of them.
      budget: of the first one that is not `full`.
      spec: of the model.
      capacity: tokens that the stream has at most, None where that is unknown.

    Raises:
      ValueError: if the budget holds no memory, or `full` cannot know its capacity.
    """
    allowed, out = budget.nbytes, []
    for name in names:
        make = partial(build, name, options=options)
        fixed = name == "omnimem" and options.omnimem.table is not None
        if name == "full":
            slots = options.full.capacity or capacity
            if slots is None:
                raise ValueError(
                    "the length of this stream is unknown, so `full` cannot know its size: give "
                    "--full.capacity TOKENS."
                )
        elif fixed:
            slots = 0
        elif allowed is not None:
            slots = slots_for_bytes(make, spec, allowed)
        else:
            slots = budget.slots or 1
        memory = make(slots)
        if name != "full":
            price = nbytes(memory, spec)
            if fixed and allowed is not None and price > allowed:
                raise ValueError(
                    f"the budget table {options.omnimem.table} needs {price} bytes, {allowed} are "
                    "allowed: name its memory first, so that the others take its bytes."
                )
            allowed = price if allowed is None else allowed
        out.append(Chosen(name, memory, asdict(getattr(options, name)), name == "full"))
    return out
