"""Many live streams on one device: `Engine` steps them together and answers between steps."""

from jaxmem.serve.answers import Answer
from jaxmem.serve.engine import Engine
from jaxmem.serve.live import Live, Stats

__all__ = ["Answer", "Engine", "Live", "Stats"]
