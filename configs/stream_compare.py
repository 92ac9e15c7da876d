"""Memories side by side on one held-out stream, all within the same bytes.

Command:  python -m jaxmem.experiments.stream --config configs/stream_compare.py
Cost:     about two minutes on 2 CPU cores, no download.
Expected: omnimem close to `full` (the reference, which holds everything) and clearly ahead of
          `recent`, `last_frames`, `uniform` and `random`; one stream of 48 questions still leaves
          intervals of about +-14 points.
"""

from jaxmem.experiments.stream.config import StreamConfig


def get_config() -> StreamConfig:
    return StreamConfig(
        compare="omnimem,recent,last_frames,uniform,random,full",
        budget="256KiB",
        seconds=240,
        questions=48,
        memories={"omnimem": {"audio_share": 0.5}},
    )
