"""Stream once through one or more sessions, ask on the way, and collect plain results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxmem.data.media.prefetch import Prefetch
from jaxmem.decoder.sampling import Sampling
from jaxmem.experiments.stream.interrupt import Stop
from jaxmem.experiments.stream.questions import END, Planned
from jaxmem.experiments.stream.segments import Segment, stack
from jaxmem.finite import NotFiniteError
from jaxmem.memory.base import FeatureMemory, Spec
from jaxmem.memory.by_name import Contestant
from jaxmem.memory.sizes import slots
from jaxmem.models.base import Model
from jaxmem.pieces import Heard, blank
from jaxmem.replies import Reply
from jaxmem.report.kept import Kept, count_modalities
from jaxmem.report.results import Answered, Result, median_and_worst, start_and_end
from jaxmem.session import Session
from jaxmem.typing import PyTree


@dataclass
class Stream:
    """One contestant's session, and what it has done."""

    contestant: Contestant
    session: Session
    chunk_ms: list[float] = field(default_factory=list)  # per segment: time of one of its chunks
    answers: list[Answered] = field(default_factory=list)
    compiled: set[int] = field(default_factory=set)  # question buckets


class Moved(NamedTuple):
    """The stream has come to a time, in seconds."""

    time: float


class Part(NamedTuple):
    """New text of an answer that is being written."""

    memory: str
    question: str
    text: str


class Asked(NamedTuple):
    """A question was answered, once for each stream."""

    answers: list[Answered]


class Refused(NamedTuple):
    """A typed question cannot be asked."""

    reason: str


Happened = Moved | Part | Asked | Refused


@dataclass
class Progress:
    """How far all streams have come."""

    pieces: int = 0
    time: float = 0.0  # seconds of stream
    typed: int = 0  # questions that were asked from the terminal meanwhile
    interrupted: bool = False
    broken: str = ""  # why no answer can be given any more


def open_streams(
    model: Model,
    contestants: Sequence[Contestant],
    spec: Spec,
    *,
    chunk_pieces: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    meshes: Sequence[Mesh | None] | None = None,
) -> list[Stream]:
    """Return empty streams, which answer greedily unless `sampling` is given.

    `meshes` are the devices of each; None: the default one.
    """
    drawn = {} if sampling is None else {"sampling": sampling, "key": jax.random.key(seed)}
    more = {"chunk_pieces": chunk_pieces, "spec": spec} | drawn
    pairs = zip(contestants, meshes or [None] * len(contestants), strict=True)
    return [Stream(one, Session(model, one.memory, mesh=mesh, **more)) for one, mesh in pairs]


def warm_up(
    streams: Sequence[Stream], questions: Sequence[Planned], size: tuple[int, int], chunks: int
) -> None:
    """Compile everything the stream will run; nothing is run.

    Args:
      streams: of one model.
      questions: that will be asked; one program per bucket of lengths.
      size: (h, w) of the frames.
      chunks: per whole segment; a segment that is cut comes chunk by chunk.
    """
    model, chunk_pieces = streams[0].session.model, streams[0].session.chunk_pieces
    padding = blank(model, size, chunk_pieces)
    for one in streams:
        for count in {1, chunks}:
            one.session.rehearse_chunks(stack([padding] * count))
        if chunk_pieces > 1:  # a question inside a chunk is asked from a branch
            one.session.rehearse_chunks(stack([padding]), open=True)
        for question in questions:
            compile_for(one, question.text)


def feed(one: Stream, inputs: PyTree, heard: Heard) -> None:
    """Advance a stream by one segment and note the time per chunk."""
    chunks = jax.tree.leaves(inputs)[0].shape[0]
    begin = time.perf_counter()
    one.session.write(inputs, heard)
    # One wait per segment, for the clock and so that decoding ahead stays bounded.
    jax.block_until_ready(one.session.carry)
    one.chunk_ms.append((time.perf_counter() - begin) / chunks * 1e3)


