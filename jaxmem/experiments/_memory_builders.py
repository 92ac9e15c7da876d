"""How each memory is built from its options and a number of slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxmem.experiments import _memory_options as opt
from jaxmem.experiments._memory_options import NAMES, Memories, OmniMem
from jaxmem.experiments._peer_options import Features
from jaxmem.memory.bank import retrieval as blocks
from jaxmem.memory.bank.with_bank import bank
from jaxmem.memory.base import Memory, Requires
from jaxmem.memory.compression.adakv import adakv
from jaxmem.memory.compression.criticalkv import criticalkv
from jaxmem.memory.compression.expected_attention import expected_attention
from jaxmem.memory.compression.h2o import h2o
from jaxmem.memory.compression.knorm import keydiff, knorm
from jaxmem.memory.compression.snapkv import score as snapkv_score
from jaxmem.memory.compression.snapkv import snapkv
from jaxmem.memory.compression.tova import tova
from jaxmem.memory.features.ma_lmm import ma_lmm
from jaxmem.memory.features.moviechat import moviechat
from jaxmem.memory.features.with_audio import with_sound
from jaxmem.memory.flash_vstream import flash_vstream as fv
from jaxmem.memory.flash_vstream import flash_vstream_qwen as fq
from jaxmem.memory.flexmem import memindex as relevance
from jaxmem.memory.flexmem.flexmem import flexmem
from jaxmem.memory.full import full
from jaxmem.memory.hermes import hermes as he
from jaxmem.memory.last_frames import last_frames
from jaxmem.memory.omnimem.budgets import load_table
from jaxmem.memory.omnimem.omnimem import omnimem
from jaxmem.memory.random import random
from jaxmem.memory.recent import recent
from jaxmem.memory.streaming_llm import streaming_llm
from jaxmem.memory.transforms.quantized import quantized
from jaxmem.memory.uniform import uniform
from jaxmem.memory.video.infinipot_v import infinipot_v
from jaxmem.memory.video.livevlm import livevlm
from jaxmem.memory.video.rekv import rekv
from jaxmem.memory.video.streaming_vlm import streaming_vlm
from jaxmem.memory.video.streammem import streammem
from jaxmem.rope import Rope


class Setting(NamedTuple):
    """What some memories must know of the model and the stream."""

    rope: Rope
    chunk: int  # tokens written at once
    step: tuple[int, ...] | None = None  # see `Spec.text_step`
    audio: int = 0  # rows of sound in a second; 0: none comes
    stamps: bool = False  # words stand between the frames


def _omnimem(o: OmniMem, slots: int, setting: Setting) -> Memory:
    options = {k: v for k, v in asdict(o).items() if k != "table"}
    if o.text is None and not setting.stamps:
        options["text"] = 0
    return omnimem(slots if o.table is None else load_table(o.table), **options)


def _hermes(o: opt.Hermes, slots: int, setting: Setting) -> Memory:
    mix = {"qwen": he.QWEN, "llava": he.LLAVA, "paper": he.PAPER}[o.mix]
    options = {k: v for k, v in asdict(o).items() if k != "mix"}
    # A summary takes a slot beside at least one token, and beside those of audio.
    return he.hermes(max(4, slots), mix=mix, **options)


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
        return factory(slots, score, reads=Requires(mass="softmax", last=window), **options)

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


def _frames(frames: Callable[[Any, int], Memory]) -> Callable[[Any, int, Setting], Memory]:
    """Return the builder of a memory of frames, with one of sound beside it."""

    def make(o: Features, slots: int, setting: Setting) -> Memory:
        tokens = setting.audio if o.audio_tokens is None else o.audio_tokens
        if not o.per_kind or not setting.audio:
            return frames(o, slots)
        half = slots // 2
        return with_sound(frames(o, slots - half), max(1, half // max(1, tokens)), tokens)

    return make


def _flash_vstream(o: opt.FlashVStream, slots: int) -> Memory:
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


def _flash_vstream_qwen(o: opt.FlashVStreamQwen, slots: int) -> Memory:
    """Return the released proportions of its parts: as many frames in the ring as fit the slots."""
    frames = max(1, slots // o.grid**2)
    synopsis = max(1, frames * 60 // 512)
    sizes = fq.Sizes(grid=o.grid, synopsis=synopsis, details=-(-synopsis // 2), bank=frames)
    return fq.flash_vstream_qwen(sizes, form=o.form)


def _moviechat(o: opt.MovieChat, slots: int) -> Memory:
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
    "flash_vstream": _frames(_flash_vstream),
    "flash_vstream_qwen": _frames(_flash_vstream_qwen),
    "moviechat": _frames(_moviechat),
    "ma_lmm": _frames(lambda o, slots: ma_lmm(max(1, slots // o.grid**2), o.grid**2)),
}
"""(options, slots per layer, setting) -> memory."""

PROBES: Mapping[str, int] = {"hermes": 2, "streammem": 1}
"""Probes that a memory reads; the model's own generic questions."""


_RECALL: Mapping[str, Callable[[], blocks.Recall]] = {
    "mean": blocks.by_mean,
    "attention": blocks.by_attention,
    "parts": lambda: blocks.by_parts(4),
}


def build(name: str, slots: int, setting: Setting, options: Memories | None = None) -> Memory:
    """Return the memory of that name with `slots` per layer, in as many bits and with the bank.

    Raises:
      ValueError: if the name is unknown, or the memory refuses the slots, its options, the bits or
        the bank.
    """
    if name not in NAMES:
        raise ValueError(f"unknown memory {name!r}: use {', '.join(NAMES)}.")
    options = options or Memories()
    memory, behind = _BUILD[name](getattr(options, name), slots, setting), options.bank
    if name == "full":
        return memory
    if options.bits is not None:
        memory = quantized(memory, options.bits)
    if not behind.capacity or memory.spill is not None:
        return memory
    return bank(
        memory,
        behind.capacity,
        block=behind.block,
        topk=behind.topk,
        recall=_RECALL[behind.recall](),
        evict=behind.evict,
        positions=behind.positions,
    )
