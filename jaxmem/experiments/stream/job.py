"""One run of the main job, from checked arguments to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as RichProgress

from jaxmem.data.media.live import LiveReader
from jaxmem.data.media.prefetch import HURRY, prefetch
from jaxmem.data.media.source import without_secret
from jaxmem.decoder.placing import check_mesh
from jaxmem.decoder.sampling import Sampling
from jaxmem.experiments.devices import mesh_of, spread, told
from jaxmem.experiments.parsing import whole_pieces
from jaxmem.experiments.stream.checkpoint import Resumed, Saver, resumed
from jaxmem.experiments.stream.config import StreamConfig, check, sampling_of
from jaxmem.experiments.stream.cost import check_chunk, check_memories, enough_slots
from jaxmem.experiments.stream.interrupt import Stop
from jaxmem.experiments.stream.questions import Planned, parse_ask
from jaxmem.experiments.stream.run import (
    Asked,
    Happened,
    Moved,
    Part,
    Progress,
    Stream,
    open_streams,
    run,
    warm_up,
)
from jaxmem.experiments.stream.screen import Bar, Screen
from jaxmem.experiments.stream.segments import Segment, hold_frames, segments
from jaxmem.experiments.stream.source import Source, UnreadableError, length_of
from jaxmem.experiments.stream.terminal import Terminal
from jaxmem.finite import NotFiniteError
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Spec
from jaxmem.memory.baselines import Full
from jaxmem.memory.by_name import (
    Budget,
    Contestant,
    Wrapped,
    check_around,
    contestants,
    parse_budget,
    parse_names,
)
from jaxmem.models.base import Model, for_frames
from jaxmem.programs import model_spec, stream_tokens
from jaxmem.report.compilations import count_compilations
from jaxmem.report.numbers import clock, size
from jaxmem.report.results import Compilations, Ending, Happening, Report

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
    resumed: Resumed | None = None  # None: an empty stream


@dataclass(frozen=True)
class Plan:
    """A job with its open source and the memories that fit it."""

    job: Job
    source: Source
    reader: LiveReader
    length: float | None  # seconds at most
    spec: Spec
    contestants: tuple[Contestant, ...]


@dataclass(frozen=True)
class Done:
    """A finished run: its report (results are collected later), and streams that can be asked."""

    job: Job
    report: Report
    streams: tuple[Stream, ...]
    source: Source
    unwritten: str = ""  # what could not be written, in words

    @property
    def broken(self) -> str:
        """Return why the run could not answer any more; empty if it could."""
        end = self.report.end
        return end.reason if end.kind == "broken" else ""


def prepare(config: StreamConfig, model: Model) -> Job:
    """Check everything that can be checked before anything is read or rendered.

    Raises:
      ValueError: for an argument that makes no sense, or a question with unknown words.
    """
    check(config)
    names = parse_names(config.compare or config.memory)
    planned = sorted((parse_ask(text) for text in config.ask), key=lambda question: question.time)
    for question in planned:
        model.tokenize(question.text)
    heads = model.decoder.kv_heads if model.decoder.attends else 0
    check_mesh(mesh_of(config.mesh), heads)
    media = model.media
    if config.fps is not None and config.model is None and config.fps > media.fps:
        raise ValueError(
            f"--fps {config.fps:g} is more than the {media.fps:g} pictures a second that "
            f"{model.name} takes; leave it out, or give less."
        )
    chunk_seconds = config.chunk_seconds or media.piece_seconds
    chunk_pieces = whole_pieces("chunk-seconds", chunk_seconds, media.piece_seconds)
    check_chunk(model, chunk_pieces)
    return Job(
        config=config,
        model=model,
        names=names,
        budget=parse_budget(config.budget),
        questions=tuple(planned),
        chunk_pieces=chunk_pieces,
        chunks=max(1, round(SEGMENT_SECONDS / chunk_seconds)),
        sampling=sampling_of(config, model.sampling),
        resumed=resumed(config, model.decoder),
    )


def plan(job: Job, source: Source, reader: LiveReader) -> Plan:
    """Set up the memories for an open source.

    Raises:
      ValueError: if one cannot be set up within the budget.
    """
    job = replace(job, model=for_frames(job.model, reader.info.size))
    if reader.waits:  # what has come is fed at once: seconds to fill a segment are not waited for
        job = replace(job, chunks=1)
    model, config = job.model, job.config
    length = length_of(source, reader)
    if job.resumed is not None:
        job.resumed.check(job.names, source.name)
    if length is not None and length < job.chunks * job.chunk_pieces * model.media.piece_seconds:
        job = replace(job, chunks=1)  # no segment would be whole: one program less to compile
    # A silent video has no audio to keep slots for, whatever the model hears.
    spec = model_spec(model, job.chunk_pieces, audio=reader.info.audio_streams > 0)
    most = None if length is None else stream_tokens(model, length)
    more = {"presets": model.presets, "bits": config.bits}
    chosen = contestants(job.names, config.memories, job.budget, spec, most, **more)
    if most is not None and any(
        one.slots > enough_slots(most) and not one.reference for one in chosen
    ):
        budget = Budget(enough_slots(most), None)  # more would only cost
        chosen = contestants(job.names, config.memories, budget, spec, most, **more)
    mesh = mesh_of(config.mesh)
    check_memories(chosen, spec, config.budget, 1 if mesh is None else mesh.size)
    return Plan(job, source, reader, length, spec, tuple(chosen))


def perform(plan: Plan, console: Console, stop: Stop, typed: Terminal | None = None) -> Done:
    """Stream until the media or `stop` ends it, ask (also what is typed), print what happens.

    Raises:
      UnreadableError: if the source holds nothing.
      KeyboardInterrupt: if it is stopped before anything was streamed.
    """
    job, reader, questions = plan.job, plan.reader, _questions(plan)
    for line in _announced(plan):
        console.print(line, markup=False)
    progress = Progress() if job.resumed is None else job.resumed.progress
    saver = Saver(job.config, plan.source.name, progress)
    with count_compilations() as counted, prefetch(_segments(plan)) as ahead:
        with stop.raising():
            streams = _warm(plan, console)
        if job.resumed is not None:
            job.resumed.take(streams)
        before = (counted.count, counted.seconds)
        begin = time.perf_counter()
        screen = screen_of(job, console, typed)
        taken = list if typed is None else typed.taken
        with Bar(screen) as bar:
            moved = _mover(bar, plan.length, begin)
            try:
                for happened in run(streams, ahead, questions, progress, stop, typed=taken):
                    if isinstance(happened, Moved):
                        moved(happened.time)
                        if trouble := saver(streams):
                            console.print(trouble, style="yellow", markup=False)
                    elif not (job.config.json and isinstance(happened, Part)):
                        shown(screen, happened)
            except NotFiniteError as error:  # what was answered before is reported
                progress.broken = str(error)
        wall = time.perf_counter() - begin
        if progress.interrupted or progress.broken:
            ahead.leave(HURRY)
    if not progress.pieces:
        if progress.interrupted:
            raise KeyboardInterrupt
        reason = reader.end.reason if reader.end else "it gave no piece"
        raise UnreadableError(f"{plan.source.name}: nothing was read: {reason}.")
    compiled = Compilations(*before, counted.count - before[0])
    report = _report(plan, streams, progress, wall, compiled)
    return Done(job, report, tuple(streams), plan.source, saver.failed)


def _announced(plan: Plan) -> list[str]:
    """Return in words what is streamed through what, and how."""
    job, config = plan.job, plan.job.config
    price = lambda one: size(footprint(one.memory, plan.spec).device)
    names = ", ".join(f"{one.name} ({price(one)})" for one in plan.contestants)
    lines = [f"streaming {plan.source.name} through {job.model.name} with {names}"]
    if job.budget.slots is not None and job.budget.slots > plan.contestants[0].slots > 0:
        most = plan.contestants[0].slots
        lines.append(f"--budget {config.budget}: {most} slots hold all of the stream, as taken")
    if (mesh := mesh_of(config.mesh)) is not None:
        lines += told(mesh, job.model)
    lines += check_around(job.names, Wrapped(config.bits, config.memories.get("bank", {})))
    if job.resumed is not None:
        lines.append(f"going on at {clock(job.resumed.progress.time)} ({job.resumed.where})")
    if job.sampling is not None:
        lines.append(f"answers are drawn: {drawn(job.sampling, config.seed)}")
    return lines


def _segments(plan: Plan) -> Iterator[Segment]:
    """Return the source's pieces as segments of preprocessed chunks."""
    job, pieces = plan.job, plan.reader
    if job.config.fps is not None and job.config.model is None:  # a checkpoint is loaded at --fps
        pieces = hold_frames(pieces, job.config.fps)
    times = [question.time for question in _questions(plan)]
    if job.resumed is not None:
        pieces = job.resumed.rest(pieces, job.model.media, plan.reader)
    more = {"chunk_pieces": job.chunk_pieces, "chunks": job.chunks}
    heard = None if job.resumed is None else job.resumed.heard
    return segments(pieces, job.model, times=times, heard=heard, **more)


