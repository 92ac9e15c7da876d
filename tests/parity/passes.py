"""What the parity tests share: reference checkpoints, the one pass, and the pass in chunks."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.decoder.decoder import finish, layer_at, logits, qkv
from jaxmem.decoder.layer import add_deepstack, state_step
from jaxmem.decoder.program import init_carry, init_states, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.decoder.stretches import stretches, through
from jaxmem.kernels.attend import attend
from jaxmem.kernels.segment import Segment
from jaxmem.kv import EMPTY
from jaxmem.memory.baselines import Full
from jaxmem.models.encoders.vision_parts import as_grids
from jaxmem.models.hf.checkpoint import load
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.prompt import Plan, fill, pad
from jaxmem.models.qwen.mrope import ticks
from jaxmem.session import Session

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
        if hasattr(family, "finalise"):
            self.params = family.finalise(self.params, self.config)

    def __getitem__(self, name):
        return self.arrays[name]

    def __contains__(self, name):
        return name in self.arrays

    @property
    def rows(self) -> int:
        return len(self["input_ids"])

    def real(self, row: int) -> np.ndarray:
        """Which positions of a row are no padding."""
        if "attention_mask" not in self:
            return np.ones(self["input_ids"].shape[1], bool)
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

    def free(self, count: int = 1) -> list[int]:
        """Token ids that are nothing but text."""
        layout = getattr(self.config, "layout", self.config)
        names = (
            "image",
            "video",
            "audio",
            "vision_start",
            "vision_end",
            "audio_start",
            "audio_end",
        )
        taken = {getattr(layout, name, None) for name in names}
        return [i for i in range(self.config.decoder.vocab) if i not in taken][-count:]

    def grids_of(self, row: int, name: str, token: int) -> tuple[list, slice]:
        """The grids ("image" or "video") of a row, and where its features lie among all."""
        mine, where = self.numbers_of(row, name, token)
        return [self.grids(f"{name}_grid_thw")[i] for i in mine], where

    def numbers_of(self, row: int, name: str, token: int) -> tuple[list[int], slice]:
        """Which of all pictures or videos are a row's, and where its features lie among all."""
        before = [int((self.ids(r) == token).sum()) for r in range(row + 1)]
        start, stop = sum(before[:-1]), sum(before)
        grids = self.grids(f"{name}_grid_thw")
        cell = self.config.vision.merge**2
        ends = np.cumsum([0] + [f * h * w // cell for f, h, w in grids])
        mine = [i for i, first in enumerate(ends[:-1].tolist()) if start <= first < stop]
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

    def layer(held, place, given):
        h, states = held
        if place.kind is None:
            weights = layer_at(params, place.layer)
            q, k, v = qkv(weights, config, h)
            part = Segment(k, v, valid, rows.pos[:, None], rows.pos, last=t)
            out = finish(weights, config, h, attend(q, [part], rope=config.rope)[0])
        else:
            out, states = state_step(params, config, place, h, states, rows.modality != EMPTY)
        return (add_deepstack(out, rows.deepstack, place.number), states), (h, out)

    order = stretches(config.kinds, (0,) * config.attends)
    (h, _), found = through(order, layer, (rows.x, init_states(config)))
    join = lambda *x: jnp.stack(x, 1).reshape(-1, *x[0].shape[1:])
    parts = [jax.tree.map(join, *out) for out in found]
    inputs, outputs = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return Passed(inputs, outputs, logits(params, config, h))


def one_pass(params, config, plan, features=None, deep=None) -> Passed:
    """Pass a whole plan; padded after its end, so that prompts share a program."""
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


def after_video(config, frames, rows, columns, seconds):
    """Where text after a video of Qwen2.5-VL stands, relative to where its chunks ended."""
    merge = config.vision.merge
    last, end = ticks(np.array([frames - 1, frames]), seconds, config.ticks_per_second)
    text = max(int(last), rows // merge - 1, columns // merge - 1) + 1
    return np.array([text - end, text, text])


def after_video_with_sound(layout, chunks, grid, seconds, sounds):
    """Where `<|audio_eos|>` of Qwen2.5-Omni stands, relative to where the chunks ended."""
    ((frames, rows, columns),) = as_grids([grid], layout.merge)
    tick = int(ticks(frames - 1, seconds, layout.ticks_per_second))
    # The last token is one of sound where the last turn has any.
    heard = sounds > tick // layout.chunk_ticks * layout.chunk_ticks
    text = sounds if heard else max(tick + 1, max(rows, columns) // layout.merge)
    return np.array([text - chunks * layout.chunk_ticks, text, text])


@partial(jax.jit, static_argnames="program")
def _step(params, carry, chunk, features, deep, *, program):
    carry, h = chunk_step(params, program, carry, fill(params, chunk, features, deep))
    return carry, logits(params, program.config, h)


def cut(whole: Plan, bounds: Sequence[int], size: int) -> Plan:
    """Return a prompt as chunks: a plan with a leading axis K.

    Every chunk begins at the position of its first row, so that relative positions stay small; the
    features are still counted from the prompt's first.

    Args:
      whole: the plan of the prompt, from position 0.
      bounds: first row of every chunk after the first.
      size: T, rows of a chunk after padding.
    """
    starts, stops = [0, *bounds], [*bounds, len(whole.ids)]
    base = [np.zeros_like(whole.advance), *(whole.pos[i] for i in bounds), whole.advance]
    chunks = []
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        mine = slice(start, stop)
        rel = whole.pos[mine] - base[i][None]
        part = Plan(
            whole.ids[mine], whole.place[mine], rel, whole.modality[mine], base[i + 1] - base[i]
        )
        chunks.append(pad(part, size))
    return Plan(*(np.stack(x) for x in zip(*chunks, strict=True)))


def chunks_of(plan, starts, size):
    """The chunks of a plan, one after the other."""
    chunks = cut(plan, starts, size)
    return [Plan(*(x[k] for x in chunks)) for k in range(len(chunks.ids))]


def program_of(config, plan, size):
    """A program of `full` memory that prompts of about one length share."""
    capacity = -(-(len(plan.ids) + 8) // STEP) * STEP
    return make_program(config, Full(capacity), spec_of(config, chunk=size))


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


def pieces_of(model, size, count: int, seed: int = 0) -> list:
    """Random frames of one size, and samples, in the format of a model."""
    rng, media = np.random.default_rng(seed), model.media
    frames = (round(media.fps * media.piece_seconds), *size, 3)
    samples = round(media.sample_rate * media.piece_seconds)
    return [
        SimpleNamespace(
            frames=rng.integers(0, 256, frames, np.uint8),
            samples=0.1 * rng.normal(size=samples).astype(np.float32),
        )
        for _ in range(count)
    ]


def streamed(model, pieces, question: str, count: int, **more):
    """An answer of `count` tokens about pieces in chunks of two: one and padding, then the rest."""
    session = Session(model, Full(len(pieces) * model.tokens_per_piece), chunk_pieces=2)
    session.watch(pieces[:1]).watch(pieces[1:])
    ids, program = model.tokenize(question), session.program
    start = None if model.question_start is None else model.question_start(session.pieces)
    rows = question_rows(
        model.params, ids, program=program, steps=model.text_steps(ids), start=start
    )
    return ask(session.bound, session.carry, rows, program=program, max_new=count, **more)


def answers_alike(answer, passed: Passed) -> None:
    """Compare the first logits and the greedy tokens of an answer with one pass over it."""
    out = passed.logits[-len(answer.ids) :]
    close(answer.first, out[0], LOGITS)
    np.testing.assert_array_equal(answer.ids, out.argmax(-1))
