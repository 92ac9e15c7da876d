"""The main job as it runs without arguments.

Command:  python -m jaxmem.experiments.stream --config configs/stream_default.py
Cost:     about half a minute on 2 CPU cores, no download.
Expected: omnimem with 96 slots per layer answers about as well as the whole stream would; the
          memory map shows that layers 2 and 3 hold little but the events.
"""

from jaxmem.experiments.stream.config import StreamConfig


def get_config() -> StreamConfig:
    return StreamConfig()
