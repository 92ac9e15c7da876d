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
    """One question and what came back."""

    time: float  # of the stream, at which it was asked, seconds
    question: str  # as it was put
    answer: str  # the model's words
    first_token_ms: float  # from the question to its first token, compilation excluded
    truth: str | None = None  # the right answer, where it is known
    type: str | None = None  # kind of question, where it is known
    evidence_time: float | None = None  # when what is asked about ended, s; None: unknown or never
    wanted_time: float | None = None  # when it was to be asked, if the stream ended before that, s

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

    @classmethod
    def of(cls, right: int, asked: int) -> Accuracy:
        """Return the share of `right` answers among `asked`, at least one."""
        return cls(right, asked, right / asked, *wilson(right, asked))


@dataclass(frozen=True)
class Result:
    """What one memory did on the stream."""

    memory: str  # its name
    options: dict[str, Any]  # how it was set
    reference: bool  # it holds the whole stream, whatever the others may hold
    slots: tuple[int, ...]  # of every layer that attends; empty: none does, or features are kept
    kept: dict[str, int]  # tokens held at the end by kind, all layers together
    nbytes: int  # held on the device at rest, which never change
    # Median time of one chunk at the start and at the end of the stream, measured over segments of
    # several chunks; equal where there was one segment only.
    chunk_ms: tuple[float, float] | None
    first_token_ms: tuple[float, float] | None  # median and worst; None: nothing asked
    answers: tuple[Answered, ...]  # in order of time
    host_nbytes: int = 0  # of its bank in host memory
    state_nbytes: int = 0  # of `nbytes`: held by the layers with a state, whatever the memory

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
    """Where and why it ended.

    kind: "end", "stop", "damaged", "stalled", "interrupted" or "broken" (no answer is possible).
    """

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
    """One stream through one or more memories."""

    model: str  # its name
    note: str  # what a reader should know about the model
    source: str  # what was streamed
    seconds: float  # how much of it
    chunk_seconds: float  # written at once
    tokens: int  # written to every layer
    full_bytes: int  # what keys and values of all of them would need
    wall_seconds: float  # from the first chunk to the last answer
    compilations: Compilations  # what XLA compiled
    end: Ending  # where and why the stream ended
    results: tuple[Result, ...]  # one for each memory
    events: tuple[Happening, ...] = ()  # what happened to the media on the way
    unasked: int = 0  # questions with a known answer that the stream ended before
    config: dict[str, Any] = field(default_factory=dict)  # how the run was set
    files: dict[str, str] = field(default_factory=dict)  # what was written, by what it shows

    @property
    def speed(self) -> float:
        """Return seconds of stream per second of wall time."""
        return self.seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0


def accuracy(answers: Sequence[Answered]) -> Accuracy | None:
    """Return the share of right answers among those whose truth is known; None: there are none."""
    judged = [a.right for a in answers if a.right is not None]
    if not judged:
        return None
    return Accuracy.of(sum(judged), len(judged))


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
