"""Options of `evaluate benchmark`, and what they are once they are checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxmem.data.benchmarks import Found, Item, Video, named, read
from jaxmem.data.benchmarks.prompts import template_of
from jaxmem.data.benchmarks.rules import RULES
from jaxmem.experiments.memories import MemoryOptions
from jaxmem.experiments.stream.config import (
    Dtype,
    File,
    Number,
    Text,
    Whole,
    refuse_of_checkpoints,
    try_folder,
)
from jaxmem.memory.by_name import Wrapped, check_around, parse_budget, parse_names

Dir = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


@dataclass(frozen=True)
class BenchmarkConfig:
    """A published benchmark from your own copy: one stream per video, questions at their times."""

    # Of the benchmark; a wrong one prints all of them. Or a Python file with one of your own.
    name: str
    data: Path  # Folder of your copy: annotations, and videos somewhere below.
    # Checkpoint: directory or organisation/name on Hugging Face; or an embedded model.
    model: str = "tiny"
    memory: str = "omnimem"  # Names, comma-separated: all of them see each video once.
    budget: str = "1024"  # Slots per layer, or bytes over all layers (64MiB), of the first one.
    videos: Dir = None  # Folder of the videos, if they are elsewhere.
    only: str = ""  # Kinds or groups of questions, comma-separated; all by default.
    prompt: str = "options"  # "options", "question" (alone), or a file with a template.
    rule: str = ""  # How letters are read, in place of the benchmark's rule.
    shard: str = ""  # I/N: every N-th video from the I-th on, from 0/N to N-1/N.
    # Report what these folders hold, those of shards or of other memories; nothing is run.
    merge: tuple[Path, ...] = ()
    adapter: Text = None  # LoRA of the model.
    scorer: File = None  # Learned weights of --memory retention.
    dtype: Dtype = "bfloat16"  # Of a checkpoint.
    fps: Number = None  # Pictures a second that a checkpoint is given (1).
    max_new: int = 128  # Tokens of a reply of a checkpoint, at most.
    max_pixels: Whole = None  # Of a frame of a checkpoint, at most.
    piece_seconds: Number = None  # Of video-SALMONN: length of a piece (30); it sees more in time.
    chunk_seconds: Number = None  # Seconds written at once; one piece of the model.
    bits: Literal[4, 8] | None = None  # Store keys and values in so many bits.
    # Folder of replies (one file for each video and memory: a stopped run goes on), and report.
    out: Path = Path("out/benchmark")
    options: MemoryOptions = field(default_factory=dict)


def check(config: BenchmarkConfig) -> None:
    """Refuse what makes no sense before anything is read.

    Raises:
      ValueError: naming the option, its value and what it may be.
    """
    named(config.name)
    if config.rule and config.rule not in RULES:
        raise ValueError(f"--rule {config.rule!r} is none of {', '.join(RULES)}.")
    shard_of(config.shard)
    template_of(config.prompt)
    try_folder("out", config.out)
    if config.shard and config.merge:
        raise ValueError("--merge reports all shards; leave --shard out.")
    for folder in config.merge:
        if not (folder / "cells").is_dir():
            raise ValueError(f"--merge {folder}: there are no replies; give the --out of a run.")
    if not config.merge:
        check_model(config)


def check_model(config: BenchmarkConfig) -> None:
    """Refuse options of model and memories that make no sense.

    Raises:
      ValueError: naming the option, its value and what it may be.
    """
    parse_budget(config.budget)
    around = Wrapped(config.bits, config.options.get("bank", {}))
    names = parse_names(config.memory)
    check_around(names, around)
    if config.scorer is not None and "retention" not in names:
        raise ValueError("--scorer has no effect without --memory retention; leave it out.")
    for name in ("chunk_seconds", "piece_seconds"):
        if (value := getattr(config, name)) is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value:g}.")
    refuse_of_checkpoints(config)


def shard_of(text: str) -> tuple[int, int]:
    """Return which part of the videos `I/N` is, and of how many.

    Raises:
      ValueError: if it is none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text or "0/1")
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"--shard is I/N with I from 0 to N-1, for example 0/4; got {text!r}.")
    return int(found[1]), int(found[2])


def found_in(config: BenchmarkConfig) -> Found:
    """Return what the benchmark's files hold, as far as it is asked for.

    Raises:
      ValueError: if the folder is not one of the benchmark, or `--only` names nothing in it.
    """
    found = read(config.name, config.data, config.videos)
    wanted = [name.strip().lower() for name in config.only.split(",") if name.strip()]
    if wanted:
        known = {name.lower(): name for x in found.items for name in (x.kind, x.group) if name}
        if not known:
            raise ValueError(
                f"--only {config.only}: this copy has no kinds or groups; leave it out."
            )
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(
                f"--only {unknown[0]!r} is none of the kinds and groups of this copy: "
                f"{', '.join(known.values())}."
            )
        chosen = lambda x: {x.kind.lower(), x.group.lower()} & set(wanted)
        found.items = [item for item in found.items if chosen(item)]
    return found


def by_video(items: Sequence[Item], shard: str = "") -> dict[Video, list[Item]]:
    """Return the questions of every video of a shard, in order of time."""
    found: dict[str, tuple[Video, list[Item]]] = {}
    for item in items:
        found.setdefault(item.video.id, (item.video, []))[1].append(item)
    number, count = shard_of(shard)
    mine = list(found.values())[number::count]
    end = float("inf")
    return {v: sorted(i, key=lambda x: end if x.asked_at is None else x.asked_at) for v, i in mine}
