"""Serve live streams: sessions that are fed and asked over HTTP, WebSocket and a page.

    python -m jaxmem.experiments.serve --demo
    python -m jaxmem.experiments.serve --memory omnimem --budget 64KiB --saves out/sessions
    python -m jaxmem.experiments.serve --model DIR --root videos --source rtsp://camera/live

It needs the extra serve. See docs/serve.md.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxmem.decoder.placing import DATA, weight_places
from jaxmem.experiments.devices import mesh_of, told
from jaxmem.experiments.memories import MemoryOptions, read_options, split_options
from jaxmem.experiments.parsing import parse, refusing, shown, whole_pieces
from jaxmem.experiments.stream.config import (
    Number,
    Whole,
    of_checkpoint,
    refuse_of_checkpoints,
)
from jaxmem.experiments.stream.cost import device_limit
from jaxmem.experiments.stream.interrupt import leave_threads_behind
from jaxmem.memory.omnimem.budgets import parse_bytes
from jaxmem.models.base import Model, for_frames
from jaxmem.models.load import load
from jaxmem.serve.demo_world import DEMO
from jaxmem.serve.engines import REHEARSING, Engines
from jaxmem.serve.lasting import EVERY
from jaxmem.serve.limits import LOCAL, Limits
from jaxmem.serve.parts import check_parts
from jaxmem.serve.reading import SOURCE
from jaxmem.serve.sources import Allowed
from jaxmem.serve.wanting import Wanted, read_wanted

TOKEN = "JAXMEM_TOKEN"
"""Variable of the environment that `--token` is read from: other users see command lines."""
EXTRA = 'the server needs the extra serve: pip install "jaxmem[serve]".'


@dataclass(frozen=True)
class ServeConfig:
    """Serve live streams over HTTP, WebSocket and a page. The guide is docs/serve.md."""

    # Checkpoint: directory or organisation/name on Hugging Face; or what else `jaxmem.load` takes.
    model: str = "tiny"
    adapter: Path | None = None  # of the model
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"  # of a checkpoint
    fps: float = 1.0  # pictures a second that a checkpoint sees
    max_new: int = 128  # tokens of an answer of a checkpoint, at most
    max_pixels: Whole = None  # of a frame of a checkpoint, at most; as the checkpoint says
    piece_seconds: Number = None  # of video-SALMONN: length of a piece (30); it answers sooner
    frame: str = "360x640"  # height x width that pictures are fitted to, if the model takes any
    memory: str = "omnimem"  # of sessions that name none; set it with --NAME.OPTION
    budget: str = "96"  # likewise: slots per layer (96), or bytes over all layers (64KiB)
    chunk_seconds: float | None = None  # written at once; None: one piece of the model
    host: str = "127.0.0.1"  # address that is listened on
    port: int = 8000  # 0: any that is free
    token: str | None = None  # that clients must give; also the variable JAXMEM_TOKEN
    sessions: int = Limits.sessions  # open at once, at most
    lanes: int = 8  # streams of one memory at once
    bytes: str | None = None  # weights, states and steps, at most; None: what the devices have
    mesh: str | None = None  # several devices, as data=2,model=2: streams side by side, heads
    saves: Path | None = (
        None  # folder for sessions: open ones are saved there, and go on from there
    )
    save_every: float = EVERY  # seconds between two saves of an open session
    replica: Annotated[bool, tyro.conf.FlagCreatePairsOff] = (
        False  # one of several behind `jaxmem proxy`, which says what goes on here
    )
    root: Path | None = None  # folder whose files clients may have read
    # Addresses that clients may have read, and devices (v4l2:/dev/video0); one that ends with / is
    # the beginning of addresses.
    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    demo: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # begin with a synthetic stream
    silence: float = Limits.silence  # seconds after which an idle session ends
    grace: float = 10.0  # seconds that answers get to finish when the server ends
    upload: str = "1GiB"  # bytes of an uploaded file, at most
    config: Path | None = None  # Python file whose get_config() gives values to start from
    memories: MemoryOptions = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; return the exit status (0, or 2 for bad arguments)."""
    status = refusing(lambda: serve(configured(sys.argv[1:] if argv is None else argv)))
    leave_threads_behind(status, _working)
    return status


def _working() -> bool:
    """Return whether a thread is inside the compiler or the decoder of media."""
    return any(thread.name in (SOURCE, REHEARSING) for thread in threading.enumerate())


def configured(argv: Sequence[str]) -> ServeConfig:
    """Return what arguments say, checked.

    Raises:
      ValueError: naming the option.
    """
    rest, words = split_options(argv)
    config = parse(ServeConfig, rest, **shown("serve", __doc__))
    _check(config)
    return ServeConfig(**{**vars(config), "memories": read_options(words, config.memories)})


