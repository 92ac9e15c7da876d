"""An adapter for VLMEvalKit, which has no plug-ins: `register` before its `run.py` begins.

from jaxmem.experiments.harnesses import vlmeval
vlmeval.register(model="DIR", memory="omnimem", budget=1024)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from jaxmem.experiments.harnesses.streams import Streams, text_of

NAME = "jaxmem"


def register(name: str = NAME, **options: Any) -> None:
    """Add a model to VLMEvalKit's table; `options` as of `Answering`, for each name its own.

    Raises:
      ValueError: if VLMEvalKit is not installed.
    """
    try:
        from vlmeval.config import supported_VLM  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "this needs VLMEvalKit, which is installed from its repository, not from PyPI."
        ) from None
    supported_VLM[name] = partial(_made(), **options)


@cache
def _made() -> type:
    from vlmeval.vlm.base import BaseModel  # pyright: ignore[reportMissingImports]

    return type("Jaxmem", (Answering, BaseModel), {"__module__": __name__})


class Answering:
    """The methods of a model of VLMEvalKit: whole videos by their paths, asked at the end.

    The kit asks one question at a time: questions in turn about a video share its stream.
    """

    INTERLEAVE = False
    VIDEO_LLM = True
    allowed_types = ("text", "video")

    def __init__(
        self, model: str = "tiny", memory: str = "omnimem", budget: str | int = 1024, **options: Any
    ):
        """Load the model; `options` as of `Streams`."""
        super().__init__()
        self.streams = Streams(model, memory, str(budget), **options)

    def generate_inner(
        self, message: Sequence[Mapping[str, Any]], dataset: str | None = None
    ) -> str:
        """Return the reply to a message.

        Raises:
          ValueError: if it is not about one video.
        """
        del dataset
        videos = [part["value"] for part in message if part["type"] == "video"]
        if len(videos) != 1 or any(part["type"] == "image" for part in message):
            kinds = ", ".join(part["type"] for part in message)
            raise ValueError(f"{NAME} is asked about one video, given by its path; got {kinds}.")
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        return self.streams.session(videos[0]).ask(text_of(text)).text
