"""The config of the main job and what its values must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxmem.decoder.sampling import Sampling

Append = tyro.conf.UseAppendAction
Flag = tyro.conf.FlagCreatePairsOff


@dataclass(frozen=True)
class StreamConfig:
    """Stream a video with sound through a memory of fixed size, and ask about it."""

    video: str | None = None
    """File, address or device to stream; "-" is standard input. None: a held-out synthetic video
    is rendered, with questions."""
    ask: Annotated[tuple[str, ...], Append] = ()
    """"TIME: question", TIME being seconds, mm:ss, hh:mm:ss or "end"."""
    memory: str = "omnimem"
    """What is kept; set it with --NAME.OPTION, see --help-memory NAME."""
    budget: str = "96"
    """Slots per layer (96), or bytes over all layers (64KiB)."""
    compare: str = ""
    """Memories to run side by side, comma-separated, all within the bytes of the first one."""
    fps: float | None = None
    """New pictures per second, at most what the model takes (each is held until the next). With
    --model: what it takes (1)."""
    seconds: float | None = None
    """Length of the synthetic video (240), or how much of --video to stream (all)."""
    chunk_seconds: float | None = None
    """Seconds written at once; None: one piece of the model's format."""
    seed: int = 0
    """Which held-out synthetic video; and what answers are drawn with."""
    questions: int = 24
    """Number of questions about the synthetic video."""
    weights: Path | None = None
    """Weights of a model like the embedded one; None: the embedded one."""
    model: str | None = None
    """Checkpoint to stream --video through: a directory, or organisation/name on Hugging Face;
    None: the embedded model."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the weights of --model."""
    max_new: int = 128
    """Tokens of an answer of --model, at most."""
    sample: Annotated[bool, Flag] = False
    """Draw answers as the checkpoint's generation_config.json says. Without this and the next four
    they are greedy."""
    temperature: float | None = None
    """Draw answers with this temperature (1)."""
    top_p: float | None = None
    """Draw each token from the smallest set whose probability reaches this (1)."""
    top_k: int | None = None
    """Draw each token from so many of the likeliest; 0: from all (0)."""
    repetition_penalty: float | None = None
    """Divide the logits of tokens in the prompt's text and the answer by this (1). Alone it leaves
    answers greedy."""
    max_pixels: int | None = None
    """Pixels of a frame of --model, at most; None: as the checkpoint's settings say."""
    out: Path = Path("out/stream")
    """Folder for the report, the pictures and the synthetic video."""
    json: Annotated[bool, Flag] = False
    """Print the report as JSON to standard output, and everything else to standard error."""
    prompt: bool = True
    """Take questions from the terminal, while the stream runs and when it is over, if there is a
    terminal."""
    config: Path | None = None
    """Python file whose get_config() returns the values to start from."""
    bits: Literal[4, 8] | None = None
    """Store keys and values of every memory but `full` in so many bits."""
    memories: Annotated[Mapping[str, Mapping[str, Any]], tyro.conf.Suppress] = field(
        default_factory=dict
    )
    """Options of memories by name, as --NAME.OPTION sets them, and of "bank"."""


def check(config: StreamConfig) -> None:
    """Refuse numbers that make no sense, and make the folder that is written to.

    Raises:
      ValueError: naming the option, its value and what it may be.
    """
    for name in ("seconds", "fps", "chunk_seconds", "max_pixels"):
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    if config.model is not None and config.video is None:
        raise ValueError(
            f"--model {config.model} knows nothing of the synthetic world: give it a --video FILE."
        )
    if config.model is not None and config.weights is not None:
        raise ValueError("--model and --weights are two models; give one of them.")
    if config.max_new < 1:
        raise ValueError(f"--max-new must be at least 1, got {config.max_new}.")
    _check_idle(config)
    sampling_of(replace(config, sample=False), None)
    for name in ("seed", "questions"):
        if getattr(config, name) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(config, name)}.")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {config.out} is no folder to write to: {error}") from error
    if config.video is None and config.seconds is not None and config.seconds % 1:
        raise ValueError(
            f"a synthetic video has a whole number of seconds, got --seconds {config.seconds:g}."
        )


def _check_idle(config: StreamConfig) -> None:
    """Refuse options of a checkpoint where there is none."""
    usual = StreamConfig()
    for name in ("max_new", "dtype", "max_pixels"):
        if config.model is None and getattr(config, name) != getattr(usual, name):
            raise ValueError(f"--{name.replace('_', '-')} has no effect without --model.")


def sampling_of(config: StreamConfig, own: Sampling | None) -> Sampling | None:
    """Return how answers are drawn; None: greedily.

    Args:
      config: of the run.
      own: what the checkpoint says, which counts only with `--sample`.

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


def whole(name: str, seconds: float, piece: float) -> int:
    """Return how many pieces `seconds` are.

    Raises:
      ValueError: if that is no whole number of at least 1.
    """
    count = round(seconds / piece)
    if count < 1 or abs(count * piece - seconds) > 1e-6:
        raise ValueError(
            f"--{name} must be a multiple of the model's piece of {piece:g} s, got {seconds:g}."
        )
    return count
