"""Which tokens MoM's router sends to which memory: of every layer, by what a token shows.

    python experiments/states_against_slots/shares.py runs/mom.safetensors --out shares.json

Test streams of the synthetic world (64 s, 8 of them) pass through a model that `train --mixer mom`
made. A token shows a shape, the background, a sound that is asked about, or none; the table says
which part of each kind every memory gets. By chance it would be `chosen` of `memories`.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxmem.bound import bind
from jaxmem.data.world import synthetic
from jaxmem.experiments.evaluate.recall_streams import streams
from jaxmem.loop import start, stream
from jaxmem.memory.baselines import Full
from jaxmem.mixers.mom import MoM
from jaxmem.models.base import Model
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import compile
from jaxmem.report.commit import made_by
from jaxmem.report.files import write_json

KINDS = ("background", "a shape", "no sound", "a sound")
CHUNK = 4  # seconds
told: list[np.ndarray] = []  # the shares of every chunk, layer after layer


@dataclass(frozen=True)
class Telling(MoM):
    """`MoM` that tells the host what its router says."""

    def shares(self, weights, x):
        """See `MoM.shares`."""
        found = super().shares(weights, x)
        jax.debug.callback(lambda s: told.append(np.asarray(s)), found, ordered=True)
        return found


def telling(model: Model) -> Model:
    """Return a model whose mixers tell their shares."""
    mixers = tuple(
        Telling(**{k: getattr(m, k) for k in m.__dataclass_fields__}) if isinstance(m, MoM) else m
        for m in model.decoder.mixers
    )
    return model._replace(decoder=replace(model.decoder, mixers=mixers))


def kinds(model: Model, world: synthetic.Stream) -> np.ndarray:
    """Return what every token of a stream shows, an index into `KINDS` [seconds, tokens]."""
    assert model.frame is not None
    rows, columns = model.frame
    out = np.zeros((world.seconds, model.tokens_per_piece), int)
    events = world.events
    for second in range(world.seconds):
        shown = np.zeros((rows, columns), int)
        for i in range(len(events.start)):
            for row, column in synthetic.patches(events, i, second):
                shown[row, column] = 1  # a patch of the world is a token
        heard = np.any((events.sound >= 0) & (events.start <= second) & (second < events.end))
        out[second, : rows * columns] = shown.reshape(-1)
        out[second, rows * columns :] = 2 + heard
    return out


def measured(model: Model, count: int, seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return shares [layers, tokens, memories] and kinds [tokens] of all streams."""
    program = compile(telling(model), Full(seconds * model.tokens_per_piece), chunk_pieces=CHUNK)
    bound = bind(program, model.params)
    asked = {"moments": 1, "questions": 1, "chunk_seconds": CHUNK, "difficulty": "standard"}
    made = streams(model, count=count, seconds=seconds, **asked)
    layers = sum(isinstance(m, MoM) for m in model.decoder.mixers)
    shares, shown = [], []
    for b in range(count):
        told.clear()
        chunks = jax.tree.map(lambda x, b=b: x[0, b], made.inputs)
        jax.block_until_ready(stream(bound, start(program, bound), chunks, program=program))
        jax.effects_barrier()
        tokens = CHUNK * model.tokens_per_piece
        each = np.stack(told).reshape(-1, layers, tokens, told[0].shape[-1])
        shares.append(each.swapaxes(0, 1).reshape(layers, -1, each.shape[-1]))
        seed = synthetic.split_seed("test", b)
        world = synthetic.world(seed, seconds, synthetic.level("standard"))
        shown.append(kinds(model, world).reshape(-1))
    return np.concatenate(shares, 1), np.concatenate(shown)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=64)
    parser.add_argument("--out", type=Path)
    config = parser.parse_args()
    model = embedded(config.weights)
    shares, shown = measured(model, config.streams, config.seconds)
    mixer = next(m for m in model.decoder.mixers if isinstance(m, MoM))
    table, found = Table(title="% of a kind's tokens that a memory gets"), {}
    for name in ("layer", "kind", "tokens", *(f"memory {m}" for m in range(mixer.memories))):
        table.add_column(name)
    for layer, each in enumerate(shares[..., : mixer.memories]):
        for kind, name in enumerate(KINDS):
            sent = (each[shown == kind] > 0).mean(0)
            found[f"layer {layer}, {name}"] = [round(float(x), 4) for x in sent]
            cells = (f"{100 * x:.0f}" for x in sent)
            table.add_row(str(layer), name, str(int((shown == kind).sum())), *cells)
    Console().print(table)
    if config.out:
        write_json(config.out, {**made_by(), "streams": config.streams, "sent": found})


if __name__ == "__main__":
    main()
