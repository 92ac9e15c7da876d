"""`--checkpoint DIR`, `--every` and `--resume DIR`: the main job saves itself, and goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields

from jaxmem import saves
from jaxmem.data.media.reader import MediaReader
from jaxmem.data.media.types import Piece
from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.experiments.stream.config import StreamConfig
from jaxmem.experiments.stream.questions import Planned
from jaxmem.experiments.stream.run import Progress, Stream
from jaxmem.models.base import MediaFormat
from jaxmem.pieces import Heard
from jaxmem.report.results import Answered
from jaxmem.resuming import Checkpoints, check_same, heard_of, held_of, identity, is_live, rest_of
from jaxmem.saving import check_kinds


class Resumed:
    """A saved moment of a run, which another run goes on from."""

    def __init__(self, saved: saves.Saved, decoder: DecoderConfig):
        """Read the streams of a save, to go on with them in a decoder.

        Raises:
          ValueError: if it is damaged, no command line wrote it, or its decoder has other layers.
        """
        if "answers" not in saved.more:
            raise ValueError(
                f"--resume {saved.where}: a session saved that in Python; go on with it there "
                "(Session.restore)."
            )
        self.where, self.more = saved.where, saved.more
        for name in saved.document["parts"]:
            check_kinds(saved.head(name), decoder, saved.where)
        self.parts = {name: saved.part(name) for name in saved.document["parts"]}
        names = {field.name for field in fields(Answered)}
        self.answers = {
            name: [Answered(**{k: v for k, v in one.items() if k in names}) for one in each]
            for name, each in self.more["answers"].items()
        }

    def check(self, names: Sequence[str], source: str) -> None:
        """Refuse to go on with other memories or another source.

        Raises:
          ValueError: naming both.
        """
        if list(names) != list(self.parts):
            raise ValueError(
                f"--resume {self.where}: it holds {', '.join(self.parts)}, not {', '.join(names)}; "
                "name the same memories."
            )
        check_same(self.more["source"], source, f"--resume {self.where}")

    @property
    def progress(self) -> Progress:
        """Return how far the streams had come."""
        return Progress(self.more["pieces"], self.more["time"], self.more["typed"])

    @property
    def heard(self) -> Heard:
        """Return what the next chunk must know of the stream."""
        return heard_of(self._first)

    def rest(
        self, pieces: Iterable[Piece], media: MediaFormat, reader: MediaReader
    ) -> Iterator[Piece]:
        """Yield the pieces of the source that are still to be fed, of the open chunk on."""
        held, live = list(held_of(self._first)), is_live(reader.info, self.more["source"])
        return rest_of(pieces, media, self.heard.pieces + len(held), held, live=live)

    @property
    def _first(self) -> saves.Part:
        """Return one of the streams: all have seen the same."""
        return next(iter(self.parts.values()))

    def questions(self, planned: Sequence[Planned]) -> tuple[Planned, ...]:
        """Return the planned questions that were not answered, none before where it goes on."""
        found = [(x.question, x.wanted_time or x.time) for x in next(iter(self.answers.values()))]
        at = self.heard.pieces * self.more["piece_seconds"]
        left = [q for q in planned if (q.text, q.time) not in found]
        return tuple(q._replace(time=max(q.time, at)) for q in left)

    def take(self, streams: Sequence[Stream]) -> None:
        """Put the saved streams and their answers in place of empty ones.

        Raises:
          ValueError: if another model, memory or options wrote them.
        """
        for one in streams:
            one.session.take(self.parts[one.contestant.name], self.where)
            one.answers[:] = self.answers[one.contestant.name]


def resumed(config: StreamConfig, decoder: DecoderConfig) -> Resumed | None:
    """Return what `--resume` names, for a decoder; None: nothing, the stream begins anew.

    A folder that is saved to as well may be empty: the command that begins is the one that goes on.

    Raises:
      ValueError: if there is nothing to go on with, or it is damaged.
    """
    if config.resume is None:
        return None
    if config.resume == config.checkpoint and not saves.numbered(config.resume):
        return None
    return Resumed(saves.read(config.resume), decoder)


class Saver:
    """Saves all streams of a run at one moment; what cannot be written is noted, once."""

    def __init__(self, config: StreamConfig, source: str, progress: Progress):
        """Save to `--checkpoint`, if there is one.

        Raises:
          ValueError: if that folder holds something else.
        """
        self.source, self.progress, self.failed = source, progress, ""
        self._checkpoints = None
        if config.checkpoint is not None:
            again = config.resume is not None
            more = {"at": progress.time, "again": again}
            self._checkpoints = Checkpoints(config.checkpoint, config.every, **more)

    def __call__(self, streams: Sequence[Stream]) -> str:
        """Save if it is due; return what went wrong, in words, if that is new."""
        if self._checkpoints is None:
            return ""
        before = self.failed
        try:
            if self._checkpoints(
                self.progress.time,
                lambda: {one.contestant.name: self._part(one) for one in streams},
                lambda: self._more(streams),
            ):
                self.failed = ""
        except (OSError, ValueError) as error:
            self.failed = f"the stream could not be saved to {self._checkpoints.path}: {error}"
        return "" if before else self.failed

    def _part(self, one: Stream) -> saves.Part:
        """Return a stream that `Session.restore` and `watch(resume=True)` can go on with, too."""
        part = one.session.part()
        source = identity(self.source) | {"first": 0}
        return part._replace(numbers={**part.numbers, "source": source})

    def _more(self, streams: Sequence[Stream]) -> dict[str, object]:
        return {
            "answers": {one.contestant.name: [asdict(a) for a in one.answers] for one in streams},
            "pieces": self.progress.pieces,
            "time": self.progress.time,
            "typed": self.progress.typed,
            "piece_seconds": streams[0].session.model.media.piece_seconds,
            "source": identity(self.source),
        }
