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

from jaxmem.bound import decoder_of
from jaxmem.decoder.program import Program, init_carry, layers_of, make_program
from jaxmem.decoder.scorer import init_scorer
from jaxmem.experiments.evaluate.recall import question_of
from jaxmem.experiments.evaluate.recall_streams import Streams, streams
from jaxmem.experiments.parsing import refusing
from jaxmem.kv import KV
from jaxmem.loop import stream
from jaxmem.memory.base import kv_of
from jaxmem.memory.baselines import Full
from jaxmem.memory.parts.scored import split
from jaxmem.models.base import Model
from jaxmem.models.scorer import save_scorer, with_scorer
from jaxmem.models.tiny.embedded import Inputs, embedded
from jaxmem.programs import compile
from jaxmem.training.optimizers import schedule
from jaxmem.training.scorer import Examples, Shadow, fit
from jaxmem.typing import Array, Params

CHUNK = 4  # seconds written at once


@dataclass(frozen=True)
class Options:
    """Learn the score by which `retention` chooses."""

    out: Path = Path("runs/scorer.safetensors")  # File of the learned weights.
    weights: Path | None = None  # Of a model like the embedded one; None: the embedded one.
    streams: int = 96  # Training streams.
    seconds: int = 64  # Length of each.
    questions: int = 24  # About each, at four moments.
    # Steps of the optimizer: over streams as full attention makes them, then, round after round,
    # as they are watched with what was learned so far.
    steps: tuple[int, ...] = (200, 100, 100)
    batch: int = 4  # Streams of a step.
    slots: tuple[int, int] = (12, 320)  # A step's budget per layer is drawn between these.
    audio_share: float = 0.5  # Audio's part of a budget.
    rate: float = 0.03  # Peak rate of Adam.
    temperature: float = 1.0  # Of the gate, in units of the score's logarithm.
    difficulty: str = "standard"  # Level of the world.
    seed: int = 0  # Of first weights, order and budgets.

    def __post_init__(self):
        (low, high), steps = self.slots, min(self.steps, default=0)
        if not 1 < low <= high or not 1 <= self.batch <= self.streams or steps < 1:
            raise ValueError(
                "needs 1 < slots[0] <= slots[1], 1 <= batch <= streams and steps of at least 1, "
                f"got slots={self.slots}, batch={self.batch}, streams={self.streams}, "
                f"steps={self.steps}."
            )


def asked_of(model: Model, made: Streams, program: Program) -> Examples:
    """Return the questions about streams [B, ...]; their tokens are None."""
    moments, count = made.asked.answer.shape[:2]
    ids, answer = (x.swapaxes(0, 1) for x in (made.asked.ids, made.asked.answer))  # [B, M, n, ...]
    ids = ids[..., : np.max((ids >= 0).sum(-1))]
    many = jax.vmap(jax.vmap(jax.vmap(lambda ids: question_of(model.params, ids, program=program))))
    last = np.arange(ids.shape[-1]) == (ids >= 0).sum(-1, keepdims=True) - 1
    share = np.arange(1, moments + 1)
    step = np.eye(program.spec.axes, dtype=np.int32)[0]
    ticks = round(made.seconds * (model.ticks_per_second or 1.0))
    spread = lambda x: np.broadcast_to(x, (count, *x.shape))
    return Examples(
        tokens=None,  # type: ignore[arg-type]
        seen=spread((made.seconds * model.tokens_per_piece * share // moments).astype(np.int32)),
        begin=spread((ticks * share // moments)[:, None] * step),
        rows=jax.device_get(jax.jit(many)(jnp.asarray(ids))),
        target=np.where(last, answer[..., None], -1).astype(np.int32),
    )


def tokens_of(
    model: Model, made: Streams, program: Program, quotas: Iterator[np.ndarray] | None = None
) -> KV:
    """Return the tokens of streams [B, L, S], watched in the parts of a budget if there are any."""
    inputs = jax.tree.map(lambda x: np.concatenate(list(x), axis=1), made.inputs)

    @jax.jit
    def watched(params: Params, inputs: Inputs, quotas: Array | None) -> KV:
        carry = init_carry(program)
        if quotas is not None:
            aux = carry.state.aux
            aux = aux._replace(quotas=jnp.broadcast_to(quotas, aux.quotas.shape))
            carry = carry._replace(state=carry.state._replace(aux=aux))
        carry = stream(params, carry, inputs, program=program)
        kept = [kv_of(state.slots) for state in layers_of(program, carry)]
        return jax.tree.map(lambda *x: jnp.stack(x), *kept)

    def one(i: int) -> KV:
        mine = jax.tree.map(lambda x: x[i], inputs)
        return jax.device_get(watched(model.params, mine, next(quotas) if quotas else None))

    each = [one(i) for i in range(made.asked.answer.shape[1])]
    return jax.tree.map(lambda *x: np.stack(x), *each)


def budgets(options: Options, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield parts of budgets, evenly drawn by their logarithms."""
    while True:
        slots = round(float(np.exp(rng.uniform(*np.log(options.slots)))))
        yield np.asarray(split(slots, options.audio_share), np.int32)


def drawn(
    options: Options, examples: Examples, steps: int, rng: np.random.Generator
) -> Iterator[tuple[Examples, np.ndarray]]:
    """Yield the streams and the budget of every step."""
    for _, quotas in zip(range(steps), budgets(options, rng), strict=False):
        chosen = np.sort(rng.choice(options.streams, options.batch, replace=False))
        yield jax.tree.map(lambda x, at=chosen: x[at], examples), quotas


def learn(options: Options, console: Console) -> None:
    """Learn a scorer and write it."""
    model, rng = embedded(options.weights), np.random.default_rng(options.seed)
    scorer = init_scorer(model.decoder, jax.random.key(options.seed))
    more = {"moments": 4, "chunk_seconds": CHUNK, "difficulty": options.difficulty}
    more |= {"seconds": options.seconds, "questions": options.questions, "split": "train"}
    made = streams(model, count=options.streams, **more)
    tokens = options.seconds * model.tokens_per_piece
    full = compile(model, Full(tokens), chunk_pieces=CHUNK)
    sizes = {"audio_share": options.audio_share, "shown": options.slots[1]}
    shadow = make_program(model.decoder, Shadow(tokens, **sizes), full.spec, encode=model.encode)
    examples, done, recent = asked_of(model, made, full), 0, []

    def report(step: int, loss: float, right: float) -> None:
        recent.append((loss, right))
        if step % 50 == 0:
            mean = np.mean(recent[-50:], axis=0)
            console.print(f"step {done + step}: loss {mean[0]:.3f}, right {100 * mean[1]:.1f} %")

    for i, steps in enumerate(options.steps):
        with_it = with_scorer(model, scorer)
        program, quotas = (shadow, budgets(options, rng)) if i else (full, None)
        held = tokens_of(with_it, made, program, quotas)
        given = drawn(options, examples._replace(tokens=held), steps, rng)
        optimizer = optax.adam(schedule(options.rate / (1 + i), steps, warmup=20))
        decoder, how = decoder_of(model.params), {"temperature": options.temperature}
        scorer = fit(scorer, decoder, model.decoder, given, optimizer, report=report, **how)
        done += steps
    save_scorer(options.out, scorer)
    console.print(f"scorer: {options.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Learn a scorer; return the exit status (0, or 2 for bad arguments)."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    return refusing(lambda: learn(options, Console()))


if __name__ == "__main__":
    raise SystemExit(main())
