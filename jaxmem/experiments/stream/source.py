"""What the main job streams: a given source, or a synthetic video rendered for the occasion."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from jaxmem.data.media.live import LiveReader
from jaxmem.data.media.prefetch import apart
from jaxmem.data.media.source import without_secret
from jaxmem.data.world.files import held_out
from jaxmem.data.world.world import split_seed, world
from jaxmem.experiments.devices import places_of
from jaxmem.experiments.stream.config import StreamConfig, check, media_options, of_checkpoint
from jaxmem.experiments.stream.cost import check_synthetic
from jaxmem.experiments.stream.questions import AT_THE_END, END, Planned
from jaxmem.feeding import open_for
from jaxmem.kv import AUDIO, VISION
from jaxmem.models.adapters import adapted
from jaxmem.models.base import Model
from jaxmem.models.load import load
from jaxmem.models.scorer import with_scorer
from jaxmem.models.tiny.embedded import embedded
from jaxmem.report.maps import Span
from jaxmem.report.numbers import clock

SYNTHETIC_SECONDS = 240


class UnreadableError(Exception):
    """Nothing could be read from the source."""


@dataclass(frozen=True)
class Source:
    """What is streamed, what is known to happen in it, and the questions about it."""

    path: str
    questions: tuple[Planned, ...]
    happened: tuple[Span, ...] = ()
    stop: float | None = None  # seconds to stream; None: all of it
    options: Mapping[str, Any] = field(default_factory=dict)  # of `open_media`

    @property
    def name(self) -> str:
        """Return the path as reports and saves have it: without the password of an address."""
        return without_secret(self.path)


def find_model(config: StreamConfig, console: Console) -> Model:
    """Return the checkpoint of `--model`, or the embedded model.

    Raises:
      ValueError: if an argument makes no sense, or the checkpoint does not load.
    """
    check(config)
    return load_model(config, console)


def load_model(config: StreamConfig, console: Console) -> Model:
    """Return the model of a config of which nothing else counts.

    Raises:
      ValueError: if the checkpoint does not load.
    """
    if config.model is None:
        return _scored(config, adapted(embedded(config.weights), config.adapter))
    begin = time.perf_counter()
    with console.status(f"loading {config.model}"):
        model = load(
            config.model,
            adapter=config.adapter,
            sharding=places_of(config.mesh),
            **of_checkpoint(config),
        )
    console.print(f"loaded {model.name} in {time.perf_counter() - begin:.1f} s", style="dim")
    return _scored(config, model)


def _scored(config: StreamConfig, model: Model) -> Model:
    """Return the model with the weights of `--scorer`."""
    return model if config.scorer is None else with_scorer(model, config.scorer)


def find_source(
    config: StreamConfig,
    asked: tuple[Planned, ...],
    console: Console,
    usual: Sequence[str] = AT_THE_END,
) -> Source:
    """Return the given video, or render a held-out one with its questions.

    The `usual` questions are asked at the end of a given video where the user asks nothing.
    """
    if config.video is not None:
        default = tuple(Planned(END, text) for text in usual)
        return Source(config.video, asked or default, (), config.seconds, media_options(config))
    seconds = int(config.seconds or SYNTHETIC_SECONDS)
    check_synthetic(config, seconds)
    begin = time.perf_counter()
    with console.status(f"rendering a synthetic video of {clock(seconds)} with sound"):
        count = 0 if asked else config.questions
        path, drawn = held_out(config.seed, seconds, config.out, count=count)
    console.print(f"rendered {path} in {time.perf_counter() - begin:.1f} s", style="dim")
    planned = asked or tuple(
        Planned(q.time, q.text, q.answer, q.type, q.evidence_time if q.evidence_time >= 0 else None)
        for q in drawn
    )
    events = world(split_seed("test", config.seed), seconds).events
    happened = [
        Span(float(events.start[i]), float(events.end[i]), kind)
        for kind, field in ((VISION, events.glyph), (AUDIO, events.sound))
        for i in range(len(events.start))
        if field[i] >= 0
    ]
    return Source(str(path), planned, tuple(happened))


def open_source(source: Source, model: Model) -> LiveReader:
    """Open a source the way a model wants it; Ctrl-C is heard meanwhile.

    Raises:
      UnreadableError: if it does not open or holds nothing for the model.
    """
    try:
        more = {"stop": source.stop, **source.options}
        return apart(lambda: open_for(model, source.path, **more), lambda late: late.close())
    except ValueError as error:
        raise UnreadableError(str(error)) from error


def length_of(source: Source, reader: LiveReader) -> float | None:
    """Return how long the stream will be at most, seconds; None where that is unknown."""
    known = [x for x in (source.stop, reader.info.duration) if x is not None]
    return min(known) if known else None
