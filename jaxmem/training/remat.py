"""Gradient checkpointing over layers and time, of any cell: three combinators and their words.

A cell is a function `cell(params, x, state) -> (y, state)`. Cells over layers are a cell, cells
over time are a cell, and a checkpointed cell is a cell. The multi-axis checkpointing of
Video-Ma2mba (arXiv 2411.19460) and every other scheme here is a word of the three; what a word
keeps, and which one to take, is the business of `jaxmem.training.plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxmem.memory.bank.host_memory import KIND, check_host

PyTree = Any
Cell = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
Scheme = Literal["off", "layer", "layer_chunk", "sqrt", "A", "B", "C", "D", "E"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

WORDS: dict[Scheme, str] = {
    "off": "cs",
    "layer": "src",
    "layer_chunk": "scr",
    "sqrt": "srsrc",
    "A": "scrsr",
    "B": "csrsr",
    "C": "crsrsr",
    "D": "crsr",
    "E": "crcrsr",
}
"""From the outside in: c over time, s over layers, r checkpointed."""

LAYERS_OUTSIDE = frozenset(name for name, word in WORDS.items() if word[0] == "s")
"""Schemes that pass a block of layers over the whole stream before the next one begins.

Legal only where a layer's state depends on no layer above it.
"""


def stacked(cell: Cell) -> Cell:
    """Return a cell over layers, the leading axis [L] of params and state.

    The y of a layer is the x of the next one.
    """

    def run(params: PyTree, x: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        return lax.scan(lambda x, layer: cell(layer[0], x, layer[1]), x, (params, state))

    return run


def chunked(cell: Cell) -> Cell:
    """Return a cell over time, the leading axis of x and y; a chunk begins where the last ended."""

    def run(params: PyTree, x: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        def body(state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
            y, state = cell(params, x, state)
            return state, y

        state, y = lax.scan(body, state, x)
        return y, state

    return run


def remat(cell: Cell, *, keep: tuple[str, ...] = (), offload: str | None = None) -> Cell:
    """Return the cell, which the backward pass runs again from its inputs.

    Args:
      cell: any cell.
      keep: names (`jax.ad_checkpoint.checkpoint_name`) of what is kept all the same.
      offload: a name for the state that the cell begins with, which is then kept in the host's
        memory and copied back for the backward pass. No other checkpoint may have the name. None:
        on the device.

    Raises:
      ValueError: if the device has no such memory.
    """
    policies = jax.checkpoint_policies
    if offload is None:
        policy = policies.save_only_these_names(*keep) if keep else None
        return jax.checkpoint(cell, prevent_cse=False, policy=policy)
    check_host("states before chunks were", "leave offload out")
    policy = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(keep), names_which_can_be_offloaded=[offload],
        offload_src="device", offload_dst=KIND,
    )  # fmt: skip

    def named(params: PyTree, x: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        # Under its name the state takes the place of the input that would be kept without one.
        return cell(params, x, jax.tree.map(lambda a: checkpoint_name(a, offload), state))

    return jax.checkpoint(named, prevent_cse=False, policy=policy)


def grid(
    cell: Cell,
    *,
    chunk: int,
    layers: int | None = None,
    segments: int | None = None,
    scheme: Scheme = "D",
    fill: PyTree = None,
    inner: bool = True,
    keep: tuple[str, ...] = (),
    offload: bool = False,
) -> Cell:
    """Return one cell over the layers and the time of a stack of cells.

    All schemes give the same gradient. The state that a chunk or a layer begins with is kept or
    computed again, never cut off: this is the whole gradient through time.

    Args:
      cell: of one layer and one chunk: x and y have the same shapes [s, ...].
      chunk: s, tokens of a chunk.
      layers: l, of a block in the schemes "sqrt", "A", "B" and "C"; None: the divisor of L next to
        its square root.
      segments: of scheme "E", that time is cut into; None: about the square root of the number of
        chunks.
      scheme: a key of `WORDS`.
      fill: a row's value that makes it a token of no effect, a tree like x of scalars. Lengths that
        are no multiple of a chunk are padded with it, and the cell has to hand its state through
        such rows unchanged.
      inner: False leaves the innermost checkpoint out, for a cell that keeps little by itself (a
        kernel with a backward pass of its own).
      keep: see `remat`; what every checkpoint keeps.
      offload: keep the states before chunks, and before segments, in the host's memory ("D", "E").

    Returns:
      A cell of params [L, ...], x [S, ...] and state [L, ...].

    Raises:
      ValueError: when made, for an unknown scheme, an option that it does not have, or a device
        without host memory; when run, for a length that is no multiple of a chunk without `fill`,
        or layers that do not divide L.
    """
    word = word_of(scheme, inner)
    _check(scheme, chunk, layers, segments)
    check_offload(scheme, offload)
    levels = word.count("s"), word.count("c")
    run = cell
    for i, letter in reversed(list(enumerate(word))):
        if letter == "r":
            run = remat(
                run, keep=keep, offload=_name(i) if offload and word[i - 1] == "c" else None
            )
        else:
            run = {"s": stacked, "c": chunked}[letter](run)

    def whole(params: PyTree, x: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        rows, depth = _length(x), _length(params)
        blocks = _blocks(depth, layers) if levels[0] == 2 else ()
        cut = _cut(rows, chunk, segments, levels[1], fill is not None)
        x = _reshaped(_padded(x, math.prod(cut), fill), 1, cut)
        params, state = (_reshaped(tree, 1, blocks or (depth,)) for tree in (params, state))
        y, state = run(params, x, state)
        y = jax.tree.map(lambda a: a[:rows], _reshaped(y, len(cut), (math.prod(cut),)))
        return y, _reshaped(state, max(len(blocks), 1), (depth,))

    return whole


def timed(
    step: Cell,
    *,
    chunk: int,
    segments: int | None = None,
    nested: bool = False,
    fill: PyTree = None,
    keep: tuple[str, ...] = (),
    offload: bool = False,
) -> Cell:
    """Return a step of a whole model over time: schemes "D" and, `nested`, "E" from outside.

    The step has layers, embedding and loss inside, so that no array [S, E] exists: what is kept is
    the state before every chunk (before every segment, and the chunks of one). Use
    `stacked(remat(layer))` for its layers.

    Args:
      step: `step(params, x, state) -> (y, state)` of one chunk: x [s, ...] (token ids) and y
        without an axis of time (a loss).
      chunk: s, tokens of a chunk.
      segments: see `grid`; only where `nested`.
      nested: checkpoint segments of chunks, too.
      fill: see `grid`.
      keep: see `remat`; kept of the chunks of one segment at a time.
      offload: see `grid`.

    Returns:
      A cell of x [S, ...] whose y is [I, ...], one entry for each of I chunks (of padding, too).

    Raises:
      ValueError: see `grid`.
    """
    _check("E" if nested else "D", chunk, None, segments)
    named = lambda level: _name(level) if offload else None
    run = chunked(remat(step, keep=keep, offload=named(0)))
    if nested:
        run = chunked(remat(run, offload=named(1)))

    def whole(params: PyTree, x: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        cut = _cut(_length(x), chunk, segments, 1 + nested, fill is not None)
        x = _reshaped(_padded(x, math.prod(cut), fill), 1, cut)
        y, state = run(params, x, state)
        return _reshaped(y, len(cut) - 1, (math.prod(cut[:-1]),)), state

    return whole


def word_of(scheme: Scheme, inner: bool = True) -> str:
    """Return the word of a scheme; without its innermost checkpoint if `inner` is False.

    Raises:
      ValueError: if there is no such scheme.
    """
    if scheme not in WORDS:
        raise ValueError(f"scheme must be one of {', '.join(WORDS)}, got {scheme!r}.")
    word = WORDS[scheme]
    if inner or scheme in ("off", "layer", "layer_chunk"):
        return word
    return word.replace("rc", "c") if scheme == "sqrt" else word.removesuffix("r")


def check_offload(scheme: Scheme, offload: bool) -> None:
    """Refuse to offload what a scheme keeps by layers; ValueError."""
    if offload and scheme not in ("D", "E"):
        raise ValueError(f"schemes 'D' and 'E' keep states that can be offloaded, got {scheme!r}.")


def _name(level: int) -> str:
    return f"jaxmem.states.{level}"  # an outer checkpoint must not keep what an inner one does


def _check(scheme: Scheme, chunk: int, layers: int | None, segments: int | None) -> None:
    """Refuse numbers that make no sense, and options that a scheme does not have."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}.")
    if layers is not None and WORDS[scheme].count("s") < 2:
        raise ValueError(f"scheme {scheme!r} has no blocks of layers: leave layers={layers} out.")
    if segments is not None and scheme != "E":
        raise ValueError(f"scheme {scheme!r} has no segments: leave segments={segments} out.")


