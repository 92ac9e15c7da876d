"""Texts with planted facts, the same for every memory, and the options of `evaluate text`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from jaxmem.data.text import facts, prose
from jaxmem.experiments.memories import MemoryOptions
from jaxmem.models.base import Model

SEVERAL, ONE = "several", "one"
"""Texts with a fact at every depth, and texts with one of these facts alone."""


@dataclass(frozen=True)
class TextConfig:
    """Loss and planted facts of a pretrained text model with every memory, at equal bytes."""

    # Names, comma-separated; none that keeps features. `full` is the reference, without a budget.
    memories: str = (
        "full,recent,streaming_llm,keydiff,snapkv,h2o,tova,knorm,expected_attention,omnimem,"
        "uniform,random"
    )
    model: str = "smollm2"  # With the extra real, or a .gguf file of a Llama.
    tokens: int = 8064  # Of every text; more than the model's context are renumbered.
    chunk: int = 128  # Tokens written at once.
    # Parts of the bytes that the whole text needs.
    shares: tuple[float, ...] = (0.5, 0.25, 0.125, 0.0625)
    # Parts of the slots for the newest tokens, where a memory has `newest`.
    newest: tuple[float, ...] = (0.0, 0.25, 0.5)
    bits: Literal[4, 8] | None = None  # Keys and values in 8 or 4 bits, where a memory takes them.
    # What memories take the tokens for; text: last_copy scores them by --last-copy.text.
    marked: Literal["vision", "text"] = "vision"
    # Text in front of every stream that is never dropped, as a template's is of a video model.
    prompt: str = ""
    # The same texts through kvpress's presses beside ours (extra parity, and kvpress).
    against: Literal["kvpress"] | None = None
    keys: int = 20  # Texts; each has a fact at every depth.
    depths: int = 5  # Evenly spaced; a key each.
    alone: int = 1  # Of the facts of a text so many are also planted and asked alone.
    texts: Path | None = None  # Folder of .txt, .md, .rst; None: Python's own help.
    # Number what is held without gaps; None: where a text is longer than the model's context.
    renumber: bool | None = None
    seed: int = 0  # Of names and keys.
    measured_only: bool = False  # Measure nothing: tables of the texts that are there.
    # Folder of cells (a stopped run goes on where it was) and tables.
    out: Path = Path("out/text")
    options: MemoryOptions = field(default_factory=dict)


class Stream(NamedTuple):
    """A text to be watched."""

    kind: str  # SEVERAL or ONE
    number: int
    text: facts.Planted

    @property
    def name(self) -> str:
        """Name in a cell's file."""
        return f"{self.kind}-{self.number}"


def streams_of(config: TextConfig, model: Model) -> list[Stream]:
    """Return the texts, those with all facts before those with one, the same for every memory.

    Raises:
      ValueError: if a number is out of range, or the texts are too short for the facts.
    """
    if config.seed < 0:
        raise ValueError(f"--seed must not be negative, got {config.seed}.")
    if config.keys < 1 or config.depths < 1 or not 0 <= config.alone <= config.depths:
        raise ValueError(
            "--keys and --depths are at least 1 and --alone at most --depths, got "
            f"{config.keys}, {config.depths} and {config.alone}."
        )
    where = facts.depths(config.depths)
    most = None if config.texts is None else prose.MOST
    paragraphs = prose.paragraphs(prose.documents(config.texts), most)
    out = {SEVERAL: [], ONE: []}
    for number in range(config.keys):
        given = facts.facts(number, where, config.seed)
        first = number * len(paragraphs) // config.keys
        chosen = [given] + [[given[(number + i) % len(given)]] for i in range(config.alone)]
        for i, some in enumerate(chosen):
            text = facts.plant(model.tokenize, paragraphs, first, config.tokens, some)
            kind, name = (ONE, number * config.alone + i - 1) if i else (SEVERAL, number)
            out[kind].append(Stream(kind, name, text))
    return out[SEVERAL] + out[ONE]


def notes(config: TextConfig, streams: Sequence[Stream]) -> list[str]:
    """Return in words what is left out of the user's texts, and where they are repeated."""
    out = [f"left out: {one}" for one in prose.read(config.texts).left_out] if config.texts else []
    most = max(stream.text.rounds for stream in streams)
    if most:
        out.append(
            f"all of the prose is shorter than a text of --tokens {config.tokens}, which has it up "
            f"to {most + 1} times: losses and facts are those of repeated prose. Give more texts, "
            "or fewer tokens."
        )
    return out


def texts_mark(streams: Sequence[Stream]) -> str:
    """Return what tells these texts and questions from others."""
    digest = hashlib.sha256()
    for stream in streams:
        digest.update(stream.text.ids.tobytes())
        for one in stream.text.asked:
            digest.update(one.question.tobytes() + one.answer.tobytes())
    return digest.hexdigest()[:16]
