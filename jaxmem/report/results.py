"""What a run of a stream is reported as: plain data, written as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from jaxmem.report.numbers import wilson

FORMAT = "jaxmem-stream-report"
VERSION = 1


@dataclass(frozen=True)
class Answered:
    """One question and what came back.

    Attributes:
      time: stream time at which it was asked, seconds.
      question: as it was put.
      answer: the model's words.
      first_token_ms: from the question to its first token, milliseconds, compilation excluded.
      truth: the right answer, where it is known.
      type: kind of question, where it is known.
      evidence_time: when what is asked about ended, seconds; None: unknown or never there.
      wanted_time: when it was to be asked, if the stream ended before that; seconds.
    """

    time: float
    question: str
    answer: str
    first_token_ms: float
    truth: str | None = None
    type: str | None = None
    evidence_time: float | None = None
    wanted_time: float | None = None

    @property
    def right(self) -> bool | None:
        """Return whether the answer is the truth; None where the truth is unknown."""
        return None if self.truth is None else self.answer == self.truth


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % Wilson interval."""

    right: int
    asked: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """What one memory did on the stream.

    Attributes:
      memory: its name.
      options: how it was set.
      reference: it holds the whole stream, whatever the others may hold.
      slots: of every layer; empty where features in front of the decoder are kept.
      kept: tokens held at the end by kind, all layers together.
      nbytes: held on the device at rest, which never change.
      host_nbytes: of its bank in host memory.
      chunk_ms: median time of one chunk at the start and at the end of the stream, milliseconds,
        measured over segments of several chunks; equal where there was one segment only.
      first_token_ms: median and worst time to the first token, milliseconds; None: nothing asked.
      answers: in order of time.
    """

    memory: str
    options: dict[str, Any]
    reference: bool
    slots: tuple[int, ...]
    kept: dict[str, int]
    nbytes: int
    chunk_ms: tuple[float, float] | None
    first_token_ms: tuple[float, float] | None
    answers: tuple[Answered, ...]
    host_nbytes: int = 0

    @property
    def accuracy(self) -> Accuracy | None:
        """Return the share of right answers; None where no truth is known."""
        return accuracy(self.answers)


@dataclass(frozen=True)
class Compilations:
    """Programs compiled before the stream (with the seconds that took) and while it ran."""

    before: int
    before_seconds: float
    streaming: int


@dataclass(frozen=True)
class Ending:
    """Where and why it ended; kind: "end", "stop", "damaged", "stalled" or "interrupted"."""

    time: float
    reason: str
    kind: str


@dataclass(frozen=True)
class Happening:
    """Something worth telling about the media, at a stream time in seconds."""

    time: float
    kind: str
    message: str


@dataclass(frozen=True)
class Report:
    """One stream through one or more memories.

    Attributes:
      model: its name.
      note: what a reader should know about the model.
      source: what was streamed.
      seconds: how much of it.
      chunk_seconds: written at once.
      tokens: written to every layer.
      full_bytes: what keys and values of all of them would need.
      wall_seconds: from the first chunk to the last answer.
      compilations: what XLA compiled.
      end: where and why the stream ended.
      events: what happened to the media on the way.
      unasked: questions with a known answer that the stream ended before.
      results: one for each memory.
      config: how the run was set.
      files: what was written, by what it shows.
    """

    model: str
    note: str
    source: str
    seconds: float
    chunk_seconds: float
    tokens: int
    full_bytes: int
    wall_seconds: float
    compilations: Compilations
    end: Ending
    results: tuple[Result, ...]
    events: tuple[Happening, ...] = ()
    unasked: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Return seconds of stream per second of wall time."""
        return self.seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0


def accuracy(answers: Sequence[Answered]) -> Accuracy | None:
    """Return the share of right answers among those whose truth is known; None: there are none."""
    judged = [a.right for a in answers if a.right is not None]
    if not judged:
        return None
    right, asked = sum(judged), len(judged)
    return Accuracy(right, asked, right / asked, *wilson(right, asked))


def by_type(answers: Sequence[Answered]) -> dict[str, Accuracy]:
    """Return the accuracy of every type of question, in alphabetical order."""
    out = {}
    for name in sorted({a.type for a in answers if a.type is not None}):
        score = accuracy([a for a in answers if a.type == name])
        if score is not None:
            out[name] = score
    return out


def start_and_end(times: Sequence[float], share: float = 0.2) -> tuple[float, float] | None:
    """Return the median of the first and of the last `share` of some times; None: no times."""
    if not times:
        return None
    if len(times) == 1:
        return times[0], times[0]
    n = max(1, min(len(times) // 2, round(len(times) * share)))
    return float(median(times[:n])), float(median(times[-n:]))


def median_and_worst(times: Sequence[float]) -> tuple[float, float] | None:
    """Return median and maximum; None where there are no times."""
    return (float(median(times)), float(max(times))) if times else None


def as_dict(report: Report) -> dict[str, Any]:
    """Return a report as plain data for JSON, with what follows from it (accuracy, speed)."""
    document = {"format": FORMAT, "version": VERSION, **asdict(report), "speed": report.speed}
    for plain, result in zip(document["results"], report.results, strict=True):
        score = result.accuracy
        plain["accuracy"] = None if score is None else asdict(score)
        plain["by_type"] = {name: asdict(a) for name, a in by_type(result.answers).items()}
        for entry, answered in zip(plain["answers"], result.answers, strict=True):
            entry["right"] = answered.right
    return document
