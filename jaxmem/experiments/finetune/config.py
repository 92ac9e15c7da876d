"""What decides a fine-tuning run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxmem.experiments.evaluate.recall_streams import StreamsConfig
from jaxmem.experiments.memories import MemoryOptions
from jaxmem.training.differentiable import Mode, Selection


@dataclass(frozen=True)
class FinetuneConfig:
    """Train the embedded model with a memory in the loop; measure it before and after.

    A memory's own options are --NAME.OPTION, as in the stream command.
    """

    memory: str = "omnimem"  # In the loop; any name of --help-memory.
    budget: str = "512KiB"  # The largest: bytes over all layers, or slots per layer (96).
    # Where gradients go: through (everywhere, back to the first chunk), read (questions alone), or
    # published (OmniMem's cut).
    mode: Mode = "through"
    # Whether what the memory chooses has a gradient by its scores (soft), or none (hard).
    selection: Selection = "hard"
    weights: Literal["adapter", "all"] = "adapter"  # What trains: LoRA, or the whole decoder.
    rank: int = 16  # Of the adapters; alpha is twice that.
    rate: float | None = None  # Peak rate of Adam. Default: 4e-3, with --weights all 1e-3.
    steps: int = 150  # Of the optimizer.
    minutes: float | None = None  # End after so many, at a checkpoint. Default: after the steps.
    streams: int = 4  # Of a step.
    seconds: int = 128  # Length of a training stream.
    moments: int = 8  # Times at which it is asked, evenly spaced.
    questions: int = 12  # At each of them.
    chunk_seconds: int = 4  # Seconds written at once.
    difficulty: str = "standard"  # Level of the world.
    # Parts of the budget; each stream's is drawn among them.
    shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    # One step in so many has a memory that holds the whole stream; 0: none. Default: 8 with
    # --weights all, else 0.
    full_every: int | None = None
    # Checkpoint so many segments of chunks between two moments, too. Default: chunks alone.
    segments: int | None = None
    base: Path | None = None  # A model like the embedded one, or its name; None: the embedded one.
    scorer: Path | None = None  # Learned weights of `retention`; None: the base's own.
    seed: int = 0  # Of adapters, streams and budgets.
    out: Path = Path("runs/finetune")  # Folder of checkpoints, metrics, weights and table.
    resume: bool = False  # Go on with the run in `out`.
    other_recipe: bool = False  # With --resume: although its recipe was another one.
    save_every: int = 25  # Steps between two checkpoints.
    # Held-out streams of the table: their lengths, number and questions. No length: no table.
    test_seconds: tuple[int, ...] = (256,)
    test_streams: int = 24
    test_questions: int = 48
    options: MemoryOptions = field(default_factory=dict)

    @property
    def peak(self) -> float:
        """Return the peak rate."""
        return self.rate or (4e-3 if self.weights == "adapter" else 1e-3)

    @property
    def full_steps(self) -> int:
        """Return how often a step has full attention; 0: never."""
        return (8 if self.weights == "all" else 0) if self.full_every is None else self.full_every

    @property
    def tests(self) -> StreamsConfig:
        """Return how the held-out streams are made: those of `evaluate recall`."""
        return StreamsConfig(
            streams=self.test_streams,
            questions=self.test_questions,
            chunk_seconds=self.chunk_seconds,
            difficulty=self.difficulty,
        )

    def recipe(self, base: str) -> dict[str, Any]:
        """Return what decides the result, as plain data; `base` is a hash of the first weights."""
        given = {"rate": self.peak, "full_every": self.full_steps, "base": base}
        found = asdict(self) | given
        left_out = ("out", "resume", "other_recipe", "minutes", "save_every")
        return {k: v for k, v in found.items() if k not in left_out and not k.startswith("test_")}


def check(config: FinetuneConfig) -> None:
    """Refuse numbers that make no sense.

    Raises:
      ValueError: naming the option, its value and what it may be.
    """
    for name in ("rank", "steps", "streams", "seconds", "moments", "questions", "save_every"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1, got {getattr(config, name)}.")
    for name in ("rate", "minutes", "segments"):
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} must be positive, got {value}.")
    if config.full_steps < 0 or config.seed < 0:
        raise ValueError("--full-every and --seed must not be negative.")
    if not config.shares or not all(0 < share <= 1 for share in config.shares):
        raise ValueError(
            f"--shares are parts of the budget above 0 and at most 1, got {config.shares}."
        )
    if config.rank != FinetuneConfig.rank and config.weights == "all":
        raise ValueError("--rank has no effect with --weights all; leave it out.")
    if config.other_recipe and not config.resume:
        raise ValueError("--other-recipe has no effect without --resume; leave it out.")
    idle = set(config.options) - {config.memory.replace("-", "_"), "bank"}
    if idle:
        raise ValueError(f"--{min(idle)}.* has no effect: --memory is {config.memory}.")