def _questions(plan: Plan) -> tuple[Planned, ...]:
    """Return the questions that are still to be asked."""
    planned, before = plan.source.questions, plan.job.resumed
    return planned if before is None else before.questions(planned)


def _warm(plan: Plan, console: Console) -> list[Stream]:
    """Return empty streams for which everything is compiled."""
    job = plan.job
    more = {"sampling": job.sampling, "seed": job.config.seed, "chunk_pieces": job.chunk_pieces}
    meshes = spread(mesh_of(job.config.mesh), len(plan.contestants))
    streams = open_streams(job.model, plan.contestants, plan.spec, meshes=meshes, **more)
    with console.status("compiling"):
        warm_up(streams, plan.source.questions, plan.reader.info.size, job.chunks)
    return streams


def _report(
    plan: Plan,
    streams: Sequence[Stream],
    progress: Progress,
    wall: float,
    compiled: Compilations,
) -> Report:
    """Return the report of a run; results are collected when they are written."""
    job, model, reader = plan.job, plan.job.model, plan.reader
    tokens = streams[0].session.tokens
    return Report(
        model=model.name,
        note=model.note,
        source=plan.source.name,
        seconds=progress.time,
        chunk_seconds=job.chunk_pieces * model.media.piece_seconds,
        tokens=tokens,
        full_bytes=footprint(Full(tokens), plan.spec).device,
        wall_seconds=wall,
        compilations=compiled,
        end=_ending(progress, reader),
        results=(),
        events=tuple(Happening(*one[:3]) for one in (*reader.events, *streams[0].session.events)),
        unasked=len(plan.source.questions) + progress.typed - len(streams[0].answers),
        config=_plain(asdict(job.config)),
    )


