"""What options will cost, and the refusal of what this machine cannot pay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxmem.experiments.stream.config import StreamConfig
from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Spec
from jaxmem.memory.by_name import Contestant
from jaxmem.models.base import Model
from jaxmem.report.numbers import size

RENDERED_BYTES = 16_000
"""Of a second of the synthetic video, about."""
QUESTIONS_PER_SECOND = 10
"""About the synthetic video, at most."""


def machine_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its control group's."""
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 62  # unknown: the system itself will refuse
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(most, int(text)) if text.isdigit() else most


def device_limit() -> int | None:
    """Return the memory of the device that streams, where it says so."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def device_bytes() -> int:
    """Return the memory of the device that streams, that of the machine where it does not say."""
    return device_limit() or machine_bytes()


def check_synthetic(config: StreamConfig, seconds: float) -> None:
    """Refuse a synthetic video that the disc cannot hold, or more questions than it has room for.

    Raises:
      ValueError: naming the cost and what there is.
    """
    needed, free = int(seconds * RENDERED_BYTES), shutil.disk_usage(config.out).free
    if needed > free:
        raise ValueError(
            f"--seconds {seconds:g}: the synthetic video needs about {size(needed)}, and "
            f"{config.out} has {size(free)} left; give fewer seconds."
        )
    most = int(seconds * QUESTIONS_PER_SECOND)
    if not config.ask and config.questions > most:
        raise ValueError(
            f"--questions {config.questions}: a video of {seconds:g} s has room for at most "
            f"{most}; give fewer, or more --seconds."
        )


def check_chunk(model: Model, pieces: int) -> None:
    """Refuse a chunk whose pictures, or whose attention to itself, the machine cannot hold.

    Raises:
      ValueError: naming the cost and what there is.
    """
    media, decoder = model.media, model.decoder
    side = media.size if isinstance(media.size, tuple) else (1, 1)
    picture = side[0] * side[1] * 3 * media.fps * media.piece_seconds
    sound = 4 * media.sample_rate * media.piece_seconds
    rows = max(model.tokens_per_piece, 1) * pieces
    needed = int(3 * pieces * (picture + sound) + 4 * decoder.heads * rows * rows)
    if needed > device_bytes():
        raise ValueError(
            f"--chunk-seconds {pieces * media.piece_seconds:g}: one chunk of {rows:,} tokens "
            f"needs about {size(needed)}, and the machine has {size(device_bytes())}; write "
            "fewer seconds at once."
        )


def check_memories(chosen: Sequence[Contestant], spec: Spec, budget: str, devices: int = 1) -> None:
    """Refuse memories that together are more than the devices and the machine hold.

    Raises:
      ValueError: naming the cost and what there is.
    """
    prices = [footprint(one.memory, spec) for one in chosen]
    for needed, has, where in (
        (sum(price.device for price in prices), devices * device_bytes(), "the device"),
        (sum(price.device + price.host for price in prices), None, "the machine"),
    ):
        has = max(machine_bytes(), device_bytes()) if has is None else has
        if needed > has:
            raise ValueError(
                f"--budget {budget}: {', '.join(one.name for one in chosen)} would hold "
                f"{size(needed)}, and {where} has {size(has)}; give a smaller budget."
            )


def enough_slots(tokens: int) -> int:
    """Return a budget at which no memory leaves anything out of so many tokens per layer."""
    return max(4096, 16 * tokens)
