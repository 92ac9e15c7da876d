"""How far every layer of a pretrained decoder of text looks back: a figure and its numbers.

    python experiments/claims/depth.py --texts 4

SmolLM2 135M (extras real and hf) reads 1,536 tokens of prose with everything kept. The attention of
the last 128 tokens is added up by the age of what they look at, over heads.
"""

import argparse
import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxmem as jm
from jaxmem.bound import bind
from jaxmem.decoder.program import layers_of
from jaxmem.experiments.evaluate.text_run import run_text
from jaxmem.experiments.evaluate.text_streams import TextConfig, streams_of
from jaxmem.models.text import text_model
from jaxmem.programs import compile, model_spec
from jaxmem.report.commit import made_by
from jaxmem.report.files import write_json, write_picture

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "depth.png"
TOKENS, CHUNK = 1536, 128
AGES = {
    "the chunk itself": (0, 128),
    "128 to 255": (128, 256),
    "256 to 511": (256, 512),
    "512 and more": (512, TOKENS - 4),
    "the first four tokens": (TOKENS - 4, TOKENS),
}
"""Tokens back from the end of the text."""


def shares(received: np.ndarray) -> dict[str, float]:
    """Return the share of a chunk's attention by age; received [Gm, S] of what came before it."""
    mass = received.mean(axis=0) / CHUNK
    before = TOKENS - CHUNK
    out = {
        name: float(mass[max(TOKENS - b, 0) : TOKENS - a].sum()) for name, (a, b) in AGES.items()
    }
    return out | {"the chunk itself": float(1 - mass[:before].sum())}


def picture(mean: np.ndarray) -> plt.Figure:
    """Return a bar for every layer; mean [L, ages] are shares."""
    figure, axes = plt.subplots(figsize=(8.5, 3.5), layout="constrained")
    layers, bottom = np.arange(mean.shape[0]), np.zeros(mean.shape[0])
    for name, column in zip(AGES, mean.T, strict=True):
        axes.bar(layers, 100 * column, bottom=bottom, label=name, width=0.9)
        bottom += 100 * column
    axes.set(xlabel="layer", ylabel="share of attention, %", title=f"SmolLM2 135M, {TOKENS} tokens")
    figure.legend(title="tokens back", fontsize=8, loc="outside right upper")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    model = text_model()
    program = compile(model, jm.Recorded(jm.Full(TOKENS)), spec=model_spec(model, CHUNK))
    bound, found = bind(program, model.params), []
    config = TextConfig(tokens=TOKENS, keys=8, alone=0)
    for stream in streams_of(config, model)[: args.texts]:
        carry = run_text(bound, program, stream.text).carry
        states = jax.tree.map(np.asarray, layers_of(program, carry))
        found.append([list(shares(state.aux.received).values()) for state in states])
    mean, spread = np.mean(found, axis=0), np.ptp(found, axis=0)
    ages = {"ages": list(AGES), "mean": mean.tolist(), "range": spread.tolist()}
    made = {"model": model.name, "texts": args.texts, **made_by()}
    write_json(args.out / "depth.json", made | ages)
    write_picture(PICTURE, picture(mean))
    for layer, row in enumerate(mean):
        print(
            layer, json.dumps(dict(zip(AGES, (round(100 * float(x), 1) for x in row), strict=True)))
        )


if __name__ == "__main__":
    main()