def _check(config: ServeConfig) -> None:
    """Refuse what makes no sense before anything is loaded.

    Raises:
      ValueError: naming the option.
    """
    for name, least in (("sessions", 1), ("lanes", 1), ("port", 0), ("max_new", 1)):
        if getattr(config, name) < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {least}, got {getattr(config, name)}.")
    if config.port > 65_535:
        raise ValueError(f"--port must be at most 65535, got {config.port}.")
    for name in ("silence", "fps", "grace", "save_every", "max_pixels", "piece_seconds"):
        if (value := getattr(config, name)) is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    refuse_of_checkpoints(config)
    if config.root is not None and not config.root.is_dir():
        raise ValueError(f"--root {config.root}: there is no such folder.")
    check_reached(config.host, config.token)
    _size(config.frame)
    parse_bytes(config.upload)
    if config.bytes is not None:
        parse_bytes(config.bytes)
    if (mesh := mesh_of(config.mesh)) is not None:
        check_parts(config.lanes, mesh.shape[DATA])


def check_reached(host: str, token: str | None) -> None:
    """Refuse to let others than this machine in without a token.

    Raises:
      ValueError: naming both options.
    """
    if host not in LOCAL and not (token or os.environ.get(TOKEN)):
        raise ValueError(
            f"--host {host} lets others than this machine in: give them a --token (or {TOKEN} in "
            "the environment), or listen on 127.0.0.1."
        )


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise ValueError(f"--frame is HEIGHTxWIDTH in pixels, as 360x640; got {text!r}.")
    return int(found[1]), int(found[2])


def loaded(config: ServeConfig) -> Model:
    """Return the model, fitted to the size of its frames.

    Raises:
      ValueError: if it does not load.
    """
    more, mesh = of_checkpoint(config), mesh_of(config.mesh)
    if mesh is not None:
        more["sharding"] = weight_places(mesh)
    model = load(config.model, adapter=config.adapter, **more)
    size = model.media.size
    return for_frames(model, size if isinstance(size, tuple) else size(*_size(config.frame)))


def serve(
    config: ServeConfig, began: Callable[[str, Callable[[], None]], None] | None = None
) -> None:
    """Serve until a signal ends it.

    Args:
      config: what is served.
      began: called with the address and a function that does what a signal does; None: a line says
        the address.

    Raises:
      ValueError: if the model, the memory or the address cannot be had.
    """
    try:
        from jaxmem.serve.running import listening, run
    except ImportError as error:
        raise ValueError(f"{EXTRA} ({error})") from error
    from jaxmem.serve.hub import Hub

    limits = Limits(
        sessions=config.sessions, silence=config.silence, upload_bytes=parse_bytes(config.upload)
    )
    with listening(config.host, config.port) as listener:
        model = loaded(config)
        piece, mesh = model.media.piece_seconds, mesh_of(config.mesh)
        room = device_limit()
        if room is not None and mesh is not None:
            room *= mesh.size
        engines = Engines(
            model,
            lanes=config.lanes,
            chunk_pieces=whole_pieces("chunk-seconds", config.chunk_seconds or piece, piece),
            nbytes=room if config.bytes is None else parse_bytes(config.bytes),
            memories=limits.memories,
            rehearse=True,
            mesh=mesh,
        )
        given = {"memory": config.memory, "budget": config.budget}
        options = config.memories.get(config.memory, {})
        usual = read_wanted(given | {"options": options}, Wanted(config.memory, config.budget))
        engine = engines.start(usual)
        engine.rehearse(engines.question, most=1)
        allowed = Allowed(config.root, config.source)
        kept = {"saves": config.saves, "every": config.save_every}
        with Hub(engines, limits, usual=usual, allowed=allowed, **kept) as hub:
            for trouble in [] if config.replica else hub.resume():
                print(trouble, file=sys.stderr)
            if config.demo and not any(one.id == DEMO for one in hub.sessions):
                hub.read(hub.create([usual], DEMO), hub.allowed.find(DEMO))
            host, port = listener.getsockname()[:2]
            where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            devices = [] if mesh is None else told(mesh, engines.model)
            if began is None:
                print(
                    f"{model.name} with {usual.memory} ({usual.budget}; {engine.nbytes:,} bytes a "
                    f"session, {engine.lanes} sessions) on {where}/  {model.note}",
                    *devices,
                    flush=True,
                )
            run(
                hub,
                listener,
                grace=config.grace,
                began=lambda stop: None if began is None else began(where, stop),
                token=config.token or os.environ.get(TOKEN) or None,
                host=config.host,
                replica=config.replica,
            )


if __name__ == "__main__":
    sys.exit(main())
