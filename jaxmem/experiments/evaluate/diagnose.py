"""`evaluate diagnose`: what memories keep, against exact attention and planted evidence."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from jaxmem.bound import bind, decoder_of, ids_as_rows
from jaxmem.compiled import Compiled
from jaxmem.decoder.program import Carry, Program, layers_of
from jaxmem.decoder.step import chunk_step
from jaxmem.experiments.evaluate.recall import advance_all, side_by_side
from jaxmem.experiments.evaluate.recall_streams import Streams, StreamsConfig, streams_of
from jaxmem.experiments.stream.config import try_folder
from jaxmem.kv import EMPTY
from jaxmem.memory.base import FeatureMemory, Spec, State, kv_of
from jaxmem.memory.baselines import Full
from jaxmem.memory.by_name import Contestant, contestants, parse_budget, parse_names
from jaxmem.memory.transforms.recorded import Recorded
from jaxmem.models.base import Model
from jaxmem.programs import compile, model_spec
from jaxmem.report import diagnostics as report
from jaxmem.report.diagnostics import Diagnosis, Whole
from jaxmem.report.files import write_json, write_picture
from jaxmem.typing import Array, Params


@dataclass(frozen=True)
class DiagnoseConfig(StreamsConfig):
    """What memories keep: against exact attention, planted evidence, modalities, ages."""

    # Names, comma-separated; not `full`, and none that keeps features.
    memories: str = "omnimem,hermes,keydiff,streammem,snapkv,h2o,recent,uniform,random"
    budget: str = "512KiB"  # Bytes of the state over all layers, the same for all.
    seconds: int = 128  # Length of the streams.
    streams: int = 8  # How many.
    out: Path = Path("out/diagnose")  # Folder of the table, the plot and the JSON.


@dataclass(frozen=True)
class Oracle:
    """Exact attention of the questions of one moment, over all tokens of every stream."""

    whole: list[Whole]  # B streams
    mass: np.ndarray  # [B, n, L, N]


def states_after(model: Model, program: Program, made: Streams) -> Iterator[Carry]:
    """Yield the carries of all streams [B, ...] at every moment."""
    bound = bind(program, model.params)
    moments, count = made.asked.answer.shape[:2]
    carry = side_by_side(program, count)
    advance = advance_all(program)
    for moment in range(moments):
        part = jax.tree.map(lambda x, m=moment: x[m], made.inputs)
        carry = advance(bound, carry, part)
        yield jax.tree.map(lambda x: jnp.array(x, copy=True), carry)  # advance donates its own


@functools.partial(Compiled, static_argnames="program")
def _masses(params: Params, carry: Carry, ids: Array, *, program: Program) -> Array:
    """Return what the questions [B, n, Q] give to every slot: [B, n, L, S]."""

    def one(carry: Carry, ids: Array) -> Array:
        rows = ids_as_rows(params, ids, program=program)
        after, _ = chunk_step(decoder_of(params), program, carry, rows)
        return after.state.aux.received[:, 0]

    return jax.vmap(jax.vmap(one, (None, 0)))(carry, ids)


def oracles(model: Model, config: DiagnoseConfig, made: Streams) -> list[Oracle]:
    """Return the oracle of every moment."""
    spec = model_spec(model, config.chunk_seconds)
    memory = Recorded(Full(config.seconds * model.tokens_per_piece))
    program = compile(model, memory, spec=spec)
    out = []
    for moment, carry in enumerate(states_after(model, program, made)):
        mass = _masses(model.params, carry, made.asked.ids[moment], program=program)
        streams_ = range(mass.shape[0])
        whole = [_whole(model, program, jax.tree.map(lambda x, b=b: x[b], carry)) for b in streams_]
        here = len(whole[0].index)  # streams of one length hold equally many tokens
        out.append(Oracle(whole, np.asarray(mass)[..., :here]))
    return out


def _whole(model: Model, program: Program, carry: Carry) -> Whole:
    """Return all tokens of one stream, from the first layer of `full`."""
    if model.ticks_per_second is None:
        raise ValueError(f"{model.name} has no clock among its positions; diagnose needs one.")
    tokens = jax.tree.map(np.asarray, kv_of(layers_of(program, carry)[0].slots))
    real = tokens.modality[:, 0] != EMPTY
    time = tokens.pos[:, 0, 0] / model.ticks_per_second
    return Whole(tokens.index[real, 0], time[real], tokens.modality[real, 0])


def diagnose(
    model: Model, chosen: Contestant, spec: Spec, made: Streams, oracle: list[Oracle]
) -> Diagnosis:
    """Return what a memory kept of all streams at all moments."""
    program = compile(model, chosen.memory, spec=spec)
    scores, evidence, anywhere, ages, kinds, spread = [], [], [], [], [], []
    for moment, carries in enumerate(states_after(model, program, made)):
        carries, seen = jax.tree.map(np.asarray, carries), oracle[moment]
        seconds = made.seconds * (moment + 1) / len(oracle)
        for b, whole in enumerate(seen.whole):
            states = layers_of(program, jax.tree.map(lambda x, b=b: x[b], carries))
            kept = [_kept(state, whole) for state in states]
            kinds.append([report.count_kinds(whole, k) for k in kept])
            spread.append(np.mean([report.share_ages(whole, k, seconds) for k in kept], axis=0))
            for n, age in enumerate(made.asked.age[moment, b]):
                pairs = zip(seen.mass[b, n], kept, strict=True)
                scores.append([report.against_oracle(mass, k) for mass, k in pairs])
                if age >= 0:
                    held = [report.holds_evidence(whole, k, seconds - age) for k in kept]
                    evidence.append(np.mean(held))
                    anywhere.append(np.any(held))
                    ages.append(age)
    overlap, covered, chance = np.mean(scores, axis=(0, 1))
    mean = np.mean(kinds, axis=0)
    return Diagnosis(
        memory=chosen.name,
        slots=float(mean.sum(1).mean()),
        overlap=float(overlap),
        covered=float(covered),
        chance=float(chance),
        evidence=report.by_age(np.asarray(evidence), np.asarray(ages)),
        anywhere=report.by_age(np.asarray(anywhere), np.asarray(ages)),
        kinds=mean,
        ages=np.mean(spread, axis=0),
    )


def _kept(state: State, whole: Whole) -> np.ndarray:
    """Return which tokens [N] a layer holds, for any of its KV heads."""
    tokens = kv_of(state.slots)
    return report.held(whole, np.asarray(tokens.index)[np.asarray(tokens.modality) != EMPTY])


def _contestant(
    config: DiagnoseConfig, model: Model, name: str, spec: Spec, tokens: int
) -> Contestant:
    """Return the memory of that name within the budget."""
    options = {k: v for k, v in config.options.items() if k == name}
    budget = parse_budget(config.budget)
    try:
        return contestants((name,), options, budget, spec, tokens, presets=model.presets)[0]
    except ValueError as error:
        raise ValueError(f"{name} in --budget {config.budget}: {error}") from error


def run_diagnose(config: DiagnoseConfig, console: Console) -> list[Diagnosis]:
    """Measure, print and write what the named memories keep.

    Raises:
      ValueError: for unknown names, memories without tokens, a budget that is in slots or holds a
        memory not, or an --out that cannot be written to.
    """
    if parse_budget(config.budget).nbytes is None:
        raise ValueError(f"--budget is bytes over all layers (512KiB), got {config.budget!r}.")
    if "full" in parse_names(config.memories):
        raise ValueError("full holds everything, which others are compared with: leave it out.")
    if "bank" in config.options:
        raise ValueError("--bank.* has no effect on diagnose, which looks at what memories hold.")
    model, names = config.model, parse_names(config.memories)
    if not model.decoder.attends:
        raise ValueError(f"no layer of {model.name} attends, so no memory holds any of its tokens.")
    made = streams_of(config, model, config.seconds)
    spec = model_spec(model, config.chunk_seconds)
    tokens = config.seconds * model.tokens_per_piece
    chosen = [_contestant(config, model, name, spec, tokens) for name in names]
    features = [one.name for one in chosen if isinstance(one.memory, FeatureMemory)]
    if features:
        raise ValueError(
            f"{', '.join(features)} keeps features before the decoder and no tokens of layers; "
            "leave it out of --memories."
        )
    try_folder("out", config.out)
    oracle = oracles(model, config, made)
    done = [
        diagnose(model, one, spec, made, oracle)
        for one in track(chosen, "memories", console=console, transient=True)
    ]
    title = f"What is kept of {config.seconds} s streams within {config.budget} (%)"
    console.print(report.table(done, title))
    console.print("ages: layers that hold the evidence (questions with a layer that does)")
    write_json(config.out / "diagnosis.json", [report.as_dict(one) for one in done])
    write_picture(config.out / "diagnosis.png", report.plot(done, config.seconds, title))
    console.print(f"written to {config.out}", markup=False)
    return done
