"""What harnesses ask a model with a memory: videos streamed once each, questions at their times."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from rich.console import Console
from rich.progress import track

from jaxmem.data.benchmarks import Item, Video
from jaxmem.data.question_files import PLACEHOLDER
from jaxmem.experiments.evaluate.benchmark import setup_of
from jaxmem.experiments.evaluate.benchmark_config import BenchmarkConfig, by_video, check_model
from jaxmem.experiments.evaluate.benchmark_watch import (
    Setup,
    UnwatchableError,
    memories_for,
    watch,
)
from jaxmem.experiments.memories import read_options, split_options
from jaxmem.experiments.stream.config import OF_CHECKPOINTS
from jaxmem.experiments.stream.interrupt import Stop
from jaxmem.feeding import open_for
from jaxmem.memory.by_name import parse_names
from jaxmem.memory.options import members, worded
from jaxmem.models.base import for_frames
from jaxmem.programs import model_spec
from jaxmem.session import Session

OPTIONS = ("adapter", "scorer", *OF_CHECKPOINTS, "chunk_seconds", "bits")
"""Of `evaluate benchmark`, which a harness may give too."""


class Question(NamedTuple):
    """A question about a video.

    Attributes:
      video: path of a file.
      text: of the question, as the harness puts it.
      at: seconds of the video when it is asked; None: at its end.
      start: seconds of the video where the stream begins.
    """

    video: str
    text: str
    at: float | None = None
    start: float = 0.0


class Streams:
    """A model with a memory that answers a harness.

    Attributes:
      setup: what videos are streamed through.
    """

    def __init__(self, model: str, memory: str, budget: str, **options: Any):
        """Load the model.

        Args:
          model: as `--model` of `evaluate benchmark`.
          memory: name of one.
          budget: slots per layer, or bytes over all layers.
          options: those in `OPTIONS`, and NAME.OPTION of the memory.

        Raises:
          ValueError: if an option is unknown, or something does not fit.
        """
        dotted = {key: value for key, value in options.items() if "." in key}
        plain: dict[str, Any] = {k: v for k, v in options.items() if "." not in k}
        if unknown := set(plain) - set(OPTIONS):
            raise ValueError(
                f"unknown option {min(unknown)}: give model, memory, budget, {', '.join(OPTIONS)}, "
                "or NAME.OPTION of the memory."
            )
        if len(parse_names(memory)) > 1:
            raise ValueError(f"a harness asks one memory at a time, got memory={memory}.")
        if idle := {key.partition(".")[0] for key in dotted} - {memory, "bank"}:
            raise ValueError(f"{min(idle)}.* has no effect: the memory is {memory}.")
        words = [word for key, value in dotted.items() for word in _words(key, value)]
        if plain.get("scorer") is not None:
            plain["scorer"] = Path(plain["scorer"])
        config = BenchmarkConfig(
            name="", data=Path(), model=model, memory=memory, budget=str(budget),
            options=_options(words), **plain,
        )  # fmt: skip
        check_model(config)
        self.setup = setup_of(config, Console(stderr=True), Stop())
        self._last: tuple[str, Session] | None = None

    def replies(self, questions: Sequence[Question], max_new: int | None = None) -> list[str]:
        """Return a reply to each question, in their order.

        Every video is streamed once, whatever the order of the questions about it. One that cannot
        be watched is warned of, and the replies about it are empty.

        Args:
          questions: about any number of videos.
          max_new: tokens of a reply, at most; None: as the model was loaded.
        """
        setup = self.setup
        if max_new is not None and setup.model.max_new > 1:  # the embedded model says one word
            setup = replace(setup, model=setup.model._replace(max_new=max_new))
        asked = {str(i): text_of(one.text) for i, one in enumerate(questions)}
        items = [_item(str(i), one) for i, one in enumerate(questions)]
        found: dict[str, str] = {}
        groups = list(by_video(items).items())
        for video, group in track(groups, "videos", console=Console(stderr=True), transient=True):
            found |= self._watched(setup, video, group, asked)
        return [found.get(number, "") for number in asked]

    def _watched(
        self, setup: Setup, video: Video, items: Sequence[Item], asked: Mapping[str, str]
    ) -> dict[str, str]:
        try:
            (cell,) = watch(setup, video, items, asked, setup.names, lambda: None).values()
        except UnwatchableError as error:
            cell = {"replies": [], "lost": [{"reason": str(error)} for _ in items]}
        if lost := cell["lost"]:
            warnings.warn(
                f"{video.name}: {len(lost)} question(s) have no reply: {lost[0]['reason']}",
                stacklevel=2,
            )
        return {one["id"]: one["reply"] for one in cell["replies"]}

    def session(self, video: str) -> Session:
        """Return a session at the end of a video; that of the last video is kept.

        Raises:
          ValueError: if nothing can be seen of it, or the memory does not fit the budget.
        """
        if self._last is None or self._last[0] != video:
            setup = self.setup
            with closing(open_for(setup.model, video)) as reader:
                model = for_frames(setup.model, reader.info.size)
                sound = reader.info.audio_streams > 0
                spec = model_spec(model, setup.chunk_pieces, audio=sound)
                try:
                    (chosen, *_), _ = memories_for(setup, model, spec, reader, 0.0, setup.names)
                except UnwatchableError as error:
                    raise ValueError(f"{video}: {error}") from error
            session = Session(model, chosen.memory, chunk_pieces=setup.chunk_pieces, spec=spec)
            self._last = video, session.watch(video)
        return self._last[1]


def _words(key: str, value: Any) -> list[str]:
    """Return `NAME.OPTION` of a memory as on a command line, where what is on or off is a flag.

    Raises:
      ValueError: if what is on or off is neither, or what has several values has others.
    """
    name, _, option = key.replace("-", "_").partition(".")
    found = worded(name).get(option)
    if found is not None and str(value) != "None":
        for kind in members(found.type):
            if get_origin(kind) is tuple:
                return [f"--{key}", *_values(key, value, get_args(kind), found.default)]
    if found is None or found.type is not bool:
        return [f"--{key}", str(value)]
    if str(value) not in ("True", "False"):
        raise ValueError(f"{key} is True or False, got {value!r}.")
    return [f"--{name}.{option}" if str(value) == "True" else f"--{name}.no_{option}"]


def _values(key: str, value: Any, kinds: Sequence[Any], default: Any) -> list[str]:
    """Return the values of an option of several, as words.

    Args:
      key: `NAME.OPTION`.
      value: a list of Python or in JSON, since lmms-eval splits at no comma within brackets.
      kinds: of the values, int or float; an ellipsis last where they are any number.
      default: of the option.

    Raises:
      ValueError: if they are other values, or another number of them.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = value
    given = list(found) if isinstance(found, list | tuple) else [found]
    count = len(given) if kinds[-1] is Ellipsis else len(kinds)
    allowed = {int: (int,), float: (int, float)}[kinds[0]]
    if not given or len(given) != count or any(type(x) not in allowed for x in given):
        many = "any number of" if kinds[-1] is Ellipsis else f"{count}"
        what = "whole numbers" if kinds[0] is int else "numbers"
        example = list(default or range(1, 1 + len(kinds)))
        raise ValueError(
            f"{key} takes {many} {what} in brackets, got {value!r}: give them as "
            f"{key}={json.dumps(example, separators=(',', ':'))}."
        )
    return [str(x) for x in given]


def _options(words: Sequence[str]) -> dict[str, Any]:
    try:
        return read_options(split_options(words)[1], {})
    except SystemExit:  # the parser has said more
        raise ValueError(f"these options of the memory do not parse: {' '.join(words)}") from None


def text_of(text: str) -> str:
    """Return a question without the placeholders of its video."""
    return PLACEHOLDER.sub("", text).strip()


def _item(number: str, one: Question) -> Item:
    path = Path(one.video)
    video = Video(one.video, path if path.exists() else None, one.start)
    return Item(number, video, one.text, "", asked_at=one.at, form="text")
