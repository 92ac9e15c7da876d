"""The one table of memories by name: how each is built from its options and a number of slots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxmem.experiments import _memory_options as opt
from jaxmem.experiments._memory_options import NAMES, Memories, Name, OmniMem
from jaxmem.memory import flash_vstream as fv
from jaxmem.memory import hermes as he
from jaxmem.memory import relevance
from jaxmem.memory.adakv import adakv
from jaxmem.memory.base import Memory, Reads, Spec, nbytes
from jaxmem.memory.budgets import load_table, slots_for_bytes
from jaxmem.memory.criticalkv import criticalkv
from jaxmem.memory.expected_attention import expected_attention
from jaxmem.memory.flexmem import flexmem
from jaxmem.memory.full import full
from jaxmem.memory.h2o import h2o
from jaxmem.memory.infinipot_v import infinipot_v
from jaxmem.memory.knorm import keydiff, knorm
from jaxmem.memory.last_frames import last_frames
from jaxmem.memory.livevlm import livevlm
from jaxmem.memory.ma_lmm import ma_lmm
from jaxmem.memory.moviechat import moviechat
from jaxmem.memory.omnimem import omnimem
from jaxmem.memory.random import random
from jaxmem.memory.recent import recent
from jaxmem.memory.rekv import rekv
from jaxmem.memory.snapkv import score as snapkv_score
from jaxmem.memory.snapkv import snapkv
from jaxmem.memory.streaming_llm import streaming_llm
from jaxmem.memory.streaming_vlm import streaming_vlm
from jaxmem.memory.streammem import streammem
from jaxmem.memory.tova import tova
from jaxmem.memory.uniform import uniform
from jaxmem.rope import Rope


class Setting(NamedTuple):
    """What some memories must know of the model and the stream."""

    rope: Rope
    chunk: int  # tokens written at once
    step: tuple[int, ...] | None = None  # see `Spec.text_step`


def _omnimem(o: OmniMem, slots: int, setting: Setting) -> Memory:
    options = {k: v for k, v in asdict(o).items() if k != "table"}
    return omnimem(slots if o.table is None else load_table(o.table), **options)


def _hermes(o: opt.Hermes, slots: int, setting: Setting) -> Memory:
    mix = {"qwen": he.QWEN, "llava": he.LLAVA, "paper": he.PAPER}[o.mix]
    # A summary takes a slot beside at least one token.
    return he.hermes(max(2, slots), mix=mix, summary=o.summary, reindex=o.reindex)


def _rekv(o: opt.ReKV, slots: int, setting: Setting) -> Memory:
    topk = max(1, slots // o.block) if o.topk is None else o.topk
    return rekv(slots, block=o.block, topk=topk, sinks=o.sinks, positions=o.positions)


def _snapkv(o: opt.SnapKV, slots: int, setting: Setting) -> Memory:
    return snapkv(slots, **{**asdict(o), "window": min(o.window, max(1, slots // 2))})


def _over_snapkv(factory: Callable[..., Memory]) -> Callable[[Any, int, Setting], Memory]:
    """Return the builder of a method that works on another one's score: SnapKV's."""

    def make(o: opt.CriticalKV | opt.AdaKV, slots: int, setting: Setting) -> Memory:
        options = asdict(o)
        window, kernel = min(options.pop("window"), max(1, slots // 2)), options.pop("kernel")
        score = partial(snapkv_score, window=window, kernel=kernel)
        return factory(slots, score, reads=Reads(mass="softmax", last=window), **options)

    return make


def _expected_attention(o: opt.ExpectedAttention, slots: int, setting: Setting) -> Memory:
    return expected_attention(slots, setting.rope, step=setting.step, sinks=0, **asdict(o))


def _flexmem(o: opt.FlexMem, slots: int, setting: Setting) -> Memory:
    """Return FlexMem with as many clips of context as the slots hold."""
    clip = setting.chunk if o.clip is None else o.clip
    index = relevance.MemIndex(setting.rope, o.layers, keys=o.keys, against="clips", query="behind")
    return flexmem(
        clip,
        window=max(1, slots // max(1, clip // o.context_ratio)),
        context_ratio=o.context_ratio,
        local_ratio=o.local_ratio,
        topk=o.topk,
        reader="memindex",
        index=index,
        shallow=o.shallow,
        per_kind=o.per_kind,
        positions=o.positions,
    )


def _flash_vstream(o: opt.FlashVStream, slots: int, setting: Setting) -> Memory:
    """Return the published proportions of its four parts, scaled to the slots."""
    sizes = fv.Sizes(
        grid=o.grid,
        side=o.grid,
        temporal=max(1, slots // 4),
        temporal_side=max(1, o.grid // 2),
        abstract=max(1, slots // 4),
        buffer=max(3, slots // 8),
    )
    return fv.flash_vstream(sizes, form=o.form)


def _moviechat(o: opt.MovieChat, slots: int, setting: Setting) -> Memory:
    frames = max(1, slots // o.grid**2)
    short = max(2, frames // 4)
    return moviechat(o.grid**2, short=short, merged=max(1, short // 9), long=max(1, frames - short))


def _options(factory: Callable[..., Memory]) -> Callable[[Any, int, Setting], Memory]:
    """Return the builder of a memory whose options are the arguments of its factory."""
    return lambda o, slots, setting: factory(slots, **asdict(o))


_BUILD: Mapping[str, Callable[[Any, int, Setting], Memory]] = {
    "full": lambda o, slots, setting: full(slots),
    # One slot must be a memory too, or no byte budget could be divided among slots.
    "recent": lambda o, slots, setting: recent(slots, min(o.sinks, slots - 1)),
    "last_frames": lambda o, slots, setting: last_frames(
        o.frames, o.tokens_per_frame, budget=slots
    ),
    "uniform": lambda o, slots, setting: uniform(slots, o.unit),
    "random": lambda o, slots, setting: random(
        slots, jax.random.key(o.key), unit=o.unit, per_layer=o.per_layer
    ),
    "omnimem": _omnimem,
    "hermes": _hermes,
    "rekv": _rekv,
    "infinipot_v": _options(infinipot_v),
    "snapkv": _snapkv,
    "h2o": _options(h2o),
    "tova": _options(tova),
    "knorm": _options(knorm),
    "keydiff": lambda o, slots, setting: keydiff(slots, rotary=setting.rope, **asdict(o)),
    "expected_attention": _expected_attention,
    "criticalkv": _over_snapkv(criticalkv),
    "adakv": _over_snapkv(adakv),
    "streammem": _options(streammem),
    "livevlm": _options(livevlm),
    "flexmem": _flexmem,
    "streaming_vlm": _options(streaming_vlm),
    "streaming_llm": lambda o, slots, setting: streaming_llm(
        slots, sinks=min(o.sinks, slots - 1), positions=o.positions
    ),
    "flash_vstream": _flash_vstream,
    "moviechat": _moviechat,
    "ma_lmm": lambda o, slots, setting: ma_lmm(max(1, slots // o.grid**2), o.grid**2),
}
"""(options, slots per layer, setting) -> memory."""

PROBES: Mapping[str, int] = {"hermes": 2, "streammem": 1}
"""Probes that a memory reads; the model's own generic questions."""