def shown(screen: Screen, happened: Happened) -> None:
    """Show what happened to a stream."""
    if isinstance(happened, Part):
        screen.wrote(*happened)
    elif isinstance(happened, Asked):
        screen.answered(happened.answers)
    elif not isinstance(happened, Moved):
        screen.refused(happened.reason)


def screen_of(job: Job, console: Console, typed: Terminal | None) -> Screen:
    """Return what shows a job's answers, and what is typed meanwhile."""
    typing = (lambda: "") if typed is None else (lambda: typed.unfinished)
    return Screen(console, job.names, typing)


def drawn(found: Sampling, seed: int) -> str:
    """Return in words how answers are drawn."""
    more = f", top-k {found.top_k}" if found.top_k else ""
    if found.penalises:
        more += f", repetition penalty {found.repetition_penalty:g}"
    return f"temperature {found.temperature:g}, top-p {found.top_p:g}{more}, seed {seed}"


def _ending(progress: Progress, reader: LiveReader) -> Ending:
    if progress.broken:
        return Ending(progress.time, progress.broken, "broken")
    if progress.interrupted or reader.end is None:
        return Ending(progress.time, "interrupted by the user", "interrupted")
    return Ending(reader.end.time, reader.end.reason, reader.end.kind)


def _plain(config: dict[Any, Any]) -> dict[Any, Any]:
    plain = lambda v: str(v) if isinstance(v, Path) else v
    return {k: without_secret(v) if isinstance(v, str) else plain(v) for k, v in config.items()}


def _mover(bar: RichProgress, length: float | None, begin: float) -> Callable[[float], None]:
    """Return what moves the bar to a stream time."""
    task = bar.add_task("", total=length, at=clock(0), speed="")

    def moved(at: float) -> None:
        speed = at / (time.perf_counter() - begin)
        bar.update(task, completed=at, at=clock(at), speed=f"{speed:.1f}x real time")

    return moved
