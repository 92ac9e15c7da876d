"""A plug-in for lmms-eval (entry point `lmms_eval.models`): chat, simple and multi-round requests.

    lmms-eval eval --model jaxmem --model_args model=DIR,memory=omnimem,budget=1024 --tasks lvbench

Requests are grouped by video: each video is streamed once, and asked at the times that the records
give, in their order.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmem.experiments.harnesses.streams import Question, Streams

NAME = "jaxmem"
TIMES = ("realtime", "time_stamp")
"""Fields of a record that say when its question is asked, if it has one of them."""


def manifest() -> Any:
    """Return what registers the model with lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    paths = {f"{kind.lower()}_class_path": f"{__name__}.{kind}" for kind in ("Simple", "Chat")}
    return ModelManifest(NAME, **paths)


def __getattr__(name: str) -> Any:
    """Return the model classes, which need lmms-eval."""
    if name in ("Simple", "Chat"):
        return _made(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _made(name: str) -> type:
    try:
        from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("the plug-in needs lmms-eval: pip install 'jaxmem[lmms]'.") from None
    more = {"is_simple": name == "Simple", "__module__": __name__}
    return type(name, (Answering, lmms), more)


class Answering:
    """The methods of a model of lmms-eval, simple or chat."""

    is_simple: bool
    task_dict: Mapping[str, Any]
    cache_hook: Any

    def __init__(
        self,
        model: str = "tiny",
        memory: str = "omnimem",
        budget: str | int = "1024",
        batch_size: str | int = 1,
        device: str | None = None,
        **options: Any,
    ):
        """Load the model; `options` as of `Streams`. A device is JAX's own choice."""
        del batch_size, device
        super().__init__()
        self.streams = Streams(model, memory, str(budget), **options)

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Refuse: memories are asked, and what they would say is not weighed.

        Raises:
          NotImplementedError: always.
        """
        raise NotImplementedError(f"{NAME} answers questions; this task asks for likelihoods.")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return a reply to each request."""
        turns = [self._first(request) for request in requests]
        replies = self._replies(requests, turns)
        for request, reply in zip(requests, replies, strict=True):
            key = request.args[0], _settings(request.args, self.is_simple)
            self.cache_hook.add_partial("generate_until", key, reply)
        return replies

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Return the replies of every round of each request; a video is streamed once a round."""
        said: list[list[str]] = [[] for _ in requests]
        told: list[Any] = [None] * len(requests)
        turns: dict[int, list[Question]] = {i: self._first(x) for i, x in enumerate(requests)}
        number = 0
        while turns:
            here = [requests[i] for i in turns]
            for i, reply in zip(turns, self._replies(here, list(turns.values())), strict=True):
                said[i].append(reply)
            number += 1
            following = {}
            for i, before in turns.items():
                turn, told[i] = self._next(requests[i], said[i], number, told[i], before)
                if turn is not None:
                    following[i] = turn
            turns = following
        return said

    def _replies(self, requests: Sequence[Any], turns: Sequence[list[Question]]) -> list[str]:
        """Return a reply to each turn; one that asks at several times is answered with a list."""
        found: dict[int, str] = {}
        by_length: dict[int | None, list[int]] = {}
        settings = [_settings(request.args, self.is_simple) for request in requests]
        for i, one in enumerate(settings):
            by_length.setdefault(one.get("max_new_tokens"), []).append(i)
        for most, numbers in by_length.items():
            flat = [question for i in numbers for question in turns[i]]
            texts = iter(self.streams.replies(flat, most))
            for i in numbers:
                each = [_until(next(texts), settings[i]) for _ in turns[i]]
                found[i] = each[0] if len(each) == 1 else json.dumps([_number(x) for x in each])
        return [found[i] for i in range(len(requests))]

    def _first(self, request: Any) -> list[Question]:
        """Return the questions of a request's first round."""
        if self.is_simple:
            text, to_visual, doc = request.args[0], request.args[2], self._doc(request)
            return _asked(doc, [{"url": one} for one in to_visual(doc) or []], text)
        doc = self._doc(request)
        return _of_messages(doc, request.args[1](doc), [])

    def _next(
        self, request: Any, said: list[str], number: int, told: Any, before: list[Question]
    ) -> tuple[list[Question] | None, Any]:
        """Return the questions of a later round, None behind the last; and what the task keeps."""
        doc = self._doc(request)
        more = {"previous_output": list(said), "round_idx": number, "previous_round_info": told}
        if not self.is_simple:
            payload = request.args[1](doc, **more)
            if not (isinstance(payload, tuple) and len(payload) == 4) or payload[1]:
                return None, told
            return _of_messages(doc, payload[0], before), payload[3]
        visuals, text, done, _, told = request.args[3](doc, **more)
        if done:
            return None, told
        shown = [{"url": one} for one in visuals or []]
        return (_asked(doc, shown, text) if shown else _again(before, text)), told

    def _doc(self, request: Any) -> Mapping[str, Any]:
        number, task, split = request.args[-3:]
        return self.task_dict[task][split][number]


def _settings(args: tuple[Any, ...], simple: bool) -> Mapping[str, Any]:
    return args[1 if simple else 2]


def _until(text: str, settings: Mapping[str, Any]) -> str:
    """Return a reply up to the first of the task's stops."""
    stops = settings.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if stop.strip() else text
    return text


def _number(text: str) -> float | str:
    """Return the first number of a reply, or else the reply."""
    found = re.search(r"-?\d+(?:\.\d+)?", text)
    return text if found is None else float(found[0])


def _of_messages(
    doc: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], before: list[Question]
) -> list[Question]:
    """Return the questions of a chat: its videos, and its text of all roles in order."""
    parts = [part for message in messages for part in _content(message)]
    texts = [part["text"] for part in parts if part.get("type") == "text"]
    videos = [part for part in parts if part.get("type") not in ("text", "audio")]
    text = "\n".join(texts)
    return _asked(doc, videos, text) if videos or not before else _again(before, text)


