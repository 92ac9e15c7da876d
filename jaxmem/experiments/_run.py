"""Stream once through one or more memories, ask on the way, and collect plain results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxmem.data.prefetch import Prefetch
from jaxmem.experiments._feed import Segment, blank, stack
from jaxmem.experiments._interrupt import interruptible
from jaxmem.experiments._memories import PROBES, Chosen
from jaxmem.experiments._questions import END, Planned
from jaxmem.memory import pool
from jaxmem.memory.bank import footprint
from jaxmem.memory.base import Rows, State, slots
from jaxmem.models.base import Model
from jaxmem.report.kept import Kept, count_kinds, kept, nothing_kept
from jaxmem.report.results import Answered, Result, median_and_worst, start_and_end
from jaxmem.session import asked_rows, pinned
from jaxmem.stream import (
    Carry,
    Program,
    ask,
    bucket,
    init_carry,
    make_program,
    probe_rows,
    stream,
)
from jaxmem.tokens import Tokens
from jaxmem.typing import PyTree


@dataclass
class Lane:
    """One memory's stream in came."""

    chosen: Chosen
    program: Program
    carry: Carry
    probes: Rows | None = None  # for memories that read them
    prefix: Tokens | None = None  # text in front of the stream
    chunk_ms: list[float] = field(default_factory=list)  # per segment: time of one of its chunks
    answers: list[Answered] = field(default_factory=list)
    warm: set[int] = field(default_factory=set)  # question buckets that are compiled
    pieces: int = 0  # real ones that were fed


@dataclass
class Came:
    """How far all lanes have come."""

    pieces: int = 0
    chunks: int = 0  # that were not padding altogether
    time: float = 0.0  # seconds of stream
    interrupted: bool = False


def open_lanes(model: Model, chosen: Sequence[Chosen]) -> list[Lane]:
    """Return lanes with empty streams."""
    lanes = []
    for one in chosen:
        program = make_program(model.decoder, one.memory, one.spec)
        probes = probes_of(model, program, one.name)
        lanes.append(Lane(one, program, init_carry(program), probes, pinned(model, program)))
    return lanes


def probes_of(model: Model, program: Program, name: str) -> Rows | None:
    """Return the model's own generic questions as the probes of a memory; None if it reads none.

    Raises:
      ValueError: if the model has none.
    """
    count = PROBES.get(name, 0)
    if not count:
        return None
    if not model.probes:
        raise ValueError(
            f"memory {program.memory.name!r} scores by probes, and {model.name} names none: give "
            "its `Model.probes` generic questions."
        )
    prompts = [model.tokenize(model.probes[i % len(model.probes)]) for i in range(count)]
    return probe_rows(model.params, [ids.tolist() for ids in prompts], program=program)


def warm_up(
    model: Model,
    lanes: Sequence[Lane],
    questions: Sequence[Planned],
    *,
    size: tuple[int, int],
    chunk_pieces: int,
    chunks: int,
) -> None:
    """Compile everything the stream will run, on padding, and leave the lanes empty.

    Args:
      model: what streams and answers.
      lanes: to compile for.
      questions: that will be asked; one program per bucket of lengths.
      size: (h, w) of the frames.
      chunk_pieces: pieces per chunk.
      chunks: per segment.
    """
    media = model.media
    frames = (round(media.fps * media.piece_seconds), *size, 3)
    samples = round(media.sample_rate * media.piece_seconds)
    padding = stack([blank(model, frames, samples, chunk_pieces)] * chunks)
    for lane in lanes:
        feed(model, lane, padding)
        for question in questions:
            _prepare(model, lane, model.tokenize(question.text))
        lane.carry, lane.pieces = init_carry(lane.program), 0
        lane.chunk_ms.clear()


def feed(model: Model, lane: Lane, inputs: PyTree, pieces: int = 0) -> None:
    """Advance a lane by one segment, `pieces` of it real, and note the time per chunk."""
    chunks = jax.tree.leaves(inputs)[0].shape[0]
    begin = time.perf_counter()
    lane.carry = stream(
        model.params,
        lane.carry,
        inputs,
        program=lane.program,
        encode=model.encode,
        prefix=lane.prefix,
        probes=lane.probes,
    )
    # One wait per segment, for the clock and so that decoding ahead stays bounded.
    jax.block_until_ready(lane.carry)
    lane.chunk_ms.append((time.perf_counter() - begin) / chunks * 1e3)
    lane.pieces += pieces


