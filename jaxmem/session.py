"""`Session`: one live stream of one model through one memory, for notebooks, commands and servers.

It reads media, buffers pieces into chunks, feeds them to the pure loop (`feeding`), and asks.
Everything it holds is reachable: `session.carry` is the live state, a plain pytree.

    session = Session(load("tiny"), OmniMem(96)).watch("talk.mp4")
    print(session.ask("what was the last shape?").text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmem import saves, saving
from jaxmem.decoder.placing import gathered
from jaxmem.decoder.program import layers_of
from jaxmem.feeding import Event
from jaxmem.loop import advance, branch, stream
from jaxmem.memory.bank.bank import Footprint, footprint
from jaxmem.memory.base import AnyMemory, State
from jaxmem.memory.sizes import stream_nbytes
from jaxmem.models.base import Model
from jaxmem.pieces import PieceLike
from jaxmem.replies import Asking
from jaxmem.report.kept import Kept, kept_by
from jaxmem.resuming import (
    EVERY,
    Checkpoints,
    check_same,
    heard_of,
    held_of,
    identity,
    is_live,
    rest_of,
)
from jaxmem.typing import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Session(Asking):
    """One live stream of one model through one memory.

    It makes the prefix, the probes and the bank that model and memory ask for. It may be fed on one
    thread and asked on another.
    """

    # Watching.

    def watch(
        self,
        source: str | Path | Iterable[PieceLike],
        *,
        resume: bool = False,
        checkpoint: str | Path | None = None,
        every: float = EVERY,
        show: Callable[[PieceLike], None] | None = None,
        **options: Any,
    ) -> Session:
        """Stream a source to its end; return self.

        Args:
          source: file, address or device that PyAV opens, in the model's format; or pieces.
          resume: go on after what a restored session has seen of the same source and options. A
            file is read again up to there; a live source goes on with what comes now.
          checkpoint: folder that the session saves itself to, for `restore`.
          every: seconds of stream between two saves.
          show: called with every piece after it was fed, such as a `serve.notebook.LiveView`.
          options: of `jaxmem.data.media.media.open_media`, for example `stop=60.0`.

        Raises:
          ValueError: if the source does not open, holds nothing that the model sees or hears, or is
            not the one to go on with, or `checkpoint` holds another stream.
          OSError: if the session cannot be saved; what was saved before stays.
        """
        saver = None
        if checkpoint is not None:
            saver = Checkpoints(checkpoint, every, at=self.seconds, again=resume)
        if not isinstance(source, str | Path):
            self._watch(source, saver, show)
            return self
        if resume:
            check_same(self._source, source, "this session")
        else:
            self._source = identity(source) | {"first": self.pieces}
        fed = self.pieces - (self._source or {})["first"]
        with self.open(source, **options) as reader:
            media = self.model.media
            live = is_live(reader.info, self._source or {})
            self._watch(rest_of(reader, media, fed, live=live) if fed else reader, saver, show)
            self._events += [Event(e.time, e.kind, e.message) for e in reader.events]
        return self

    def _watch(
        self,
        pieces: Iterable[PieceLike],
        saver: Checkpoints | None,
        show: Callable[[PieceLike], None] | None,
    ) -> None:
        for piece in pieces:
            self.feed(piece)
            if show is not None:
                show(piece)
            if saver is not None:
                with self._lock:
                    saver(self.seconds, lambda: {"stream": self.part()})
        self.flush()

    def rehearse_chunks(self, inputs: PyTree, *, open: bool = False) -> None:
        """Compile what writing K chunks will run; nothing is run.

        Args:
          inputs: of K chunks, stacked on a leading axis; their values do not matter.
          open: compile what a question inside a chunk runs, with K = 1.
        """
        program, bound = self._need()
        (stream if open else advance).lower(bound, self.carry, inputs, program=program).compile()

    # Looking.

    def layers(self) -> list[State]:
        """Return each layer's slots, for maps and reports; none for a memory of features.

        They are a copy: the stream may go on meanwhile.
        """
        with self._lock:
            carry = gathered(self.mesh, self.carry._replace(bank=None))
            return layers_of(self.program, branch(carry))

    @property
    def nbytes(self) -> int:
        """Return the bytes of the memory, and of layers with a state; they never change."""
        return stream_nbytes(self.memory, self.spec)

    @property
    def footprint(self) -> Footprint:
        """Return the bytes held on the device and in host memory, bank included."""
        return footprint(self.memory, self.spec)

    def kept(self, seconds: float | None = None) -> list[Kept]:
        """Return times and modalities of what every layer that attends holds; nothing of features.

        Where no layer attends that is one layer with nothing in it.

        Args:
          seconds: length of the stream; None: as the session counts it.
        """
        length = self.seconds if seconds is None else seconds
        return kept_by(self.layers(), self.model, self.spec, seconds=length)

    def memory_map(self) -> Figure:
        """Return a figure of what every layer holds, over the time of the stream."""
        from jaxmem.report.maps import memory_map

        title = f"{self.memory.name}: what is held after {self.seconds:g} s"
        return memory_map(self.kept(), seconds=self.seconds, title=title)

    # Keeping.

    def save(self, path: str | Path, *, replace: bool = False, keep: int = saves.KEPT) -> None:
        """Write the whole stream to the folder `path`, all of it or nothing.

        Args:
          path: of the folder.
          replace: whether `path` may hold saved streams; the new one is what `restore` returns.
          keep: how many saves stay, the new one included.

        Raises:
          ValueError: if there is something at `path` that is not to be replaced.
          OSError: if it cannot be written; what was saved before stays.
        """
        with self._lock:
            saves.write(path, {"stream": self.part()}, replace, keep)

    def part(self) -> saves.Part:
        """Return the whole stream as it is saved, for `jaxmem.saves.write`."""
        with self._lock:
            host = {"past": self.preprocessor.heard.past}
            for i, piece in enumerate(self._held):
                host |= {f"frames_{i}": piece.frames, f"samples_{i}": piece.samples}
            size = getattr(self.model.media, "size", None)
            numbers = {
                "pieces": self.preprocessor.heard.pieces,
                "open": len(self._held),
                "answers": self._answers,
                "dialogue": self.dialogue,
                "chunk_pieces": self.chunk_pieces,
                "events": self._events,
                "short": self._short,
                "size": size if isinstance(size, tuple) else None,
                "source": self._source,
            }
            if self.made is None:
                self.made = saving.made_by(self.program, self.model.params)
            return saving.part_of(self.carry, made=self.made, host=host, numbers=numbers)

    @classmethod
    def restore(
        cls,
        path: str | Path,
        model: Model,
        memory: AnyMemory,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Session:
        """Return the stream that was saved last at `path`, to go on as if nothing had happened.

        Args:
          path: folder written by `save`, or by the command line's `--checkpoint`; or one save in
            it.
          model: the model that it was saved with.
          memory: the memory that it was saved with.
          name: of the memory, where a command line saved several side by side.
          options: of `Session`.

        Raises:
          ValueError: if there is nothing at `path`, it is damaged (the save before it is offered),
            or another model, memory or options wrote it.
        """
        saved = saves.read(path)
        saving.check_kinds(saved.head(name), model.decoder, saved.where)
        part = saved.part(name)
        if "pieces" not in part.numbers:
            raise ValueError(
                f"the stream at {saved.where} was saved without a session: use "
                "jaxmem.restore(path, program)."
            )
        chunk_pieces = options.pop("chunk_pieces", part.numbers["chunk_pieces"])
        session = cls(model, memory, chunk_pieces=chunk_pieces, **options)
        size = part.numbers["size"]
        session._open(None if size is None else tuple(size))
        session.take(part, saved.where)
        return session

    def take(self, part: saves.Part, source: Path) -> None:
        """Go on with a saved stream in place of this one; nothing compiles again.

        Args:
          part: the stream, of a session.
          source: where it was saved, for errors.

        Raises:
          ValueError: if another model, memory or options wrote it.
        """
        with self._lock:
            numbers = part.numbers
            self.carry = saving.carry_of(part, self.program, self.model.params, source)
            held: list[PieceLike] = [*held_of(part)]
            self.preprocessor.heard, self._held = heard_of(part), held
            self._events = [Event(*event) for event in numbers["events"]]
            self._short = [(number, lack) for number, lack in numbers.get("short", ())]
            self._answers, self._source = numbers["answers"], numbers["source"]
            if numbers["dialogue"]:
                self._answers -= 1
                self._note(*numbers["dialogue"])
