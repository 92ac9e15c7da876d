"""One video of a benchmark through all memories in one pass, its questions put at their times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from jaxmem.data.benchmarks import Item, Video
from jaxmem.data.benchmarks.pictures import Pictures
from jaxmem.data.benchmarks.prompts import poll
from jaxmem.data.media.live import LiveReader
from jaxmem.data.media.prefetch import prefetch
from jaxmem.experiments.evaluate.benchmark_asking import Asking
from jaxmem.experiments.evaluate.benchmark_cells import Cell, lost
from jaxmem.experiments.stream.cost import check_memories
from jaxmem.experiments.stream.interrupt import Stop
from jaxmem.experiments.stream.job import SEGMENT_SECONDS
from jaxmem.experiments.stream.questions import END
from jaxmem.experiments.stream.run import (
    Progress,
    Stream,
    open_streams,
    run,
)
from jaxmem.experiments.stream.segments import segments
from jaxmem.feeding import open_for
from jaxmem.memory.base import Spec
from jaxmem.memory.by_name import Contestant, Options, contestants, parse_budget
from jaxmem.models.base import Model, for_frames
from jaxmem.programs import model_spec, stream_tokens

EVENTS = 20  # of a video that are stored


@dataclass(frozen=True)
class Setup:
    """What is streamed through: the same for all videos.

    Attributes:
      model: what sees and answers.
      names: of the memories.
      budget: of the first one; the others have its bytes.
      options: of the memories.
      bits: that keys and values are stored in; None: as they come.
      chunk_pieces: pieces that are written at once.
      stop: Ctrl-C.
    """

    model: Model
    names: tuple[str, ...]
    budget: str
    options: Options
    bits: int | None
    chunk_pieces: int
    stop: Stop = field(default_factory=Stop)

    @property
    def chunks(self) -> int:
        """Return how many chunks are fed at once."""
        seconds = self.chunk_pieces * self.model.media.piece_seconds
        return max(1, round(SEGMENT_SECONDS / seconds))


class UnwatchableError(Exception):
    """A video that is missing, or of which nothing can be decoded."""


def watch(
    setup: Setup,
    video: Video,
    items: Sequence[Item],
    asked: Mapping[str, str],
    wanted: Sequence[str],
    answered: Callable[[], object],
) -> dict[str, Cell]:
    """Stream a video once, ask at the times of the items, and return a cell for each memory.

    A question sees at least one piece. What comes after the end of the video is asked there.

    Args:
      setup: what is streamed through.
      video: what is watched.
      items: about it, in order of time.
      asked: id of an item -> what it is asked in.
      wanted: names of the memories that take part.
      answered: called when all of them have replied to an item.

    Raises:
      UnwatchableError: if nothing can be seen of the video.
      ValueError: if the memories do not fit the budget.
    """
    with closing(_opened(setup.model, video, items)) as reader:
        model = _fitted(setup.model, reader)
        spec = model_spec(model, setup.chunk_pieces, audio=reader.info.audio_streams > 0)
        chosen, bare = memories_for(setup, model, spec, reader, video.start, wanted)
        cells = {name: {"replies": [], "lost": lost(items, asked, why)} for name, why in bare}
        if not chosen:
            return cells
        streams = open_streams(model, chosen, spec, chunk_pieces=setup.chunk_pieces)
        able, refused = _able(model, items, asked)
        asking = Asking(able, asked, answered)
        planned = asking.planned(video.start + model.media.piece_seconds)
        more: dict[str, Any] = {"chunk_pieces": setup.chunk_pieces, "chunks": setup.chunks}
        pieces = segments(reader, model, times=[one.time for one in planned], **more)
        progress = Progress()
        with prefetch(pieces) as ahead:
            for _ in run(streams, ahead, planned, progress, setup.stop, ask=asking):
                pass
        if not progress.pieces and not setup.stop.wanted:
            reason = reader.end.reason if reader.end else "it gave no piece"
            raise UnwatchableError(f"nothing was decoded: {reason}")
        seen = {
            "seconds": progress.time - video.start,
            "end": _end(reader),
            "events": _told(reader),
        }
    for one in streams:
        cells[one.contestant.name] = seen | _cell(one, asking, asked, refused)
    return cells


def _opened(model: Model, video: Video, items: Sequence[Item]) -> LiveReader | Pictures:
    """Return a reader of a video, up to its last question."""
    if video.path is None:
        raise UnwatchableError(
            f"there is no file {video.name}, or more than one of that name: give --videos FOLDER"
        )
    media = model.media
    times = [max((*x.polls, x.asked_at)) if x.asked_at is not None else END for x in items]
    last = max(times)
    stop = None if last == END else max(last, video.start) + 2 * media.piece_seconds
    limits = {"start": video.start, "stop": stop}
    try:
        if video.path.is_dir() or video.path.suffix == ".npy":
            form = {"fps": media.fps, "piece_seconds": media.piece_seconds, "size": media.size}
            form |= {"sample_rate": media.sample_rate}
            return Pictures(video.path, video.fps or 1.0, **form, **limits)
        return open_for(model, video.path, **limits)
    except (ValueError, OSError) as error:
        raise UnwatchableError(str(error)) from error


def _fitted(model: Model, reader: LiveReader | Pictures) -> Model:
    try:
        return for_frames(model, reader.info.size)
    except ValueError as error:
        raise UnwatchableError(str(error)) from error


def memories_for(
    setup: Setup,
    model: Model,
    spec: Spec,
    reader: LiveReader | Pictures,
    start: float,
    wanted: Sequence[str],
) -> tuple[list[Contestant], list[tuple[str, str]]]:
    """Return the wanted memories within the budget, and why others cannot take part.

    Args:
      setup: with the budget.
      model: fitted to the frames of the video.
      spec: of the streams.
      reader: of the video, for its length.
      start: seconds of the video where the stream begins.
      wanted: names of memories.

    Raises:
      ValueError: if the budget holds no such memory.
      UnwatchableError: if a memory needs the length of the video, which is unknown, or the video is
        so long that the machine does not hold all of them.
    """
    length = reader.info.duration
    most = None if length is None else rounded(stream_tokens(model, max(length - start, 0.0)))
    more = {"presets": model.presets, "bits": setup.bits}
    budget = parse_budget(setup.budget)
    try:
        every = contestants(setup.names, setup.options, budget, spec, most, **more)
    except ValueError as error:
        if most is None:
            raise UnwatchableError(str(error)) from error
        raise
    found, refused = [], []
    for one in every:
        if one.name in wanted:
            try:
                check_memories((one,), spec, setup.budget)
            except ValueError as error:
                refused.append((one.name, str(error)))
            else:
                found.append(one)
    try:
        check_memories(found, spec, setup.budget)
    except ValueError as error:
        raise UnwatchableError(str(error)) from error
    return found, refused


def rounded(tokens: int) -> int:
    """Return a number of tokens rounded up by an eighth at most, so that videos share programs."""
    step = 1 << max(tokens.bit_length() - 4, 0)
    return -(-tokens // step) * step


def _able(
    model: Model, items: Sequence[Item], asked: Mapping[str, str]
) -> tuple[list[Item], list[dict[str, Any]]]:
    """Return the items whose words a model knows, and the others with the reason."""
    able, refused = [], []
    for item in items:
        try:
            for text in (asked[item.id], *((poll(item),) if item.polls else ())):
                model.tokenize(text)
        except ValueError as error:
            refused += lost([item], asked, str(error))
        else:
            able.append(item)
    return able, refused


def _cell(
    one: Stream, asking: Asking, asked: Mapping[str, str], refused: list[dict[str, Any]]
) -> Cell:
    """Return what a stream has replied, and what it holds."""
    name, held = one.contestant.name, one.session.footprint
    replies = asking.replies.get(name, [])
    there = {reply["id"] for reply in replies}
    rest = [item for item in asking.items if item.id not in there]
    return {
        "nbytes": held.device,
        "host_nbytes": held.host,
        "slots": one.contestant.slots,
        "replies": replies,
        "lost": [*refused, *lost(rest, asked, asking.broken.get(name, "the run was interrupted"))],
    }


def _end(reader: LiveReader | Pictures) -> dict[str, Any] | None:
    return None if reader.end is None else reader.end._asdict()


def _told(reader: LiveReader | Pictures) -> list[dict[str, Any]]:
    return [one._asdict() for one in reader.events[:EVENTS]]
