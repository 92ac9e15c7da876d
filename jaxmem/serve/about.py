"""What a server says of itself: `/v1/models`, as OpenAI's clients read it, and more."""

from __future__ import annotations

import inspect
import time
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxmem.data.world.questions import questions
from jaxmem.data.world.world import split_seed, world
from jaxmem.memory import MEMORIES
from jaxmem.models.base import Model
from jaxmem.serve.demo_world import SECONDS
from jaxmem.serve.hub import Hub

EXAMPLES = 8


class About:
    """The handler of a hub."""

    def __init__(self, hub: Hub):
        """Speak of a hub."""
        self.hub, self.limits, self.model = hub, hub.limits, hub.engines.model
        self._began = int(time.time())

    async def models(self, request: Request) -> Response:
        """Answer with the model, and with the memories that it may have here."""
        del request
        media = self.model.media
        names = await run_in_threadpool(lambda: self.hub.engines.names)
        memories = [
            {"name": name, "title": title_of(name), "budget_default": self.hub.usual.budget}
            for name in sorted(names, key=lambda x: (x != self.hub.usual.memory, names.index(x)))
        ]
        more = {"memories": memories, "frame": list(_size(media.size)), "fps": media.fps}
        more |= {"sample_rate": media.sample_rate, "note": self.model.note}
        more |= {"model": self.model.name, "hears": self.model.audio_tokens > 0}
        more |= await run_in_threadpool(self._about_server)
        one = {"id": self.model.name, "object": "model", "owned_by": "jaxmem"}
        data = [one | {"created": self._began}]
        return JSONResponse({"object": "list", "data": data, "jaxmem": more})

    def _about_server(self) -> dict[str, Any]:
        """Return what a page offers: questions, sources and files."""
        names = ("sessions", "frame_bytes", "message_bytes", "upload_bytes", "silence")
        return {
            "questions": examples(self.model),
            "sources": list(self.hub.allowed.kinds),
            "files": self.hub.allowed.files(),
            "limits": {name: getattr(self.limits, name) for name in names},
            "saves": self.hub.keeping is not None,
        }


def examples(model: Model) -> list[str]:
    """Return questions that a model understands, none where it is not known which."""
    if model.tokenize_text is not None:  # it knows any words
        return []
    asked = questions(world(split_seed("test", 0), SECONDS), 40)
    texts = list({one.type: one.text for one in asked}.values())
    try:
        for text in texts:
            model.tokenize(text)
    except ValueError:  # it knows another world
        return list(model.probes)
    return texts[:EXAMPLES]


def title_of(name: str) -> str:
    """Return the first line of what a memory's class says of itself."""
    return (inspect.getdoc(MEMORIES[name]) or name).splitlines()[0]


def _size(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (0, 0)
