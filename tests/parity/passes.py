"""What the parity tests share: reference checkpoints, the one pass, and the pass in chunks."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.decoder.decoder import finish, layer_at, logits, qkv
from jaxmem.decoder.layer import add_deep
from jaxmem.decoder.step import chunk_step, init_carry, make_program, spec_of
from jaxmem.kernels.attend import attend
from jaxmem.kernels.segment import Segment
from jaxmem.loop import ask
from jaxmem.memory.full import full
from jaxmem.models.hf.checkpoint import load, read_json
from jaxmem.models.hf.prompt import Plan, cut, fill, pad

FEATURES, HIDDEN, LOGITS = 2e-5, 1e-4, 1e-4
TEXT_KIND = 1
CHUNK = 13  # rows; cuts frames anywhere
STEP = 32  # sizes are multiples of it, so that programs are shared


class Reference:
    """A directory of `tests/golden/data/hf`: config, weights and the arrays of transformers."""

    def __init__(self, folder: Path, family):
        path = folder / "reference.npz"
        if not path.exists():
            pytest.skip(f"no {path.name} in {folder}")
        raw = read_json(folder)
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.folder, self.raw, self.config = folder, raw, family.read_config(raw)
        table = family.weight_table(self.config)
        self.params = load(
            folder, table, dtype=jnp.float32, renames=family.RENAMES, ignore=family.IGNORE
        )

    def __getitem__(self, name):
        return self.arrays[name]

    def __contains__(self, name):
        return name in self.arrays

    @property
    def rows(self) -> int:
        return len(self["input_ids"])

    def real(self, row: int) -> np.ndarray:
        """Which positions of a row are no padding."""
        return self["attention_mask"][row] == 1

    def at(self, name: str, row: int) -> np.ndarray:
        """A row of an array [B, T, ...] without its padding."""
        return self[name][row][self.real(row)]

    def ids(self, row: int) -> np.ndarray:
        return self.at("input_ids", row)

    def grids(self, name: str) -> list:
        return [tuple(grid) for grid in self[name].tolist()] if name in self else []

    def encoded(self, encode) -> dict[str, tuple]:
        """By "image" and "video": which blocks are known, and what `encode` makes of all of them.

        `encode(params, config=, patches=, grids=, taps=)` is the family's encoder of pictures.
        """
        found, config = {}, self.config.vision
        for name, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if key in self:
                taps = [i for i in range(config.depth) if f"{name}_vis_block{i}_out" in self]
                grids = self.grids(f"{name}_grid_thw")
                run = jax.jit(partial(encode, config=config, grids=grids, taps=taps))
                found[name] = taps, run(self.params["vision"], patches=self[key])
        return found

    def grids_of(self, row: int, name: str, token: int) -> tuple[list, slice]:
        """The grids ("image" or "video") of a row, and where its features lie among all."""
        before = [int((self.ids(r) == token).sum()) for r in range(row + 1)]
        start, stop = sum(before[:-1]), sum(before)
        grids = self.grids(f"{name}_grid_thw")
        cell = self.config.vision.merge**2
        ends = np.cumsum([0] + [f * h * w // cell for f, h, w in grids])
        mine = [grid for grid, first in zip(grids, ends[:-1], strict=True) if start <= first < stop]
        return mine, slice(start, stop)


def close(actual, expected, tolerance: float) -> None:
    """Compare relative to the largest magnitude."""
    expected = np.asarray(expected)
    top = np.abs(expected).max()
    assert actual.shape == expected.shape
    worst = float(np.abs(np.asarray(actual) - expected).max() / top)
    assert worst <= tolerance, f"differs by {worst:.2e} of the largest magnitude {top:.3g}"


class Passed(NamedTuple):
    """Every layer's input and output (before DeepStack is added), and the logits."""

    inputs: np.ndarray  # [L, T, E]
    outputs: np.ndarray  # [L, T, E]
    logits: np.ndarray  # [T, V]


@partial(jax.jit, static_argnames="config")
def _one_pass(params, config, plan, features, deep):
    rows = fill(params, plan, features, deep)
    t = jnp.arange(rows.modality.shape[0], dtype=jnp.int32)
    valid = jnp.ones((len(t), 1), bool)

    def layer(h, index):
        weights = layer_at(params, index)
        q, k, v = qkv(weights, config, h)
        part = Segment(k, v, valid, rows.pos[:, None], rows.pos, last=t)
        out = finish(weights, config, h, attend(q, [part], rope=config.rope)[0])
        return add_deep(out, rows.deepstack, index), (h, out)

    h, (inputs, outputs) = jax.lax.scan(layer, rows.x, jnp.arange(config.layers))
    return Passed(inputs, outputs, logits(params, config, h))


def one_pass(params, config, plan, features=None, deep=None) -> Passed:
    """Pass a whole plan; padded behind its end, so that prompts share a program."""
    count, features, deep = len(plan.ids), longer(features, 0), longer(deep, 1)
    found = _one_pass(params, config, pad(plan, -(-count // STEP) * STEP), features, deep)
    inputs, outputs, out = (np.array(x) for x in found)
    return Passed(inputs[:, :count], outputs[:, :count], out[:count])


def longer(x, axis):
    """Features padded to a multiple of `STEP`."""
    if x is None:
        return None
    extra = [(0, 0)] * x.ndim
    extra[axis] = (0, -x.shape[axis] % STEP)
    return np.pad(x, extra)


def bounds(total: int, size: int) -> list[int]:
    return list(range(size, total, size))


@partial(jax.jit, static_argnames="program")
def _step(params, carry, chunk, features, deep, *, program):
    carry, h = chunk_step(params, program, carry, fill(params, chunk, features, deep))
    return carry, logits(params, program.config, h)


def chunks_of(plan, starts, size):
    """The chunks of a plan, one after the other."""
    chunks = cut(plan, starts, size)
    return [Plan(*(x[k] for x in chunks)) for k in range(len(chunks.ids))]


def program_of(config, plan, size):
    """A program of `full` memory that prompts of about one length share."""
    capacity = -(-(len(plan.ids) + 8) // STEP) * STEP
    return make_program(config, full(capacity), spec_of(config, chunk=size))


def in_chunks(params, config, plan, features, deep, starts, size):
    """Feed a plan through `full` memory; the logits of its rows, and what is needed to go on."""
    program = program_of(config, plan, size)
    features, deep = longer(features, 0), longer(deep, 1)
    carry, found = init_carry(program), []
    for chunk in chunks_of(plan, starts, size):
        carry, out = _step(params, carry, chunk, features, deep, program=program)
        found.append(np.asarray(out)[chunk.modality != 0])
    return np.concatenate(found), carry, program


def greedy(params, config, plan, features, deep, count: int) -> np.ndarray:
    """Answer with the prompt's last text rows as the question and the rest as the stream."""
    text, size = int(np.flatnonzero(plan.modality != TEXT_KIND)[-1]) + 1, CHUNK
    *parts, question = chunks_of(plan, [*bounds(text, size), text], size)
    program = program_of(config, plan, size)
    features, deep = longer(features, 0), longer(deep, 1)
    carry = init_carry(program)
    for part in parts:
        carry, _ = _step(params, carry, part, features, deep, program=program)
    answer = ask(params, carry, fill(params, question), program=program, max_new=count)
    return np.asarray(answer.ids)