def put(model: Model, lane: Lane, question: Planned, now: float) -> Answered:
    """Ask a lane a question, note the answer and return it."""
    ids = model.tokenize(question.text)
    _prepare(model, lane, ids)
    begin = time.perf_counter()
    first = _ask(model, lane, ids, 1)
    seconds = time.perf_counter() - begin
    answer = first if model.max_new == 1 else _ask(model, lane, ids, model.max_new)
    late = question.time != END and question.time >= now + model.media.piece_seconds
    answered = Answered(
        time=now if late or question.time == END else question.time,
        question=question.text,
        answer=model.detokenize(answer),
        first_token_ms=seconds * 1e3,
        truth=question.truth,
        type=question.type,
        evidence_time=question.evidence_time,
        wanted_time=question.time if late else None,
    )
    lane.answers.append(answered)
    return answered


def _prepare(model: Model, lane: Lane, ids: np.ndarray) -> None:
    """Compile for a question's bucket, so that no measured time holds a compilation."""
    if bucket(len(ids)) not in lane.warm:
        for most in {1, model.max_new}:
            _ask(model, lane, ids, most)
        lane.warm.add(bucket(len(ids)))


def _ask(model: Model, lane: Lane, ids: np.ndarray, most: int) -> np.ndarray:
    rows = asked_rows(model, lane.program, ids, lane.pieces)
    answer = ask(
        model.params,
        lane.carry,
        rows,
        program=lane.program,
        max_new=most,
        end=model.end,
        prefix=lane.prefix,
    )
    return np.asarray(answer.ids)[: int(answer.length)]


def run(
    model: Model,
    lanes: Sequence[Lane],
    ahead: Prefetch[Segment],
    questions: Sequence[Planned],
    *,
    moved: Callable[[float], None],
    told: Callable[[list[Answered]], None],
) -> Came:
    """Feed every segment to every lane and ask what is due, until the media or the user ends it.

    Args:
      model: what streams and answers.
      lanes: warmed up.
      ahead: segments, made on another thread.
      questions: in order of time.
      moved: called with the stream time after every segment.
      told: called with one answer per lane after every question.

    Returns:
      How far it came. Questions without a known answer that came too late are asked at the end.
    """
    came, asked = Came(), 0
    each = lanes[0].program.spec.chunk // model.tokens_per_piece  # pieces of a chunk

    def put_all(numbers: Sequence[int]) -> None:
        nonlocal asked
        for number in numbers:
            told([put(model, lane, questions[number], came.time) for lane in lanes])
            asked = number + 1

    with interruptible() as stop:
        while not stop.wanted and (segment := stop.next(ahead)) is not None:
            if segment.inputs is not None:
                for lane in lanes:
                    feed(model, lane, segment.inputs, segment.pieces)
                came.pieces += segment.pieces
                came.chunks += -(-segment.pieces // each)
                came.time = segment.time
                moved(came.time)
            put_all(segment.due)
        came.interrupted = stop.wanted
    if came.pieces:
        rest = range(asked, len(questions))
        soon = came.time + model.media.piece_seconds
        # A known answer is right at its own time only.
        put_all([n for n in rest if questions[n].truth is None or questions[n].time < soon])
    return came


def layers(lane: Lane) -> list[State]:
    """Return each layer's slots and notes; scope "feature" has none."""
    if lane.program.memory.scope == "feature":
        return []
    if lane.program.layout is not None:
        return pool.layers(lane.program.layout, lane.carry.state)
    count = lane.program.spec.layers
    return [jax.tree.map(lambda x, i=i: x[i], lane.carry.state) for i in range(count)]


def kept_by(model: Model, lane: Lane, seconds: float) -> list[Kept]:
    """Return the times and kinds of what every layer holds."""
    ticks = model.ticks_per_second
    if lane.program.memory.scope == "feature":
        return [nothing_kept()] * lane.program.spec.layers
    return kept(
        layers(lane), seconds=seconds, seconds_per_tick=None if ticks is None else 1 / ticks
    )


def result_of(lane: Lane, held: Sequence[Kept]) -> Result:
    """Return what a lane did as plain data."""
    chosen, spec = lane.chosen, lane.program.spec
    bytes_ = footprint(chosen.memory, spec)
    return Result(
        memory=chosen.name,
        options=chosen.options,
        reference=chosen.reference,
        slots=() if chosen.memory.scope == "feature" else slots(chosen.memory, spec),
        kept=count_kinds(held),
        nbytes=bytes_.device,
        host_nbytes=bytes_.host,
        chunk_ms=start_and_end(lane.chunk_ms),
        first_token_ms=median_and_worst([a.first_token_ms for a in lane.answers]),
        answers=tuple(lane.answers),
    )
