"""What streams damaged files: reads paths from standard input, says of each what happened."""

from __future__ import annotations

import faulthandler
import json
import sys
import time
import traceback
from typing import Any

import numpy as np

from jaxmem.data.media.types import Piece
from jaxmem.data.media.video import check_size
from jaxmem.experiments.benchmark.constancy import resident
from jaxmem.memory.omnimem.omnimem import OmniMem
from jaxmem.models.tiny.embedded import embedded
from jaxmem.session import Session

ANSWERED, REFUSED, RAISED = "answered", "refused", "raised"
QUESTION = "which was the last shape?"


def streamed(session: Session, path: str) -> tuple[str, str]:
    """Return what comes of streaming a file and asking about it: outcome and detail."""
    session.reset()
    try:
        session.watch(path)
        if not session.pieces:
            return REFUSED, "nothing was read"
        return ANSWERED, session.ask(QUESTION).text
    except ValueError as error:
        one_line = "\n" not in str(error)
        return (REFUSED, str(error)) if one_line else (RAISED, traceback.format_exc())
    except Exception:
        return RAISED, traceback.format_exc()


def main() -> None:
    """Answer one line of JSON for every path, until there are no more.

    The first argument is the seconds after which it says on standard error where it is.
    """
    faulthandler.enable()
    session = Session(embedded(), OmniMem(64))
    media, size = session.model.media, check_size(session.model.media.size)
    frames = np.zeros((round(media.fps * media.piece_seconds), *size, 3), np.uint8)
    samples = np.zeros(round(media.sample_rate * media.piece_seconds), np.float32)
    session.feed(Piece(0.0, frames, samples, False, False, media.piece_seconds))
    session.ask(QUESTION)  # from here on nothing compiles

    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    say(ready=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        faulthandler.dump_traceback_later(float(sys.argv[1]))
        outcome, detail = streamed(session, line.rstrip("\n"))
        faulthandler.cancel_dump_traceback_later()
        spent = time.perf_counter() - begin
        more = {"pieces": session.pieces, "resident": resident()}
        say(outcome=outcome, detail=detail, seconds=spent, **more)


if __name__ == "__main__":
    main()
