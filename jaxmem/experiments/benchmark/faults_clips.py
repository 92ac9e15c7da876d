"""Clips in eight containers, and damage as it happens to files: by number, always the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from jaxmem.data.media.media import open_media
from jaxmem.data.world.files import held_out

SECONDS = 4
RATE, FPS, SIZE = 48000, 10, (96, 128)
CONTAINERS: dict[str, tuple[str | None, str]] = {  # video and audio encoder
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "flac"),
    "webm": ("libvpx", "libopus"),
    "ts": ("mpeg2video", "mp2"),
    "ogg": (None, "libopus"),
    "avi": ("mpeg4", "pcm_s16le"),
    "mp3": (None, "libmp3lame"),
    "wav": (None, "pcm_s16le"),
}


def clean_clips(clips: Path | None, folder: Path, seed: int) -> list[Path]:
    """Write the first seconds of every clip in every container; return the files.

    Args:
      clips: folder of videos; None: one of the synthetic world.
      folder: where the files go.
      seed: of the synthetic video.

    Raises:
      ValueError: if the folder holds nothing that can be read.
    """
    if clips is None:
        sources = [held_out(seed, SECONDS, folder, count=1)[0]]
    else:
        sources = sorted(path for path in clips.glob("*") if path.is_file())
    written: list[Path] = []
    for number, source in enumerate(sources):
        try:
            with open_media(source, fps=FPS, size=SIZE, sample_rate=RATE, stop=SECONDS) as reader:
                pieces = list(reader)
        except ValueError:
            continue  # notes beside the clips
        frames = np.concatenate([piece.frames for piece in pieces])
        samples = np.concatenate([piece.samples for piece in pieces])
        for suffix in CONTAINERS:
            path = folder / f"clean_{number}.{suffix}"
            _encode(path, frames, samples, *CONTAINERS[suffix])
            written.append(path)
    if not written:
        raise ValueError(f"--clips {clips} holds nothing that can be read.")
    return written


def _encode(
    path: Path, frames: np.ndarray, samples: np.ndarray, video: str | None, audio: str
) -> None:
    """Write frames [n, h, w, 3] and samples [m] into one file."""
    packets: list[Any] = []
    with av.open(str(path), "w") as out:
        streams: list[tuple[Any, list[Any]]] = []
        if video is not None:
            seen: Any = out.add_stream(video, rate=FPS)
            seen.height, seen.width, seen.pix_fmt = *SIZE, "yuv420p"
            seen.codec_context.gop_size = FPS
            pictures = [av.VideoFrame.from_ndarray(frame, "rgb24") for frame in frames]
            for i, picture in enumerate(pictures):
                picture.pts, picture.time_base = i, Fraction(1, FPS)
            streams.append((seen, pictures))
        heard: Any = out.add_stream(audio, rate=RATE, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), "fltp", "mono")
        sound.sample_rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
        streams.append((heard, [sound]))
        for stream, given in streams:
            for one in (*given, None):
                packets += stream.encode(one)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)


Damage = Callable[[bytearray, np.random.Generator, int], bytes]


def _flip(data: bytearray, draw: np.random.Generator, block: int) -> bytes:
    for place in draw.integers(0, len(data), int(2 ** draw.uniform(0, 8))):
        data[place] ^= 1 << int(draw.integers(8))
    return bytes(data)


def _cut(data: bytearray, draw: np.random.Generator, block: int) -> bytes:
    return bytes(data[: int(draw.integers(1, len(data)))])


def _behead(data: bytearray, draw: np.random.Generator, block: int) -> bytes:
    return bytes(data[int(draw.integers(1, len(data))) :])


def _places(data: bytearray, draw: np.random.Generator, block: int) -> list[int]:
    count = max(len(data) // block, 1)
    return sorted(int(i) * block for i in draw.integers(0, count, int(draw.integers(1, 9))))


def _lose(data: bytearray, draw: np.random.Generator, block: int) -> bytes:
    for place in reversed(_places(data, draw, block)):
        del data[place : place + block]
    return bytes(data)


def _double(data: bytearray, draw: np.random.Generator, block: int) -> bytes:
    for place in reversed(_places(data, draw, block)):
        data[place:place] = data[place : place + block]
    return bytes(data)


def _swap(data: bytearray, draw: np.random.Generator, block: int) -> bytes:
    places = _places(data, draw, block)
    for a, b in zip(places, draw.permutation(places).tolist(), strict=True):
        if max(a, b) + block <= len(data):
            data[a : a + block], data[b : b + block] = data[b : b + block], data[a : a + block]
    return bytes(data)


def _lengths(data: bytearray, draw: np.random.Generator, block: int) -> bytes:
    """Numbers of four bytes are others, mostly in the headers."""
    for _ in range(int(draw.integers(1, 5))):
        end = min(len(data), 2048) if draw.random() < 0.7 else len(data)
        place = int(draw.integers(0, max(end - 4, 1)))
        value = int(draw.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, draw.integers(2**32)]))
        data[place : place + 4] = value.to_bytes(4, str(draw.choice(["big", "little"])))  # type: ignore[arg-type]
    return bytes(data)


def _blank(data: bytearray, draw: np.random.Generator, block: int) -> bytes:
    for place in _places(data, draw, block):
        data[place : place + block] = bytes(len(data[place : place + block]))
    return bytes(data)


DAMAGES: dict[str, Damage] = {
    "bit flips": _flip,
    "cut at the end": _cut,
    "cut at the start": _behead,
    "lost packets": _lose,
    "doubled packets": _double,
    "swapped blocks": _swap,
    "wrong lengths": _lengths,
    "zeroed blocks": _blank,
}


def damaged(clips: Sequence[Path], number: int, seed: int, folder: Path) -> tuple[Path, str]:
    """Write damaged file `number` of a seed; return it and what was done to it."""
    draw = np.random.default_rng([seed, number])
    clip = clips[number % len(clips)]
    names = list(DAMAGES)
    chosen = [names[int(draw.integers(len(names)))] for _ in range(int(draw.integers(1, 3)))]
    data = clip.read_bytes()
    for name in chosen:
        block = 188 if clip.suffix == ".ts" else int(2 ** draw.uniform(4, 12))
        data = DAMAGES[name](bytearray(data or b"\0"), draw, block)
    path = folder / f"damaged_{number}{clip.suffix}"
    path.write_bytes(data)
    return path, " + ".join(dict.fromkeys(chosen))
