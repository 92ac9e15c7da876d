"""Write streams of `world.world` as real video files with sound, and their questions as JSON.

The picture and the sound are encoded in step, a second at a time, so the length of a stream costs
time but no memory beyond its 16 kHz sound track. Files appear under their name only when complete.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from jaxmem.data.world.atomic import complete
from jaxmem.data.world.questions import Question, questions
from jaxmem.data.world.render import SIZE, frames
from jaxmem.data.world.scene import Difficulty, Stream, level
from jaxmem.data.world.sounds import RATE, sound
from jaxmem.data.world.world import Split, split_seed, world

__all__ = ["QuestionFile", "held_out", "read_questions", "write_questions", "write_video"]

_FORMAT = "jaxmem-questions"
_VERSION = 1


class _Container(NamedTuple):
    """How a file with some suffix is encoded. `{quality}` stands for the CRF."""

    format: str
    video: str
    video_options: dict[str, str]
    audio: str
    options: dict[str, str]


_X264 = {"preset": "veryfast", "crf": "{quality}"}
# Realtime VP8 needs a bit rate beside its CRF; without it, the default of 200 kbit/s would rule.
_VP8 = {"deadline": "realtime", "cpu-used": "8", "crf": "{quality}", "b": "2M"}
_CONTAINERS = {
    ".mp4": _Container("mp4", "libx264", _X264, "aac", {"movflags": "+faststart"}),
    ".mov": _Container("mov", "libx264", _X264, "aac", {"movflags": "+faststart"}),
    ".mkv": _Container("matroska", "libx264", _X264, "aac", {}),
    ".webm": _Container("webm", "libvpx", _VP8, "libopus", {}),
}


class QuestionFile(NamedTuple):
    """What `write_questions` wrote: enough to make the stream and its video again."""

    seed: tuple[int, ...]
    seconds: int
    difficulty: Difficulty
    video: str | None  # name of the video file beside this one
    questions: list[Question]


def write_video(
    path: str | os.PathLike[str],
    stream: Stream,
    *,
    fps: int = 8,
    scale: int = 4,
    quality: int = 20,
    audio_rate: int = 48_000,
    audio_bits: int = 96_000,
) -> Path:
    """Render and encode a stream; returns `path`. Equal arguments give equal pictures and samples.

    A frame shows the world at its own time stamp i / fps, so events begin exactly at a frame.
    The matrix of the colours is BT.601, limited range, and is declared as such.

    Args:
        path: the suffix chooses the container: .mp4, .mov, .mkv (H.264 and AAC) or .webm (VP8 and
            Opus). Missing folders are made; an existing file is replaced at the end.
        stream: what to write, of any length.
        fps: frames per second.
        scale: pixels per pixel of the 48x48 world; 4 gives 192x192.
        quality: constant rate factor of the video encoder, lower is better.
        audio_rate: samples per second of the encoded mono sound.
        audio_bits: bits per second of the encoded sound.

    Raises:
        ValueError: an unknown suffix, or a number out of range.
    """
    path = Path(path)
    kind = _CONTAINERS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(_CONTAINERS)
        raise ValueError(f"cannot write {path.name!r}: its suffix must be one of {known}")
    _check("fps", fps, 1, 120)
    _check("scale", scale, 1, 32)
    _check("quality", quality, 4, 51)
    rates = (48_000,) if kind.audio == "libopus" else (16_000, 24_000, 32_000, 44_100, 48_000)
    if audio_rate not in rates:
        raise ValueError(f"audio_rate must be one of {rates} for {path.suffix}, got {audio_rate}")
    _check("audio_bits", audio_bits, 16_000, 320_000)
    options = {k: v.format(quality=quality) for k, v in kind.video_options.items()}
    with (
        complete(path) as temporary,
        av.open(str(temporary), "w", format=kind.format, options=kind.options) as container,
    ):
        video: Any = container.add_stream(
            kind.video, rate=fps, options={**options, "g": str(8 * fps)}
        )
        audio: Any = container.add_stream(kind.audio, rate=audio_rate, layout="mono")
        video.width = video.height = SIZE * scale
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1  # the bits depend on the number of threads
        video.codec_context.color_range = ColorRange.MPEG
        video.codec_context.colorspace = Colorspace.SMPTE170M
        audio.bit_rate = audio_bits
        for pictures, samples in _seconds(stream, fps, scale):
            for picture in pictures:
                container.mux(video.encode(picture))
            container.mux(audio.encode(samples))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def write_questions(
    path: str | os.PathLike[str],
    stream: Stream,
    asked: Sequence[Question],
    *,
    video: str | None = None,
) -> Path:
    """Write questions about a stream as JSON, with what is needed to make the stream again.

    Missing folders are made; `video` is the name of the stream's video file. Returns `path`.
    """
    path = Path(path)
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "seed": list(stream.seed),
        "seconds": stream.seconds,
        "difficulty": asdict(stream.difficulty),
        "video": video,
        "questions": [question._asdict() for question in asked],
    }
    with complete(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return path


def read_questions(path: str | os.PathLike[str]) -> QuestionFile:
    """Read what `write_questions` wrote.

    Raises:
        ValueError: the file is no such JSON, or of a newer version.
    """
    wanted = f"{os.fspath(path)} is no question file of this project"
    try:
        content = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{wanted}: it holds no JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f'{wanted}: it must hold "format": "{_FORMAT}"')
    if content.get("version") != _VERSION:
        raise ValueError(
            f"{wanted}: its version is {content.get('version')}, this library reads {_VERSION}"
        )
    try:
        knobs: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["difficulty"].items()
        }
        return QuestionFile(
            seed=tuple(content["seed"]),
            seconds=content["seconds"],
            difficulty=Difficulty(**knobs),
            video=content["video"],
            questions=[Question(**question) for question in content["questions"]],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{wanted}: {type(error).__name__}: {error}") from error


def held_out(
    seed: int,
    seconds: int,
    folder: str | os.PathLike[str],
    *,
    count: int = 24,
    difficulty: Difficulty | str = "standard",
    split: Split = "test",
    **video: int,
) -> tuple[Path, list[Question]]:
    """A video with sound that no training has seen, and questions about it, as files in a folder.

    Args:
        seed: index of the stream in its split.
        seconds: length.
        folder: where `SPLIT_SEED_SECONDSs.mp4` and the `.json` of its questions are written.
        count: number of questions.
        difficulty: a `Difficulty` or the name of a level.
        split: "test" unless there is a reason.
        **video: passed on to `write_video`.

    Returns:
        The path of the video and the questions in order of time.

    Raises:
        ValueError: as `world`, `questions` and `write_video`.
    """
    knobs = level(difficulty) if isinstance(difficulty, str) else difficulty
    stream = world(split_seed(split, seed), seconds, knobs)
    asked = questions(stream, count)
    path = Path(folder) / f"{split}_{seed}_{seconds}s.mp4"
    write_video(path, stream, **video)
    write_questions(path.with_suffix(".json"), stream, asked, video=path.name)
    return path, asked


def _seconds(
    stream: Stream, fps: int, scale: int
) -> Iterator[tuple[list[av.VideoFrame], av.AudioFrame]]:
    """The stream second by second, as time-stamped frames ready to be encoded."""
    reformatter = VideoReformatter()
    track = sound(stream)
    for second in range(stream.seconds):
        index = np.arange(second * fps, (second + 1) * fps)
        pictures = []
        # Pieces of 16 frames stay in the processor's cache while they are drawn.
        drawn = frames(stream, index / fps, scale, batch=16)
        for i, picture in zip(index, drawn, strict=True):
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(picture, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.SMPTE170M,
                dst_color_range=ColorRange.MPEG,
            )
            frame.pts, frame.time_base = int(i), Fraction(1, fps)
            pictures.append(frame)
        piece = track[None, second * RATE : (second + 1) * RATE].clip(-1, 1)
        samples = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        samples.sample_rate = RATE
        samples.pts, samples.time_base = second * RATE, Fraction(1, RATE)
        yield pictures, samples


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low} .. {high}, got {value}")
