"""FlexMem's two readers on the comparison's streams.

    python experiments/memory_comparison/flexmem.py fit
    python experiments/memory_comparison/flexmem.py known --budget 512KiB --seconds 64 128 256

`fit` watches training streams with a question known and an index over all layers, and prints the
layers of largest weight (arXiv 2603.29252, equations 10 and 12). `known` asks the test questions
with the reader `Encoding`, which needs each of them while it watches: one pass for every text.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxmem as jm
from jaxmem.bound import Bound, bind, decoder_of
from jaxmem.decoder.answer import first_pass
from jaxmem.decoder.program import Carry, Program, Text
from jaxmem.experiments.evaluate.recall import advance_all, answers, side_by_side
from jaxmem.experiments.evaluate.recall_streams import Streams, streams
from jaxmem.memory.flexmem.memindex import Encoding, MemIndex, best_layers, fit_layers, layer_scores
from jaxmem.models.base import Model
from jaxmem.programs import compile, model_spec
from jaxmem.report.commit import made_by
from jaxmem.report.files import write_json

CHUNK = 4  # seconds, as in the comparison
MADE = {"moments": 4, "questions": 48, "chunk_seconds": CHUNK, "difficulty": "standard"}


def at(model: Model, budget: str, seconds: int) -> jm.FlexMem:
    """Return the memory of a budget whose question is known; any text stands for it."""
    spec, tokens = model_spec(model, CHUNK), seconds * model.tokens_per_piece
    more = {"spec": spec, "tokens": tokens, "reader": Encoding("what is the last shape")}
    memory = jm.memory_for(model, "flexmem", budget, **more)
    assert isinstance(memory, jm.FlexMem)
    return memory


def texts_of(made: Streams) -> np.ndarray:
    """Return the distinct questions [n, Q], -1 after their words."""
    ids = made.asked.ids
    return np.unique(ids.reshape(-1, ids.shape[-1]), axis=0)


def programs(
    model: Model, memory: jm.FlexMem, texts: np.ndarray
) -> Iterator[tuple[Program, Bound]]:
    """Yield the program with each text as its probe; the texts are data, so it is compiled once."""
    program = compile(model, memory, spec=model_spec(model, CHUNK))
    for text in texts:
        probe = Text(tuple(int(word) for word in text[text >= 0]))
        yield program, bind(program, model.params, [probe])


def watched(program: Program, bound: Bound, made: Streams) -> Iterator[Carry]:
    """Yield the carries of all streams at every moment."""
    carry = side_by_side(program, made.asked.ids.shape[1])
    for moment in range(len(made.asked.ids)):
        part = jax.tree.map(lambda x, m=moment: x[m], made.inputs)
        carry = advance_all(program)(bound, carry, part)
        yield carry


def fit(budget: str = "512KiB", count: int = 12, seconds: int = 64, most: int = 40) -> None:
    """Print the layers that a MemIndex should read.

    Args:
      budget: bytes of the memory.
      count: training streams.
      seconds: of each.
      most: questions that are asked of all of them.
    """
    model = jm.load("tiny")
    made = streams(model, count=count, seconds=seconds, split="train", **MADE)
    texts = texts_of(made)
    texts = texts[np.random.default_rng(0).permutation(len(texts))[:most]]
    layers = tuple(range(1, model.decoder.layers))
    index = MemIndex(layers, against="clips", query="after")
    memory = replace(at(model, budget, seconds), index=index, shallow=1)
    scores, relevance = [], []
    for program, bound in programs(model, memory, texts):
        *_, carry = watched(program, bound, made)
        aux = carry.state.aux
        rows = jax.tree.map(lambda x: x[0], bound.probes)
        queries = first_pass(decoder_of(model.params), program, rows, bound.prefix)
        question = jm.Question(queries, rows.modality != jm.Modality.EMPTY, bound.prefix)
        for i in range(count):
            mine = jax.tree.map(lambda x, i=i: x[i], aux)
            many, n = jnp.minimum(mine.ledger.rows, index.keys), int(mine.ledger.noted)
            found = layer_scores(index, program.spec, mine.keys, many, question)
            scores.append(np.asarray(found[:, :n]).T)
            relevance.append(np.asarray(mine.relevance[:n]))
    alpha = fit_layers(jnp.asarray(np.concatenate(scores)), jnp.asarray(np.concatenate(relevance)))
    best = best_layers(alpha, layers, count=min(3, len(layers)))
    weights = {str(layer): round(float(a), 4) for layer, a in zip(layers, alpha, strict=True)}
    samples = sum(map(len, scores))
    print(json.dumps({"samples": samples, "weights": weights, "best": best}))


def known(
    budget: str = "512KiB",
    count: int = 24,
    seconds: tuple[int, ...] = (64, 128, 256),
    out: Path = Path("experiments/memory_comparison/flexmem_known"),
) -> None:
    """Measure right answers where every question is known while the stream is watched.

    Args:
      budget: bytes of the memory.
      count: test streams of each length.
      seconds: lengths.
      out: folder of the cells, one for each length.
    """
    model = jm.load("tiny")
    memory = at(model, budget, max(seconds))
    for length in seconds:
        made = streams(model, count=count, seconds=length, **MADE)
        asked, right = made.asked, np.zeros(made.asked.answer.shape, bool)
        for text, (program, bound) in zip(
            texts_of(made), programs(model, memory, texts_of(made)), strict=True
        ):
            mine = (asked.ids == text).all(-1)  # [M, B, n]
            for moment, carry in enumerate(watched(program, bound, made)):
                if mine[moment].any():
                    ids = np.broadcast_to(text, (count, 1, len(text)))
                    said = np.asarray(answers(bound, carry, ids, program=program))  # [B, 1]
                    right[moment] |= mine[moment] & (said == asked.answer[moment])
        words = [["".join("01"[int(hit)] for hit in row) for row in part] for part in right]
        cell = {**made_by(), "name": "flexmem", "budget": budget, "seconds": length, "right": words}
        write_json(out / "cells" / f"flexmem_{budget}_{length}s.json", cell)
        print(f"{length} s: {100 * right.mean():.1f} %")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"fit": fit, "known": known})
