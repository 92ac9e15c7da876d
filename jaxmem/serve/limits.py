"""What a server lets its clients do, and the refusal of what is more."""

from __future__ import annotations

import re
from dataclasses import dataclass

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that no other one reaches."""
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Limits:
    """What one server takes.

    Attributes:
      sessions: open at once.
      memories: different memories, budgets and options in the life of a server: each is compiled,
        and what is compiled stays.
      silence: seconds without a frame, a question or a running source after which a session ends.
      linger: the same for a session that a WebSocket began, once nobody looks at it any more.
      frame_bytes: of one encoded picture, or of one chunk of sound.
      pixels: of one picture.
      message_bytes: of a message or a body without a file.
      chat_bytes: of a body of chat completions, which may hold a video.
      upload_bytes: of an uploaded file.
      uploads: files that are kept at once.
      questions: of a session that are not answered yet, standing ones apart.
      standing: questions of a session that are asked again and again.
      words: characters of a question.
      history: answered questions that a session remembers.
      saves: sessions that are kept in the folder of saves.
      events: messages that wait for one reader; one who reads slower is disconnected.
      connections: WebSockets at once.
    """

    sessions: int = 64
    memories: int = 16
    silence: float = 600.0
    linger: float = 60.0
    frame_bytes: int = 4 << 20
    pixels: int = 16_000_000
    message_bytes: int = 8 << 20
    chat_bytes: int = 64 << 20
    upload_bytes: int = 1 << 30
    uploads: int = 8
    questions: int = 8
    standing: int = 8
    words: int = 4096
    history: int = 100
    saves: int = 256
    events: int = 512
    connections: int = 256


class RefusedError(ValueError):
    """What a client asked for is not done; the message says why, and what to do.

    Attributes:
      code: a short word that does not change.
      status: of HTTP.
    """

    def __init__(self, message: str, code: str = "invalid_request", status: int = 400):
        """Say why, in a sentence with the repair."""
        super().__init__(message)
        self.code, self.status = code, status


def checked_name(name: object, what: str = "id") -> str:
    """Return a name that a client gave, if it is one: it may become the name of a folder.

    Raises:
      RefusedError: if it is not.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RefusedError(
            f"{what} must be 1 to 64 letters, digits, - or _, got {shown(name)}.", "bad_name"
        )
    return name


def shown(value: object, most: int = 80) -> str:
    """Return what a client sent as it stands in an error, cut if it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