def put(one: Stream, question: Planned, now: float) -> Iterator[Part]:
    """Ask a question at stream time `now`, yield its text as it is written; note the answer."""
    compile_for(one, question.text)
    session, model = one.session, one.session.model
    if model.max_new == 1:
        reply = session.ask(question.text)
    else:
        parts = session.answer(question.text)
        reply = None
        while reply is None:
            try:
                yield Part(one.contestant.name, question.text, next(parts))
            except StopIteration as end:
                reply = end.value
    assert isinstance(reply, Reply)
    late = question.time != END and question.time >= now + model.media.piece_seconds
    one.answers.append(
        Answered(
            time=now if late or question.time == END else question.time,
            question=question.text,
            answer=reply.text,
            first_token_ms=reply.first_seconds * 1e3,
            truth=question.truth,
            type=question.type,
            evidence_time=question.evidence_time,
            wanted_time=question.time if late else None,
        )
    )


def compile_for(one: Stream, question: str) -> None:
    """Compile for a question's bucket, so that no measured time holds a compilation."""
    bucket = one.session.buckets(question)
    if bucket not in one.compiled:
        one.session.rehearse(question)
        one.compiled.add(bucket)


def put_all(streams: Sequence[Stream], question: Planned, now: float) -> Iterator[Happened]:
    """Ask every stream a question."""
    try:
        for one in streams:
            yield from put(one, question, now)
    except NotFiniteError:  # a question is answered by all or by none
        whole = min(len(one.answers) for one in streams)
        for one in streams:
            del one.answers[whole:]
        raise
    yield Asked([one.answers[-1] for one in streams])


def put_typed(streams: Sequence[Stream], text: str, now: float) -> Iterator[Happened]:
    """Ask every stream what a user typed; refuse it with the model's message if it must be."""
    try:
        streams[0].session.model.tokenize(text)
    except ValueError as error:
        yield Refused(str(error))
        return
    yield from put_all(streams, Planned(now, text), now)


def run(
    streams: Sequence[Stream],
    ahead: Prefetch[Segment],
    questions: Sequence[Planned],
    progress: Progress,
    stop: Stop,
    *,
    typed: Callable[[], Sequence[str]] = list,
    ask: Callable[[Sequence[Stream], Planned, float], Iterator[Happened]] = put_all,
) -> Iterator[Happened]:
    """Feed every segment to every stream and ask what is due, until the media or the user ends it.

    Questions (in order of time) without a known answer that came too late are asked at the end.
    `progress` is kept up to date; `typed` returns what was typed since it was last called; `ask`
    puts a question to the streams at a time.
    """
    asked = 0
    while not stop.wanted and (segment := stop.next(ahead)) is not None:
        stop.streamed = True
        for one in streams:
            if segment.inputs is not None:
                feed(one, segment.inputs, segment.heard)
            one.session.hold(segment.open)
        if segment.pieces:
            progress.pieces, progress.time = segment.pieces, segment.time
            yield Moved(progress.time)
        for number in segment.due:
            yield from ask(streams, questions[number], progress.time)
            asked = number + 1
        for text in typed() if progress.pieces else ():
            for happened in put_typed(streams, text, progress.time):
                progress.typed += isinstance(happened, Asked)
                yield happened
    progress.interrupted = stop.wanted
    if not progress.pieces:
        return
    soon = progress.time + streams[0].session.model.media.piece_seconds
    for question in questions[asked:]:
        # A known answer is right at its own time only.
        if question.truth is None or question.time < soon:
            yield from ask(streams, question, progress.time)


def result_of(one: Stream, held: Sequence[Kept]) -> Result:
    """Return what a stream did as plain data."""
    contestant, session = one.contestant, one.session
    bytes_, features = session.footprint, isinstance(contestant.memory, FeatureMemory)
    return Result(
        memory=contestant.name,
        options=contestant.options,
        reference=contestant.reference,
        slots=() if features else slots(contestant.memory, session.spec),
        kept=count_modalities(held),
        nbytes=bytes_.device,
        host_nbytes=bytes_.host,
        state_nbytes=session.spec.state_bytes,
        chunk_ms=start_and_end(one.chunk_ms),
        first_token_ms=median_and_worst([a.first_token_ms for a in one.answers]),
        answers=tuple(one.answers),
    )
