"""The config of the main job and what its values must be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal

import tyro

from jaxmem.decoder.sampling import Sampling
from jaxmem.experiments.devices import mesh_of, spread
from jaxmem.experiments.memories import MemoryOptions
from jaxmem.memory.by_name import parse_names
from jaxmem.memory.options import NAMES, check_options
from jaxmem.models.tiny.embedded import is_embedded
from jaxmem.resuming import EVERY
from jaxmem.saves import check_target

Append = tyro.conf.UseAppendAction
Flag = tyro.conf.FlagCreatePairsOff
Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="")]
Whole = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Dtype = Annotated[Literal["bfloat16", "float16", "float32"], tyro.conf.arg(metavar="TYPE")]

MOST_SECONDS = 1e9
"""Of any option in seconds: 30 years."""
MOST_NEW = 100_000
"""Tokens of an answer: a book. All of them have room on the device before the first comes."""
TRIED_BYTES = 1 << 20
"""Written to a folder to see that it can be: more than a report."""
OF_CHECKPOINTS = ("dtype", "fps", "max_new", "max_pixels", "piece_seconds")
"""Options that an embedded model does not have, where a command takes either."""


@dataclass(frozen=True)
class StreamConfig:
    """Stream a video with sound through a memory of fixed size, and ask about it.
    A memory's own options are --NAME.OPTION, see --help-memory NAME. The guide is docs/stream.md.
    """

    # File, address, device, "-" for standard input; else a synthetic video.
    video: Text = None
    format: Text = None  # Of --video, where its content does not tell: v4l2, lavfi, rawvideo...
    # KEY=VALUE, passed on to the device or demuxer of --video.
    option: Annotated[tuple[str, ...], Append] = ()
    timeout: float = 10.0  # Seconds that a --video that is no file may be silent.
    reconnect: Annotated[bool, Flag] = False  # Open a lost address or device again.
    follow: Annotated[bool, Flag] = False  # Wait at the end of the file for more.
    ask: Annotated[tuple[str, ...], Append] = ()  # "TIME: question"; TIME: seconds, mm:ss or end.
    memory: str = "omnimem"  # What is kept; --bank.OPTION puts a bank around it.
    budget: str = "96"  # Slots per layer (96), or bytes over all layers (64KiB).
    compare: str = ""  # Memories side by side, comma-separated, in equal bytes.
    # New pictures a second (with --model: 1), at most what the model takes.
    fps: Number = None
    seconds: Number = None  # Length of the synthetic video (240), or of --video (all).
    chunk_seconds: Number = None  # Seconds written at once; one piece of the model.
    seed: int = 0  # Which synthetic video, and of drawn answers.
    questions: int = 24  # How many about the synthetic video.
    weights: File = None  # Of a model like the embedded one, or its name.
    # Checkpoint for --video: directory or organisation/name on Hugging Face.
    model: Text = None
    scorer: File = None  # Learned weights of --memory retention.
    adapter: Text = None  # LoRA for --model, likewise; else of `jaxmem finetune`.
    dtype: Dtype = "bfloat16"  # Of --model: bfloat16, float16 or float32.
    max_new: int = 128  # Tokens of an answer of --model, at most.
    # Draw answers as the checkpoint says, not greedily.
    sample: Annotated[bool, Flag] = False
    temperature: Number = None  # Draw answers with this temperature (1).
    top_p: Number = None  # Draw from the smallest set of this probability (1).
    top_k: Whole = None  # Draw from so many of the likeliest; 0: all (0).
    # Divide logits of tokens of prompt and answer by it (1). Alone: greedy.
    repetition_penalty: Number = None
    max_pixels: Whole = None  # Of a frame of --model, at most; as the checkpoint says.
    piece_seconds: Number = None  # Of video-SALMONN: length of a piece (30); it answers sooner.
    out: Path = Path("out/stream")  # Folder of report, pictures and synthetic video.
    json: Annotated[bool, Flag] = False  # Report on standard output, the rest on error.
    checkpoint: File = None  # Folder that the stream saves itself to, complete at any moment.
    every: float = EVERY  # Seconds of stream between two saves.
    resume: File = None  # Go on from such a folder.
    mesh: Text = None  # Several devices: model=N cuts heads over N, data=N spreads --compare.
    prompt: bool = True  # Take questions from the terminal.
    config: File = None  # Python file whose get_config() gives values to start from.
    bits: Literal[4, 8] | None = None  # Store keys and values in so many bits.
    memories: MemoryOptions = field(default_factory=dict)


def check(config: StreamConfig) -> None:
    """Refuse numbers that make no sense, and make the folder that is written to.

    Raises:
      ValueError: naming the option, its value and what it may be.
    """
    numbers = ("seconds", "fps", "chunk_seconds", "max_pixels", "piece_seconds", "timeout", "every")
    for name in numbers:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    for name in ("seconds", "chunk_seconds", "every"):
        value = getattr(config, name)
        if value is not None and value > MOST_SECONDS:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at most {MOST_SECONDS:g} s, got {value:g}.")
    for name, options in config.memories.items():
        if name not in (*NAMES, "bank"):
            raise ValueError(f"unknown memory {name!r}: use {', '.join(NAMES)}, or bank.")
        check_options(name, {key: None for key in options})
    if config.model is not None and config.weights is not None:
        raise ValueError("--model and --weights are two models; give one of them.")
    if config.model is not None and config.video is None:
        raise ValueError(
            f"--model {config.model} knows nothing of the synthetic world: give it a --video FILE."
        )
    mesh = mesh_of(config.mesh)
    spread(mesh, len(parse_names(config.compare or config.memory)))
    if mesh is not None and mesh.is_multi_process and (config.checkpoint or config.resume):
        raise ValueError(
            "--checkpoint and --resume are for the devices of one host; leave them out."
        )
    _refuse_idle(config)
    media_options(config)
    if not 1 <= config.max_new <= MOST_NEW:
        raise ValueError(f"--max-new must be from 1 to {MOST_NEW:,}, got {config.max_new}.")
    sampling_of(replace(config, sample=False), None)
    for name in ("seed", "questions"):
        if getattr(config, name) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(config, name)}.")
    try_folder("out", config.out)
    for file in (config.out / "report.json", *config.out.glob("*.png")):
        if file.is_dir():
            raise ValueError(f"--out {config.out}: {file.name} is a folder there; remove it.")
    if config.checkpoint is not None:
        check_target(config.checkpoint, replace=config.resume is not None)
        try_folder("checkpoint", config.checkpoint)
    if config.video is None and config.seconds is not None and config.seconds % 1:
        raise ValueError(
            f"a synthetic video has a whole number of seconds, got --seconds {config.seconds:g}."
        )


def refuse_of_checkpoints(config: Any) -> None:
    """Refuse options that the embedded model of a command's config leaves without an effect.

    Raises:
      ValueError: naming the option.
    """
    if not is_embedded(config.model):
        return
    for name in OF_CHECKPOINTS:
        if getattr(config, name) != getattr(type(config), name):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} has no effect on an embedded model; leave it out.")


def of_checkpoint(config: Any) -> dict[str, Any]:
    """Return the options of a checkpoint that a command's config gives, as `load` takes them."""
    given = {name: getattr(config, name) for name in OF_CHECKPOINTS}
    return {name: value for name, value in given.items() if value is not None}


