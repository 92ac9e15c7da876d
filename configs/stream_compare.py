"""Memories side by side on one held-out stream, all within the same bytes.

Command:  python -m jaxmem.experiments.stream --config configs/stream_compare.py
Cost:     about two minutes on 2 CPU cores, no download.
Expected: omnimem close to `full` (the reference, which holds everything) and clearly ahead of
          `recent`, `last_frames`, `uniform` and `random`; one stream of 48 questions still leaves
          intervals of about +-14 points.
"""

from jaxmem.experiments.memories import Memories, OmniMem
from jaxmem.experiments.stream.__main__ import StreamConfig


def get_config() -> StreamConfig:
    return StreamConfig(
        compare="omnimem,recent,last_frames,uniform,random,full",
        budget="256KiB",
        seconds=240,
        questions=48,
        memories=Memories(omnimem=OmniMem(audio_share=0.5)),
    )
