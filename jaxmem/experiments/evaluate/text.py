"""`evaluate text`: memories on a pretrained text model, by loss and by planted facts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxmem.bound import bind
from jaxmem.compiled import make_room
from jaxmem.experiments.evaluate.cells import (
    CellBar,
    begun,
    reopened,
    settings_of,
    show_left_out,
    show_tables,
    stored,
)
from jaxmem.experiments.evaluate.text_cells import Cell, beyond, cells_of, check
from jaxmem.experiments.evaluate.text_kvpress import Decoder, comparable, rival_of
from jaxmem.experiments.evaluate.text_run import alike, kept_tokens, run_text
from jaxmem.experiments.evaluate.text_streams import (
    ONE,
    SEVERAL,
    Stream,
    TextConfig,
    notes,
    streams_of,
    texts_mark,
)
from jaxmem.experiments.stream.config import try_folder
from jaxmem.kv import Modality
from jaxmem.memory.base import Spec
from jaxmem.memory.options import plain_options
from jaxmem.memory.sizes import nbytes
from jaxmem.models.base import Model
from jaxmem.models.text import text_model
from jaxmem.programs import compile, model_spec
from jaxmem.report import text as report
from jaxmem.report.files import write_json, write_picture
from jaxmem.report.text_plot import plot_slots

FORMAT, VERSION = "jaxmem-text", 1


def fingerprint(config: TextConfig, model: Model, streams: Sequence[Stream], cell: Cell) -> str:
    """Return what tells results of other settings, texts or weights from these."""
    own = plain_options(cell.name, config.options.get(cell.name, {}))
    settings = {"options": own, "memory": repr(cell.memory), "chunk": config.chunk}
    usual = TextConfig()
    more = {name: getattr(config, name) for name in ("marked", "prompt")}
    settings |= {name: value for name, value in more.items() if value != getattr(usual, name)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(texts_mark(streams).encode())
    for leaf in jax.tree.leaves(model.params):
        digest.update(np.asarray(leaf[..., :8]).tobytes())  # enough to tell weights apart
    return digest.hexdigest()[:16]


def measure(
    config: TextConfig, model: Model, streams: Sequence[Stream], cells: Sequence[Cell], spec: Spec
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Measure what no file holds yet; yield every cell after each text.

    All cells see a text before the next one begins, so that a run that is stopped early compares
    all memories on the texts that it reached.

    Raises:
      ValueError: if a file is no cell.
    """
    found: dict[str, dict[str, Any]] = {}
    rival = rival_of(config, model, [(cell.name, cell.newest) for cell in cells])
    for cell in cells:
        mark = fingerprint(config, model, streams, cell)
        held = reopened(_path(config, cell), begun(mark, texts={}))
        held.pop("refused", None)  # an earlier run's, whose reason may be gone
        found[cell.stem] = held
    for stream in streams:
        for cell in cells:
            held = found[cell.stem]
            theirs = rival if comparable(config, cell.name, cell.newest) else None
            here = held["texts"].get(stream.name)
            known = here is not None and (theirs is None or config.against in here)
            if not (known or "refused" in held or config.measured_only):
                try:
                    held["texts"][stream.name] = _measured(cell, model, stream, spec, theirs)
                except ValueError as error:  # a size that only a stream shows to be missing
                    held["refused"] = str(error)
                else:
                    stored(_path(config, cell), held)
            yield cell, held


def _measured(
    cell: Cell, model: Model, stream: Stream, spec: Spec, rival: Decoder | None = None
) -> dict[str, Any]:
    assert cell.memory is not None
    make_room()
    program = compile(model, cell.memory, spec=spec)
    ran = run_text(bind(program, model.params), program, stream.text)
    if rival is None:
        return ran.result
    theirs = rival.run(cell.name, cell.slots, stream.text)
    same = round(alike(kept_tokens(program, ran.carry), theirs.tokens), 5)
    return ran.result | {"kvpress": theirs.result | {"alike": same}}


def _path(config: TextConfig, cell: Cell) -> Path:
    return config.out / "cells" / f"{cell.stem}.json"