def _length(tree: PyTree) -> int:
    """Return the leading axis that the leaves of a tree share."""
    sizes = {x.shape[0] for x in jax.tree.leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(f"all leaves need one leading axis of one size, got sizes {sizes}.")
    return sizes.pop()


def near_root(number: int) -> int:
    """Return the divisor of a number that is next to its square root."""
    divisors = (d for d in range(1, number + 1) if number % d == 0)
    return min(divisors, key=lambda d: abs(math.log(d * d / number)))


def _blocks(depth: int, layers: int | None) -> tuple[int, int]:
    """Return blocks and layers of a block."""
    layers = near_root(depth) if layers is None else layers
    if layers < 1 or depth % layers:
        raise ValueError(f"layers of a block must divide the {depth} layers, got {layers}.")
    return depth // layers, layers


def _cut(rows: int, chunk: int, segments: int | None, levels: int, padded: bool) -> tuple[int, ...]:
    """Return what the axis of time becomes: (segments,) chunks, tokens of a chunk."""
    count = -(-rows // chunk)
    outer = () if levels == 1 else (max(1, math.isqrt(count)) if segments is None else segments,)
    cut = (*outer, -(-count // math.prod(outer)), chunk)
    if math.prod(cut) != rows and not padded:
        raise ValueError(
            f"{rows} tokens are no multiple of {math.prod(outer)} x {chunk}: give `fill`, the "
            "value of a token without an effect, or other lengths."
        )
    return cut


def _padded(tree: PyTree, rows: int, fill: PyTree) -> PyTree:
    """Return a tree with rows of `fill` at the end, so many that there are `rows`."""
    if _length(tree) == rows:
        return tree

    def more(x: jax.Array, value: Any) -> jax.Array:
        ends = [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, ends, constant_values=value)

    return jax.tree.map(more, tree, fill)


def _reshaped(tree: PyTree, axes: int, into: tuple[int, ...]) -> PyTree:
    """Return a tree whose leading `axes` are others."""
    return jax.tree.map(lambda x: x.reshape(*into, *x.shape[axes:]), tree)