def try_folder(name: str, folder: Path) -> None:
    """Make a folder and write to it, so that nothing is streamed that could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(TRIED_BYTES))
            file.flush()
    except OSError as error:
        raise ValueError(f"--{name} {folder} is no folder to write to: {error}") from error


def _refuse_idle(config: StreamConfig) -> None:
    """Refuse options that the others leave without an effect."""
    synthetic = (config.video is None, "without --video")
    names = parse_names(config.compare or config.memory)
    idle = {
        **dict.fromkeys(("format", "option", "timeout", "reconnect", "follow"), synthetic),
        **dict.fromkeys(
            ("dtype", "max_new", "max_pixels", "piece_seconds"),
            (config.model is None, "without --model"),
        ),
        "questions": (config.video is not None or bool(config.ask), "beside --video or --ask"),
        "memory": (bool(config.compare), "beside --compare"),
        "scorer": ("retention" not in names, "without --memory retention"),
        "every": (config.checkpoint is None, "without --checkpoint"),
    }
    for name, (unused, why) in idle.items():
        if unused and getattr(config, name) != getattr(StreamConfig, name):
            raise ValueError(f"--{name.replace('_', '-')} has no effect {why}; leave it out.")


def sampling_of(config: StreamConfig, own: Sampling | None) -> Sampling | None:
    """Return how answers are drawn; None: greedily. The checkpoint's `own` counts with `--sample`.

    Raises:
      ValueError: if `--sample` finds nothing, or a number is outside its range.
    """
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if not (config.sample or given):
        return None
    if config.sample and own is None and "temperature" not in given:
        raise ValueError(
            "--sample: the model says nothing of sampling (do_sample in generation_config.json); "
            "give a --temperature."
        )
    greedy = not config.sample and set(given) == {"repetition_penalty"}
    start = own if config.sample and own is not None else Sampling(0.0 if greedy else 1.0)
    return replace(start, **given)


def media_options(config: StreamConfig) -> dict[str, Any]:
    """Return what `open_media` is told of the source.

    Raises:
      ValueError: if an `--option` is not KEY=VALUE.
    """
    pairs = [text.partition("=") for text in config.option]
    for text, (key, equals, _) in zip(config.option, pairs, strict=True):
        if not (key and equals):
            raise ValueError(
                f"--option is KEY=VALUE, for example video_size=640x480; got {text!r}."
            )
    names = ("format", "timeout", "reconnect", "follow")
    given = {key: value for key, _, value in pairs}
    return {"options": given or None} | {name: getattr(config, name) for name in names}
