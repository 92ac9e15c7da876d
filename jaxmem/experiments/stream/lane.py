"""One memory's stream in the main job: how it is fed and asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxmem.experiments.memories import Chosen
from jaxmem.experiments.stream.questions import END, Planned
from jaxmem.kv import KV
from jaxmem.loop import Carry, Program, Sampling, ask, bucket, stream
from jaxmem.memory.base import Embeds
from jaxmem.models.base import Model, said_by
from jaxmem.models.text_streamer import Growing
from jaxmem.report.results import Answered
from jaxmem.session import asked_rows, write_answer
from jaxmem.typing import Array, PyTree

Grows = Callable[[str, str, str], None]
"""Called with a memory's name, a question, and a new part of the answer that is being written."""


@dataclass
class Lane:
    """One memory's stream."""

    chosen: Chosen
    program: Program
    carry: Carry
    probes: Embeds | None = None  # for memories that read them
    prefix: KV | None = None  # text in front of the stream
    sampling: Sampling | None = None  # None: greedily
    key: Array | None = None  # of all answers, with `sampling`
    chunk_ms: list[float] = field(default_factory=list)  # per segment: time of one of its chunks
    answers: list[Answered] = field(default_factory=list)
    warm: set[int] = field(default_factory=set)  # question buckets that are compiled
    pieces: int = 0  # real ones that were fed


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


def put(
    model: Model, lane: Lane, question: Planned, now: float, *, grows: Grows | None = None
) -> Answered:
    """Ask a lane a question, note the answer and return it.

    Args:
      model: that answers.
      lane: to ask.
      question: to put.
      now: stream time, seconds.
      grows: called while an answer of several tokens is written.
    """
    ids = model.tokenize(question.text)
    compile_for(model, lane, ids)
    said = lambda part: grows and grows(lane.chosen.name, question.text, part)
    answer, seconds = _write(model, lane, ids, Growing(model.detokenize, said))
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


def compile_for(model: Model, lane: Lane, ids: np.ndarray) -> None:
    """Compile for a question's bucket, so that no measured time holds a compilation."""
    if bucket(len(ids)) not in lane.warm:
        _write(model, lane, ids)
        lane.warm.add(bucket(len(ids)))


def _write(
    model: Model, lane: Lane, ids: np.ndarray, growing: Growing | None = None
) -> tuple[np.ndarray, float]:
    """Return an answer's tokens, and the seconds to the first of them."""
    times = [time.perf_counter()]
    rows = asked_rows(model, lane.program, ids, lane.pieces)
    key = None if lane.key is None else jax.random.fold_in(lane.key, len(lane.answers))
    more = {"prefix": lane.prefix, "sampling": lane.sampling, "key": key}
    more["said"] = said_by(model, ids, lane.sampling)
    if model.max_new == 1:
        answer = ask(model.params, lane.carry, rows, program=lane.program, end=model.end, **more)
        said = np.asarray(answer.ids)[: int(answer.length)]
        return said, time.perf_counter() - times[0]

    def seen(ids: np.ndarray, done: bool) -> None:
        times.append(time.perf_counter())
        if growing is not None:
            growing(ids, done)

    said, _ = write_answer(model, lane.program, lane.carry, rows, seen=seen, **more)
    return said, times[1] - times[0]
