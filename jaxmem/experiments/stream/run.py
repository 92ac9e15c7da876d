"""Stream once through one or more memories, ask on the way, and collect plain results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from jaxmem.data.media.prefetch import Prefetch
from jaxmem.decoder.program import layers_of
from jaxmem.experiments.memories import PROBES, Chosen
from jaxmem.experiments.stream.interrupt import interruptible
from jaxmem.experiments.stream.lane import Grows, Lane, compile_for, feed, put
from jaxmem.experiments.stream.questions import Planned
from jaxmem.experiments.stream.segments import Segment, blank, stack
from jaxmem.loop import Program, Sampling, init_carry, make_program, probe_rows
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Embeds, State, slots
from jaxmem.models.base import Model
from jaxmem.report.kept import Kept, count_kinds, kept, nothing_kept
from jaxmem.report.results import Answered, Result, median_and_worst, start_and_end
from jaxmem.session import pinned

Told = Callable[[list[Answered]], None]
"""Called with one answer per lane."""


@dataclass
class Came:
    """How far all lanes have come."""

    pieces: int = 0
    chunks: int = 0  # that were not padding altogether
    time: float = 0.0  # seconds of stream
    typed: int = 0  # questions that were asked from the terminal meanwhile
    interrupted: bool = False


def open_lanes(
    model: Model, chosen: Sequence[Chosen], sampling: Sampling | None = None, seed: int = 0
) -> list[Lane]:
    """Return lanes with empty streams, which answer greedily unless `sampling` is given."""
    lanes = []
    for one in chosen:
        program = make_program(model.decoder, one.memory, one.spec)
        probes = probes_of(model, program, one.name)
        lane = Lane(one, program, init_carry(program), probes, pinned(model, program))
        if sampling is not None:
            lane.sampling, lane.key = sampling, jax.random.key(seed)
        lanes.append(lane)
    return lanes


def probes_of(model: Model, program: Program, name: str) -> Embeds | None:
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
            compile_for(model, lane, model.tokenize(question.text))
        lane.carry, lane.pieces = init_carry(lane.program), 0
        lane.chunk_ms.clear()


def put_typed(
    model: Model,
    lanes: Sequence[Lane],
    text: str,
    now: float,
    *,
    told: Told,
    refused: Callable[[str], None],
    grows: Grows | None = None,
) -> bool:
    """Ask every lane what a user typed at a stream time; return whether the model took it.

    A question with unknown words is `refused` with the model's message.
    """
    try:
        model.tokenize(text)
    except ValueError as error:
        refused(str(error))
        return False
    told([put(model, lane, Planned(now, text), now, grows=grows) for lane in lanes])
    return True


def run(
    model: Model,
    lanes: Sequence[Lane],
    ahead: Prefetch[Segment],
    questions: Sequence[Planned],
    *,
    moved: Callable[[float], None],
    told: Told,
    refused: Callable[[str], None],
    grows: Grows | None = None,
    typed: Callable[[], Sequence[str]] = list,
) -> Came:
    """Feed every segment to every lane and ask what is due, until the media or the user ends it.

    Args:
      model: what streams and answers.
      lanes: warmed up.
      ahead: segments, made on another thread.
      questions: in order of time.
      moved: called with the stream time after every segment.
      told: called with one answer per lane after every question.
      refused: called with the reason where a typed question cannot be asked.
      grows: called while an answer is written, see `put`.
      typed: returns what was typed since it was last called; asked behind every segment.

    Returns:
      How far it came. Questions without a known answer that came too late are asked at the end.
    """
    came, asked = Came(), 0
    each = lanes[0].program.spec.chunk // model.tokens_per_piece  # pieces of a chunk

    def put_all(numbers: Sequence[int]) -> None:
        nonlocal asked
        for number in numbers:
            told([put(model, lane, questions[number], came.time, grows=grows) for lane in lanes])
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
            for text in typed() if came.pieces else ():
                more = {"told": told, "refused": refused, "grows": grows}
                came.typed += put_typed(model, lanes, text, came.time, **more)
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
    return layers_of(lane.program, lane.carry)


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
