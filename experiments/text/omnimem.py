"""What OmniMem loses on text: the first tokens, slots, the present, or its exponents.

    python experiments/text/omnimem.py

The first text of the record, no prompt; slots are given, not bytes. Goes on where it was.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp

import jaxmem as jm
from jaxmem.bound import bind
from jaxmem.experiments.evaluate.text_run import run_text
from jaxmem.experiments.evaluate.text_streams import TextConfig, streams_of
from jaxmem.models.text import text_model
from jaxmem.programs import compile, model_spec
from jaxmem.report.files import write_json

FEW, MANY = 154, 383
"""Slots of `omnimem`, which holds layer inputs, too, and of `recent`, at a quarter of the bytes."""


@dataclass(frozen=True)
class FirstHeld(jm.OmniMem):
    """OmniMem that never drops the first four tokens of the stream."""

    def score(self, pool):
        return jnp.where(pool.slots.kv.index[:, 0] < 4, jnp.inf, super().score(pool))


VARIANTS = {
    "omni154": jm.OmniMem(FEW),
    "sinks154": FirstHeld(FEW),
    "sinks154new77": FirstHeld(FEW, newest=FEW // 2),
    "recent154": jm.Recent(FEW),
    "omni383": jm.OmniMem(MANY),
    "omni383new191": jm.OmniMem(MANY, newest=MANY // 2),
    "sinks383": FirstHeld(MANY),
    "sinks383new191": FirstHeld(MANY, newest=MANY // 2),
    "sinks383lam0.5": FirstHeld(MANY, lam=0.5),
    "recent383no_sinks": jm.Recent(MANY, sinks=0),
}


def main() -> None:
    path = Path(__file__).with_suffix(".json")
    done = json.loads(path.read_text()) if path.is_file() else {}
    model = text_model()
    spec = model_spec(model, 128)
    stream = streams_of(TextConfig(tokens=1536, keys=8), model)[0]
    for name, memory in VARIANTS.items():
        if name not in done:
            program = compile(model, memory, spec=spec)
            done[name] = run_text(bind(program, model.params), program, stream.text).result
            write_json(path, done)
        loss, nats = done[name]["loss"], done[name]["nats"]
        print(name, f"{sum(loss) / len(loss):.3f}", f"{sum(nats) / len(nats):.2f}")


if __name__ == "__main__":
    main()