def outcome(
    cell: Cell, held: dict[str, Any], streams: Sequence[Stream], spec: Spec
) -> report.Outcome | None:
    """Return what a memory did on the texts that were measured; None: there are none."""
    assert cell.memory is not None
    mine = {kind: [s for s in streams if s.kind == kind and s.name in held["texts"]]
            for kind in (SEVERAL, ONE)}  # fmt: skip
    if not mine[SEVERAL]:
        return None

    def column(kind: str, key: str) -> np.ndarray:
        return np.array([held["texts"][s.name][key] for s in mine[kind]], float)

    several = mine[SEVERAL]
    against = [held["texts"][s.name].get("kvpress") for s in several]
    return report.Outcome(
        memory=cell.name,
        share=cell.share,
        newest=cell.newest,
        slots=cell.slots,
        nbytes=nbytes(cell.memory, spec),
        texts=tuple(s.number for s in several),
        loss=column(SEVERAL, "loss"),
        nats=column(SEVERAL, "nats"),
        right=column(SEVERAL, "right") > 0,
        depth=np.array([[one.fact.depth for one in s.text.asked] for s in several]),
        phrasing=np.array([[one.fact.phrasing for one in s.text.asked] for s in several]),
        alone=column(ONE, "right") > 0 if mine[ONE] else np.zeros((0, 1), bool),
        seconds=tuple(column(SEVERAL, "seconds")[:, 0]),
        theirs=report.theirs_of(against),
    )


def run(config: TextConfig, model: Model, console: Console) -> list[report.Outcome]:
    """Measure, print and write the comparison.

    Raises:
      ValueError: if an option does not fit, --out cannot be written to or holds a file that is no
        cell, or nothing was measured.
    """
    if not 0 < config.chunk <= config.tokens:
        raise ValueError(
            f"--chunk lies between 1 and --tokens, got {config.chunk} and {config.tokens}."
        )
    spec = model_spec(model, config.chunk)
    streams, all_cells = streams_of(config, model), cells_of(config, model, spec)
    for cell in all_cells:
        if cell.memory is None:
            console.print(f"{cell.stem}: {cell.why}", markup=False)
    cells = [cell for cell in all_cells if cell.memory is not None]
    for note in (*check(config), *notes(config, streams), *beyond(config, model, cells)):
        console.print(note, markup=False)
    try_folder("out", config.out)
    found: dict[str, tuple[Cell, dict[str, Any]]] = {}
    with CellBar(len(cells) * len(streams), console) as bar:
        for cell, held in measure(config, model, streams, cells, spec):
            found[cell.stem] = cell, held
            bar.advance(cell.stem)
    for cell, held in found.values():
        if "refused" in held:
            console.print(f"{cell.stem}: {held['refused']}", markup=False)
    absent = [c for c, held in found.values() if not ("refused" in held or held["texts"])]
    show_left_out([_path(config, cell) for cell in absent], console)
    made = [outcome(cell, held, streams, spec) for cell, held in found.values()]
    outcomes = [one for one in made if one is not None]
    if not outcomes:
        raise ValueError("nothing was measured, so there is nothing to compare.")
    write(config, model, outcomes, texts_mark(streams), console)
    return outcomes


def write(
    config: TextConfig,
    model: Model,
    outcomes: Sequence[report.Outcome],
    mark: str,
    console: Console,
) -> None:
    """Print the tables and write them as text, JSON and a picture."""
    tables = [report.table(outcomes, config.tokens), report.depth_table(outcomes)]
    if any(one.theirs for one in outcomes):
        tables.append(report.against_table(outcomes, config.tokens))
    config.out.mkdir(parents=True, exist_ok=True)
    show_tables(tables, config.out / "tables.txt", console, width=200)
    write_picture(config.out / "slots.png", plot_slots(outcomes), dpi=130)
    document = {
        "format": FORMAT,
        "version": VERSION,
        **settings_of(config),
        "model": model.name,
        "texts": mark,
        "jax": jax.__version__,
        "device": str(jax.devices()[0].device_kind),
        "cells": [report.as_dict(one, outcomes) for one in outcomes],
    }
    write_json(config.out / "results.json", document)
    console.print(f"written to {config.out}", markup=False)


def run_named(config: TextConfig, console: Console) -> list[report.Outcome]:
    """Run the comparison with the model that the options name.

    Raises:
      ValueError: as `run`, or if there is no such model.
    """
    modality = Modality[config.marked.upper()]
    model = text_model(config.model, modality=modality)
    return run(config, pinned(model, config.prompt), console)


def pinned(model: Model, prompt: str) -> Model:
    """Return a model with a text in front of every stream, if there is one."""
    return model._replace(prefix=model.tokenize(prompt)) if prompt else model
