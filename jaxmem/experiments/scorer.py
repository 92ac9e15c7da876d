"""Learn the score by which `retention` chooses, for the embedded model, which stays as it is.

python -m jaxmem.experiments.scorer --out runs/scorer.safetensors
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from jaxmem.bound import decoder_of, ids_as_rows
from jaxmem.decoder.program import Program, init_carry, layers_of
from jaxmem.decoder.scorer import init_scorer
from jaxmem.experiments.evaluate.recall_streams import Streams, streams
from jaxmem.experiments.parsing import refusing, shown
from jaxmem.kv import KV
from jaxmem.loop import stream
from jaxmem.memory.base import kv_of
from jaxmem.memory.baselines import Full
from jaxmem.memory.parts.scored import split
from jaxmem.models.base import Model
from jaxmem.models.scorer import save_scorer
from jaxmem.models.tiny.embedded import Inputs, embedded
from jaxmem.programs import compile
from jaxmem.training.optimizers import schedule
from jaxmem.training.scorer import Examples, fit
from jaxmem.typing import Params

CHUNK = 4  # seconds written at once


@dataclass(frozen=True)
class Options:
    """Learn the score by which `retention` chooses."""

    out: Path = Path("runs/scorer.safetensors")  # File of the learned weights.
    weights: Path | None = None  # Of a model like the embedded one; None: the embedded one.
    streams: int = 96  # Training streams.
    seconds: int = 64  # Length of each.
    questions: int = 24  # About each, at four moments.
    steps: int = 300  # Of the optimizer.
    batch: int = 4  # Streams of a step.
    slots: tuple[int, int] = (12, 320)  # A step's budget per layer is drawn between these.
    audio_share: float = 0.5  # Audio's part of a budget.
    rate: float = 0.03  # Peak rate of Adam.
    temperature: float = 1.0  # Of the gate, in units of the score's logarithm.
    difficulty: str = "standard"  # Level of the world.
    seed: int = 0  # Of first weights, order and budgets.

    def __post_init__(self):
        low, high = self.slots
        if not 1 < low <= high or not 1 <= self.batch <= self.streams or self.steps < 1:
            raise ValueError(
                "needs 1 < slots[0] <= slots[1], 1 <= batch <= streams and steps of at least 1, "
                f"got slots={self.slots}, batch={self.batch}, streams={self.streams}, "
                f"steps={self.steps}."
            )


def examples_of(model: Model, made: Streams) -> Examples:
    """Return streams with their questions [B, ...]."""
    moments, count = made.asked.answer.shape[:2]
    tokens = made.seconds * model.tokens_per_piece
    program = compile(model, Full(tokens), chunk_pieces=CHUNK)
    ids, answer = (x.swapaxes(0, 1) for x in (made.asked.ids, made.asked.answer))  # [B, M, n, ...]
    ids = ids[..., : np.max((ids >= 0).sum(-1))]
    many = jax.vmap(jax.vmap(jax.vmap(lambda ids: ids_as_rows(model.params, ids, program=program))))
    last = np.arange(ids.shape[-1]) == (ids >= 0).sum(-1, keepdims=True) - 1
    share = np.arange(1, moments + 1)
    clock = np.eye(program.spec.axes, dtype=np.int32)[0]
    ticks = round(made.seconds * (model.ticks_per_second or 1.0))
    spread = lambda x: np.broadcast_to(x, (count, *x.shape))
    return Examples(
        tokens=watched(model, made, program),
        seen=spread((tokens * share // moments).astype(np.int32)),
        begin=spread((ticks * share // moments)[:, None] * clock),
        rows=jax.device_get(jax.jit(many)(jnp.asarray(ids))),
        target=np.where(last, answer[..., None], -1).astype(np.int32),
    )


def watched(model: Model, made: Streams, program: Program) -> KV:
    """Return all tokens of streams, [B, L, S]."""

    @jax.jit
    def one(params: Params, inputs: Inputs) -> KV:
        carry = stream(params, init_carry(program), inputs, program=program)
        kept = [kv_of(state.slots) for state in layers_of(program, carry)]
        return jax.tree.map(lambda *x: jnp.stack(x), *kept)

    inputs = jax.tree.map(lambda x: np.concatenate(list(x), axis=1), made.inputs)
    count = made.asked.answer.shape[1]
    each = [one(model.params, jax.tree.map(lambda x, i=i: x[i], inputs)) for i in range(count)]
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(each))


def drawn(options: Options, examples: Examples) -> Iterator[tuple[Examples, np.ndarray]]:
    """Yield the streams and the parts of the budget of every step."""
    rng = np.random.default_rng(options.seed)
    for _ in range(options.steps):
        chosen = np.sort(rng.choice(options.streams, options.batch, replace=False))
        slots = round(float(np.exp(rng.uniform(*np.log(options.slots)))))
        quotas = np.asarray(split(slots, options.audio_share), np.int32)
        yield jax.tree.map(lambda x, at=chosen: x[at], examples), quotas


def learn(options: Options, console: Console) -> None:
    """Learn a scorer and write it."""
    model, recent = embedded(options.weights), []
    made = streams(
        model,
        count=options.streams,
        seconds=options.seconds,
        moments=4,
        questions=options.questions,
        chunk_seconds=CHUNK,
        difficulty=options.difficulty,
        split="train",
    )

    def report(step: int, loss: float, right: float) -> None:
        recent.append((loss, right))
        if step % 50 == 0 or step == options.steps:
            mean = np.mean(recent[-50:], axis=0)
            console.print(f"step {step}: loss {mean[0]:.3f}, right {100 * mean[1]:.1f} %")

    scorer = fit(
        init_scorer(model.decoder, jax.random.key(options.seed)),
        decoder_of(model.params),
        model.decoder,
        drawn(options, examples_of(model, made)),
        optax.adam(schedule(options.rate, options.steps, warmup=20)),
        temperature=options.temperature,
        report=report,
    )
    save_scorer(options.out, scorer)
    console.print(f"scorer: {options.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Learn a scorer; return the exit status (0, or 2 for bad arguments)."""
    options = tyro.cli(Options, args=argv, **shown("scorer", __doc__))
    return refusing(lambda: learn(options, Console()))


if __name__ == "__main__":
    raise SystemExit(main())
