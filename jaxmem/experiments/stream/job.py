"""One run of the main job, from checked arguments to a report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from jaxmem.data.media.media import MediaReader
from jaxmem.data.media.prefetch import prefetch
from jaxmem.experiments.memories import Budget, Chosen, choose, parse_budget, parse_names
from jaxmem.experiments.stream.config import StreamConfig, check, sampling_of, whole
from jaxmem.experiments.stream.questions import Planned, parse_ask
from jaxmem.experiments.stream.run import Came, Lane, open_lanes, run, warm_up
from jaxmem.experiments.stream.screen import Bar, Screen
from jaxmem.experiments.stream.segments import hold_frames, segments
from jaxmem.experiments.stream.source import Source, UnreadableError, length_of
from jaxmem.experiments.stream.terminal import Typed
from jaxmem.loop import Sampling
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Spec, nbytes
from jaxmem.memory.full import full
from jaxmem.models.base import Model, fit
from jaxmem.report.compilations import count_compilations
from jaxmem.report.numbers import clock, size
from jaxmem.report.results import Compilations, Ending, Happening, Report
from jaxmem.session import model_spec

SEGMENT_SECONDS = 8.0
"""Fed at once, without a wait in between: long enough for little overhead, short for the bar."""


@dataclass(frozen=True)
class Job:
    """Arguments that were checked as far as they can be before anything is read."""

    config: StreamConfig
    model: Model
    names: tuple[str, ...]
    budget: Budget
    questions: tuple[Planned, ...]
    chunk_pieces: int  # pieces per chunk
    chunks: int  # per segment
    sampling: Sampling | None = None  # None: greedily


@dataclass(frozen=True)
class Plan:
    """A job with its open source and the memories that fit it."""

    job: Job
    source: Source
    reader: MediaReader
    length: float | None  # seconds at most
    spec: Spec
    chosen: tuple[Chosen, ...]


@dataclass(frozen=True)
class Done:
    """A finished run: its report (results are collected later), and lanes that can be asked."""

    job: Job
    report: Report
    lanes: tuple[Lane, ...]
    source: Source


def prepare(config: StreamConfig, model: Model) -> Job:
    """Check everything that can be checked before anything is read or rendered.

    Raises:
      ValueError: for an argument that makes no sense, or a question with unknown words.
    """
    check(config)
    names = parse_names(config.compare) if config.compare else (config.memory,)
    planned = sorted((parse_ask(text) for text in config.ask), key=lambda question: question.time)
    for question in planned:
        model.tokenize(question.text)
    media = model.media
    if config.fps is not None and config.model is None and config.fps > media.fps:
        raise ValueError(
            f"--fps {config.fps:g} is more than the {media.fps:g} pictures a second that "
            f"{model.name} takes; leave it out, or give less."
        )
    chunk_seconds = config.chunk_seconds or media.piece_seconds
    return Job(
        config=config,
        model=model,
        names=names,
        budget=parse_budget(config.budget),
        questions=tuple(planned),
        chunk_pieces=whole("chunk-seconds", chunk_seconds, media.piece_seconds),
        chunks=max(1, round(SEGMENT_SECONDS / chunk_seconds)),
        sampling=sampling_of(config, model.sampling),
    )


def plan(job: Job, source: Source, reader: MediaReader) -> Plan:
    """Set up the memories for an open source.

    Raises:
      ValueError: if one cannot be set up within the budget.
    """
    job = replace(job, model=fit(job.model, reader.info.size))
    model, piece = job.model, job.model.media.piece_seconds
    length = length_of(source, reader)
    spec = model_spec(model, job.chunk_pieces * model.tokens_per_piece)
    most = None if length is None else math.ceil(length / piece + 1) * model.tokens_per_piece
    rope, options = model.decoder.rope, job.config.memories
    chosen = choose(job.names, options, job.budget, spec, rope, most, model)
    return Plan(job, source, reader, length, spec, tuple(chosen))


def perform(plan: Plan, console: Console, typed: Typed | None = None) -> Done:
    """Stream, ask, and print what happens.

    Args:
      plan: what to stream through what.
      console: to print to.
      typed: questions from the terminal.

    Raises:
      UnreadableError: if the source holds nothing.
    """
    job, model, reader, questions = plan.job, plan.job.model, plan.reader, plan.source.questions
    names = ", ".join(f"{c.name} ({size(footprint(c.memory, c.spec).device)})" for c in plan.chosen)
    console.print(f"streaming {plan.source.path} through {model.name} with {names}", markup=False)
    if job.sampling is not None:
        console.print(f"answers are drawn: {drawn(job)}", style="dim")
    given = job.config.model is not None  # loaded at --fps
    pieces = reader
    if job.config.fps is not None and not given:
        pieces = hold_frames(reader, job.config.fps)
    ready = segments(
        pieces,
        model,
        chunk_pieces=job.chunk_pieces,
        chunks=job.chunks,
        times=[question.time for question in questions],
    )
    with count_compilations() as counted, prefetch(ready) as ahead:
        lanes = open_lanes(model, plan.chosen, job.sampling, job.config.seed)
        with console.status("compiling"):
            warm_up(
                model,
                lanes,
                questions,
                size=reader.info.size,
                chunk_pieces=job.chunk_pieces,
                chunks=job.chunks,
            )
        before = (counted.count, counted.seconds)
        begin = time.perf_counter()
        screen = screen_of(job, console, typed)
        with Bar(screen) as bar:
            came = run(
                model,
                lanes,
                ahead,
                questions,
                moved=_mover(bar, plan.length, begin),
                told=screen.told,
                refused=screen.refused,
                grows=None if job.config.json else screen.grows,
                typed=list if typed is None else typed.taken,
            )
        wall = time.perf_counter() - begin
    if not came.pieces:
        reason = reader.end.reason if reader.end else "interrupted before the first piece"
        raise UnreadableError(f"{plan.source.path}: nothing was read: {reason}.")
    # The clock leaves one number free for every chunk (`models.step`).
    tokens = int(lanes[0].carry.clock) - came.chunks
    report = Report(
        model=model.name,
        note=model.note,
        source=plan.source.path,
        seconds=came.time,
        chunk_seconds=job.chunk_pieces * model.media.piece_seconds,
        tokens=tokens,
        full_bytes=nbytes(full(tokens), plan.spec),
        wall_seconds=wall,
        compilations=Compilations(*before, counted.count - before[0]),
        end=_ending(came, reader),
        results=(),
        events=tuple(Happening(e.time, e.kind, e.message) for e in reader.events),
        unasked=len(questions) + came.typed - len(lanes[0].answers),
        config=_plain(asdict(job.config)),
    )
    return Done(job, report, tuple(lanes), plan.source)


def screen_of(job: Job, console: Console, typed: Typed | None) -> Screen:
    """Return what shows a job's answers, and what is typed meanwhile."""
    typing = (lambda: "") if typed is None else (lambda: typed.unfinished)
    return Screen(console, job.names, typing)


