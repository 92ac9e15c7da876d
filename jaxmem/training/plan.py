"""What the schemes of `jaxmem.training.remat` cost, and the cheapest sizes of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.training.remat import Cell, PyTree, Scheme, check_offload, grid, word_of

Rule = Literal["ours", "paper", "released"]


class Cost(NamedTuple):
    """Bytes of one layer."""

    stream: int  # of a token's x: d e
    state: int  # of the state after a chunk: sigma
    inner: int  # of a token, what the gradient of a cell keeps inside it
    weights: int = 0  # of the weights
    scan: int = 0  # of a token of one cell, its states inside; the published rules alone have it


class Plan(NamedTuple):
    """Sizes of a scheme, for `grid(cell, **plan.options)`."""

    scheme: Scheme
    depth: int  # L
    tokens: int  # S
    layers: int | None  # l, of a block, where the scheme has blocks
    chunk: int  # s
    segments: int | None  # where the scheme has them
    temp: int = 0  # bytes by the formula
    forwards: int = 0  # passes through the stack in one gradient, one of them the first
    offload: bool = False  # states before chunks lie in the host's memory

    @property
    def options(self) -> dict[str, Any]:
        """Return what `grid` takes of it."""
        names = ("scheme", "layers", "chunk", "segments", "offload")
        return {name: getattr(self, name) for name in names}


def temp(plan: Plan, cost: Cost, *, inside: bool = False) -> int:
    """Return the temporary bytes of a gradient under a plan.

    What grows with the number of tokens is what XLA compiles, to 1 % (laws in
    `tests/training/test_plan.py`); what does not grow is an estimate.

    Args:
      plan: sizes.
      cost: of a layer.
      inside: embedding and loss are in the step (`timed`), and no array [S, E] exists. Else x and y
        of the whole stream do, and the loss is a function of y that keeps it (a square).

    Raises:
      ValueError: if `inside` is asked of another scheme than "D" and "E".
    """
    if inside and plan.scheme not in ("D", "E"):
        raise ValueError(f"a loss inside has schemes 'D' and 'E', got {plan.scheme!r}.")
    L, l, n = plan.depth, plan.layers or plan.depth, plan.segments or 1
    count = -(-plan.tokens // plan.chunk)
    length, J, k = count * plan.chunk, L // l, -(-count // n)
    stream = 0 if inside else cost.stream * length
    states, work = count * cost.state, _work(plan, cost)
    if plan.offload:  # one is on its way back
        states, work = 0, work + L * cost.state
    if plan.scheme in ("layer", "sqrt"):
        streams = L + 2 if plan.scheme == "layer" else J + l + 2
        return streams * stream + cost.inner * length + work
    if plan.scheme == "E":
        kept, inside_one = (0, 0) if plan.offload else (n * L * cost.state, k * L * cost.state)
        return kept + max(2 * stream, stream + 2 * stream // n + inside_one + work)
    # Between both passes there is one more stream (the loss has y and its cotangent), and in the
    # backward pass what one cell or chunk works with: they take the same place.
    kept, again = {
        "off": (stream + L * cost.inner * length, work),
        "layer_chunk": ((L + 3) * stream + L * states, states + work),
        "A": ((J + 3) * stream + L * states, l * states + work),
        "B": ((J + 1) * stream + L * states, work),
        "C": (stream + L * states, work),
        "D": (stream + L * states, work),
    }[plan.scheme]
    return kept + max(stream, again)


def on_host(plan: Plan, cost: Cost) -> int:
    """Return the bytes that a plan keeps in the host's memory: states before chunks and segments.

    Args:
      plan: sizes.
      cost: of a layer.
    """
    if not plan.offload:
        return 0
    count = -(-plan.tokens // plan.chunk)
    if plan.segments is not None:
        count = plan.segments + -(-count // plan.segments)
    return count * plan.depth * cost.state


def _work(plan: Plan, cost: Cost) -> int:
    """Return the bytes of one cell's or chunk's gradient, and of the gradient by weights."""
    L, l = plan.depth, plan.layers or plan.depth
    if plan.scheme in ("layer", "sqrt"):
        return L * cost.weights
    live = {"off": 0, "layer_chunk": 0, "A": l, "B": l, "C": L // l + l}.get(plan.scheme, L)
    share = {"layer_chunk": L + l, "A": L + l, "E": 3 * L}.get(plan.scheme, 2 * L)
    return plan.chunk * (cost.inner + live * cost.stream) + share * cost.weights


def published(plan: Plan, cost: Cost, rule: Rule) -> float:
    """Return the bytes of a plan by the formula of the paper, or of its released code.

    The paper: M = (L S / l) stream + (L S / s) state + l s inner + s scan. The released code does
    not count what is there anyway: one block's input and the first chunk's state.
    """
    L, S, s = plan.depth, plan.tokens, plan.chunk
    l = plan.layers or L
    cell = l * s * cost.inner + s * cost.scan
    if rule == "paper":
        return L * S / l * cost.stream + L * S / s * cost.state + cell
    return (L - 1) // l * S * cost.stream + L * ((S - 1) // s) * cost.state + cell


def plan(
    cost: Cost,
    *,
    layers: int,
    tokens: int,
    multiple: int = 1,
    scheme: Scheme = "D",
    inside: bool = False,
    inner: bool = True,
    rule: Rule = "ours",
    offload: bool = False,
) -> Plan:
    """Return the sizes with the smallest `temp`, by trying all of them.

    Args:
      cost: of one layer, see `cost_of` and `published_cost`.
      layers: L.
      tokens: S, of a stream; padded to whole chunks.
      multiple: rows that a chunk is a multiple of (a block of a kernel).
      scheme: see `remat.WORDS`.
      inside: see `temp`.
      inner: see `grid`; without the innermost checkpoint there is one forward less.
      rule: "paper" and "released" minimise the published formulas instead, over every l from 1 to
        L. These plans are to compare with: `grid` takes those whose l divides L.
      offload: states before chunks lie in the host's memory. The sizes are those without it, since
        every state is copied there and back.

    Raises:
      ValueError: if a size is not positive, the scheme is unknown, or it keeps nothing that can be
        offloaded.
    """
    for name, size in (("layers", layers), ("tokens", tokens), ("multiple", multiple)):
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}.")
    word = word_of(scheme, inner)
    check_offload(scheme, offload)
    top = -(-tokens // multiple) * multiple
    best: Plan | None = None
    for chunk in range(multiple, top + 1, multiple):
        for block in _block_sizes(word, layers, rule):
            for segments in _segment_counts(word, -(-tokens // chunk)):
                one = Plan(scheme, layers, tokens, block, chunk, segments)
                own = temp(one, cost, inside=inside) if rule == "ours" else None
                bytes_ = published(one, cost, rule) if own is None else own
                if best is None or bytes_ < best.temp:
                    best = one._replace(temp=round(bytes_))
    assert best is not None
    best = best._replace(forwards=1 + word.count("r"), offload=offload)
    return best._replace(temp=temp(best, cost, inside=inside)) if offload else best


def _block_sizes(word: str, layers: int, rule: Rule) -> Sequence[int | None]:
    """Return the layers of a block that are tried."""
    if word.count("s") < 2:
        return (None,)
    every = range(1, layers + 1)
    return [l for l in every if layers % l == 0] if rule == "ours" else every


def _segment_counts(word: str, count: int) -> Sequence[int | None]:
    """Return the numbers of segments that are tried: those next to the square root."""
    if word.count("c") < 2:
        return (None,)
    root = math.isqrt(count)
    return sorted({max(root, 1), min(root + 1, count)})


def published_cost(
    width: int, inner: int, size: int, *, groups: int = 1, heads: int, kernel: int = 4,
    rule: Literal["paper", "released"] = "paper", block: int = 256,
) -> Cost:  # fmt: skip
    """Return the constants of a Mamba-2 layer as published, in bytes of bfloat16.

    Args:
      width: d.
      inner: of x, y and z.
      size: N, numbers of the state for each channel.
      groups: of b and c.
      heads: H.
      kernel: K, inputs of the convolution.
      rule: "paper" (Table 7 of arXiv 2411.19460) or "released": residuals and states in float32
        count double, and states inside a chunk are counted for each `block` of rows.
      block: Q, rows of a block of the released kernel.
    """
    channels = inner + 2 * groups * size
    grid_, states = inner + channels + heads + inner, inner * size
    if rule == "paper":
        return Cost(2 * width, 2 * (states + (kernel - 1) * channels), 2 * grid_,
                    scan=2 * (states + channels))  # fmt: skip
    scan = channels + 4 * heads + 3 * states // block + 2 * block
    return Cost(6 * width, 2 * ((kernel - 1) * channels + 2 * states), 2 * grid_, scan=2 * scan)


def cost_of(cell: Cell, params: PyTree, x: PyTree, state: PyTree) -> Cost:
    """Return the cost of a cell as compiled, from shapes alone.

    `inner` is the slope of per-layer checkpointing over the whole stream, between 4 and 8 chunks,
    less the streams that it keeps besides.

    Args:
      cell: of one layer.
      params: one layer's weights, arrays or shapes.
      x: one chunk [s, ...].
      state: one layer's.
    """
    rows = jax.tree.leaves(x)[0].shape[0]
    depth, lengths = 2, (4, 8)

    def longer(tree: PyTree, by: int, cut: bool = False) -> PyTree:
        def shape(a: Any) -> jax.ShapeDtypeStruct:
            sides = (by * a.shape[0], *a.shape[1:]) if cut else (by, *a.shape)
            return jax.ShapeDtypeStruct(sides, a.dtype)

        return jax.tree.map(shape, tree)

    run = grid(cell, chunk=rows, scheme="layer")
    stack = longer(params, depth), longer(state, depth)
    found = [price(squares(run), stack[0], longer(x, n, True), stack[1]) for n in lengths]
    stream = nbytes(x) // rows
    slope = (found[1] - found[0]) / ((lengths[1] - lengths[0]) * rows)
    inner = max(0, round(slope - (depth + 2) * stream))
    return Cost(stream, nbytes(state), inner, nbytes(params))


def squares(cell: Cell) -> Callable[..., jax.Array]:
    """Return the sum of the squares of a cell's y: the loss that the formulas are compared with."""

    def loss(params: PyTree, x: PyTree, state: PyTree) -> jax.Array:
        y, _ = cell(params, x, state)
        real = (a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.inexact))
        return sum((jnp.sum(a * a) for a in real), jnp.zeros(()))

    return loss


def price(f: Callable[..., jax.Array], *shapes: PyTree, by: int | tuple[int, ...] = 0) -> int:
    """Return the temporary bytes of a compiled value and gradient, from shapes alone.

    Args:
      f: returns a number.
      *shapes: its arguments, arrays or `jax.ShapeDtypeStruct`.
      by: the arguments that it is differentiated by.
    """
    return temporary(compiled(f, *shapes, by=by))


def compiled(f: Callable[..., jax.Array], *shapes: PyTree, by: int | tuple[int, ...] = 0) -> Any:
    """Return the compiled value and gradient that `price` is of."""
    return jax.jit(jax.value_and_grad(f, by)).lower(*shapes).compile()


def temporary(program: Any) -> int:
    """Return the temporary bytes of a compiled program."""
    return int(program.memory_analysis().temp_size_in_bytes)


def nbytes(tree: PyTree) -> int:
    """Return the bytes of a tree of arrays or shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
