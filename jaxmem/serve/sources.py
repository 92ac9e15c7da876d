"""What a session may read by itself: files, addresses, devices and a demo."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from jaxmem.data.media.events import Event
from jaxmem.data.media.live import LiveReader
from jaxmem.data.media.source import without_secret
from jaxmem.data.media.types import End, Piece
from jaxmem.feeding import open_for
from jaxmem.models.base import Model
from jaxmem.serve.demo_world import DEMO, DemoWorld
from jaxmem.serve.limits import RefusedError, shown

FORMATS = (
    "mov,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,h264,hevc,ivf,m4v,ogg,wav,flac,mp3,aac,"
    "gif,image2,jpeg_pipe,png_pipe,webp_pipe,mjpeg,yuv4mpegpipe,caf,aiff,amr,w64"
)
"""Demuxers of files: none that opens what another file or address names, as playlists do."""
SHOWN = frozenset(
    f".{x}" for x in "mp4 mov m4v mkv webm avi flv ts mts mpg mpeg ogv gif wav mp3 flac m4a".split()
)
"""Endings of the files that clients are told of; others may be named as well."""
MOST_SHOWN = 200
_DEVICE = re.compile(r"(\w+):(?!//)(.+)")


class Reader(Protocol):
    """What `open_media` returns, and what looks like it."""

    @property
    def end(self) -> End | None:
        """Return where and why it ended; None: it has not."""
        ...

    def __iter__(self) -> Iterator[Piece]:
        """Return the pieces that are still to come."""
        ...

    def close(self) -> None:
        """Let go of the source, from any thread."""
        ...


@dataclass(frozen=True)
class Allowed:
    """What clients may have opened.

    Attributes:
      root: folder whose files may be read; None: no file.
      sources: addresses, and devices as FORMAT:NAME (v4l2:/dev/video0). One that ends with "/"
        stands for all addresses that begin with it. Clients name them without the name and the
        password that they hold, and never see these.
    """

    root: Path | None = None
    sources: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return what sessions may see here, in words."""
        devices = [one for one in self.sources if _DEVICE.fullmatch(one)]
        more = {
            "file": self.root is not None,
            "address": len(devices) < len(self.sources),
            "device": bool(devices),
        }
        return ("push", "upload", DEMO, *(name for name, there in more.items() if there))

    def files(self) -> list[str]:
        """Return the first files under the root, as clients name them."""
        if self.root is None:
            return []
        found = (x for x in self.root.rglob("*") if x.suffix.lower() in SHOWN and x.is_file())
        return sorted(x.relative_to(self.root).as_posix() for x in islice(found, MOST_SHOWN))

    def find(self, source: object) -> Source:
        """Return what a client names.

        Raises:
          ValueError: if there is no such file, or it is not allowed.
        """
        if not isinstance(source, str) or not 0 < len(source) <= 4096 or "\0" in source:
            raise RefusedError(f"source must be a file, an address or {DEMO}, got {shown(source)}.")
        if source == DEMO:
            return Source(DEMO, DEMO, DEMO)
        where = self._listed(source)
        if where is None:
            return self._file(source)
        device = _DEVICE.fullmatch(where)
        if device:
            return Source("camera", device[2], where, {"format": device[1]})
        return Source("camera", where, without_secret(where))

    def _listed(self, source: str) -> str | None:
        """Return the address or device that is opened for what a client names; None: it is not."""
        for one in self.sources:
            for known in (one, without_secret(one)):
                if source == known or (known.endswith("/") and source.startswith(known)):
                    return one + source[len(known) :]
        return None

    def _file(self, source: str) -> Source:
        if self.root is None or "://" in source:
            known = "; ".join((*map(without_secret, self.sources), DEMO))
            raise RefusedError(
                f"{shown(without_secret(source))} may not be opened on this server, which takes "
                f"{known}"
                + ("" if self.root is None else " and files under its --root")
                + ": name one of these, or upload the file.",
                "source",
                403,
            )
        root = self.root.resolve()
        path = (root / source).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise RefusedError(
                f"there is no file {shown(source)} under the server's --root: name it from there.",
                "source",
                404,
            )
        return Source("file", str(path), path.relative_to(root).as_posix())


@dataclass(frozen=True)
class Source:
    """Something that can be read.

    Attributes:
      kind: "file", "camera" or "demo".
      where: what is opened.
      name: how clients know it.
      options: of `open_media`.
    """

    kind: str
    where: str
    name: str
    options: Any = None

    def plain(self, lost: str | None = None) -> dict[str, Any]:
        """Return it as clients see it, while it is read; `lost` is why it gives nothing."""
        return {"kind": self.kind, "name": self.name, "over": None, "lost": lost}

    def open(
        self, model: Model, after: int = 0, told: Callable[[Event], None] | None = None
    ) -> Reader:
        """Return its pieces in a model's format, without the first `after` ones.

        Those of a camera are what comes from now on. One that is lost is opened again, for as long
        as that takes.

        Args:
          model: fitted to the size of its frames.
          after: pieces that are left out.
          told: hears what happens to a camera, while it is waited for, too.

        Raises:
          ValueError: if it cannot be opened, or holds sound alone and the model does not hear.
        """
        if self.kind == DEMO:
            return DemoWorld(model.media, after)
        more = dict(self.options or {})
        if self.kind == "file":
            more["options"] = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
            return Rest(open_for(model, self.where, **more), after)
        reader = open_for(model, self.where, reconnect=True, **more)
        if told is not None:
            reader.keep_on(told)
        return reader


def is_live(reader: Reader) -> bool:
    """Return whether a reader gives what happens now, with no end to come to."""
    return isinstance(reader, LiveReader) and reader.info.duration is None


class Rest:
    """A reader without its first pieces: they are read again, so that what follows is the same."""

    def __init__(self, reader: Any, after: int):
        """Leave out the first `after` pieces of a reader."""
        self._reader, self._after = reader, after

    @property
    def end(self) -> End | None:
        """Return where and why it ended."""
        return self._reader.end

    def __iter__(self) -> Iterator[Piece]:
        yield from islice(self._reader, self._after, None)

    def close(self) -> None:
        """Let go of the source."""
        self._reader.close()