def drawn(job: Job) -> str:
    """Return in words how a job's answers are drawn."""
    if job.sampling is None:
        return "greedily"
    found = job.sampling
    more = f", top-k {found.top_k}" if found.top_k else ""
    if found.penalises:
        more += f", repetition penalty {found.repetition_penalty:g}"
    return f"temperature {found.temperature:g}, top-p {found.top_p:g}{more}, seed {job.config.seed}"


def _ending(came: Came, reader: MediaReader) -> Ending:
    if came.interrupted or reader.end is None:
        return Ending(came.time, "interrupted by the user", "interrupted")
    return Ending(reader.end.time, reader.end.reason, reader.end.kind)


def _plain(config: dict) -> dict:
    return {k: str(v) if isinstance(v, Path) else v for k, v in config.items()}


def _mover(bar: Progress, length: float | None, begin: float) -> Callable[[float], None]:
    """Return what moves the bar to a stream time."""
    task = bar.add_task("", total=length, at=clock(0), speed="")

    def moved(at: float) -> None:
        speed = at / (time.perf_counter() - begin)
        bar.update(task, completed=at, at=clock(at), speed=f"{speed:.1f}x real time")

    return moved


__all__ = ["Done", "Job", "Plan", "perform", "plan", "prepare", "screen_of"]