def build(name: str, slots: int, setting: Setting, options: Memories | None = None) -> Memory:
    """Return the memory of that name with `slots` per layer.

    Raises:
      ValueError: if the name is unknown, or the memory refuses the slots or its options.
    """
    if name not in NAMES:
        raise ValueError(f"unknown memory {name!r}: use {', '.join(NAMES)}.")
    return _BUILD[name](getattr(options or Memories(), name), slots, setting)


class Budget(NamedTuple):
    """Slots per layer, or bytes over all layers; the other one is None."""

    slots: int | None
    nbytes: int | None


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
) -> list[Chosen]:
    """Return the named memories, all within the bytes of the first one (`full` excepted).

    Args:
      names: of the memories.
      options: of all of them.
      budget: of the first one that is not `full`.
      spec: of the model.
      rope: of the model.
      capacity: tokens that the stream has at most, None where that is unknown.

    Raises:
      ValueError: if the budget holds no memory, or `full` cannot know its capacity.
    """
    allowed, out = budget.nbytes, []
    setting = Setting(rope, spec.chunk, spec.text_step)
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
            price = nbytes(memory, mine)
            if fixed and allowed is not None and price > allowed:
                raise ValueError(
                    f"the budget table {options.omnimem.table} needs {price} bytes, {allowed} are "
                    "allowed: name its memory first, so that the others take its bytes."
                )
            allowed = price if allowed is None else allowed
        plain = asdict(getattr(options, name))
        out.append(Chosen(name, memory, mine, plain, slots, name == "full"))
    return out


def _with_bank(name: str, options: Memories, spec: Spec, capacity: int | None) -> Spec:
    """Return the spec with the bank of a memory that has one."""
    chosen = getattr(options, name)
    if not hasattr(chosen, "bank"):
        return spec
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