def _content(message: Mapping[str, Any]) -> list[Any]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _again(before: list[Question], text: str) -> list[Question]:
    """Return other words about the same video."""
    return [question._replace(text=text) for question in before]


def _asked(
    doc: Mapping[str, Any], videos: Sequence[Mapping[str, Any]], text: str
) -> list[Question]:
    """Return a question about a video, once for each of its times.

    Raises:
      ValueError: if the request is not about one video.
    """
    urls = [one.get("url") for one in videos]
    if len(urls) != 1 or not isinstance(urls[0], str):
        kinds = ", ".join(type(url).__name__ for url in urls) or "nothing"
        raise ValueError(
            f"{NAME} is asked about one video, given by its path; this task gives {kinds}."
        )
    start, end = _part(doc, videos[0])
    named = next((at for name in TIMES if (at := _seconds(doc.get(name))) is not None), end)
    times = [_seconds(one) for one in doc.get("query_times") or ()] or [named]
    return [Question(urls[0], text, at, start) for at in times]


def _part(doc: Mapping[str, Any], video: Mapping[str, Any]) -> tuple[float, float | None]:
    """Return where what is shown of a video begins and ends, by the chat or else by the record."""
    start, end = _seconds(video.get("start_time")), _seconds(video.get("end_time"))
    if start is None and end is None and doc.get("start") is not None:
        start, end = _seconds(doc.get("start")), _seconds(doc.get("end"))
    return start or 0.0, end


def _seconds(value: Any) -> float | None:
    """Return seconds, of a number or of "hh:mm:ss"; None if it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"\d+(:\d+){0,2}(\.\d+)?", value.strip()):
        return sum(float(x) * 60**i for i, x in enumerate(reversed(value.split(":"))))
    return None
