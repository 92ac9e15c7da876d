"""Where weights and streams lie on many devices: one mesh, and one table of rules.

A mesh has two axes. Along `model` the heads, the inner widths of MLPs and the words of the output
matrix are cut; along `data` lie streams side by side (`jaxmem.serve`). XLA adds the communication:
in a layer's loop a sum after attention's output and one after the MLP, and what a memory's score
adds up over heads.

    mesh = parse_mesh("model=2")
    program = compile(model, memory, mesh=mesh)     # weights, prefix and carries of it are placed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmem.typing import Array, PyTree

DATA, MODEL = "data", "model"
"""The axes of a mesh: streams side by side, and heads and inner widths."""

COLUMNS = (
    *("layers." + name for name in ("q", "k", "v", "attn_gate", "gate", "up")),
    *("mixers.*.mixer." + name for name in ("in", "qkv", "q", "k", "v", "z", "a", "b", "up")),
    *("mixers.*.mixer." + name for name in ("step", "momentum", "forget")),
    *("mixers.*." + name for name in ("gate", "up")),
    "head",
)
"""Projections whose outputs are cut; names in the decoder's tree of weights."""
ROWS = (
    *("layers." + name for name in ("o", "down", "retention")),
    *("mixers.*.mixer." + name for name in ("out", "down")),
    "mixers.*.down",
)
"""Projections whose inputs are: what they give is added up over the devices."""
TOKENS = ("slots", ".kv", ".sinks", ".open")
"""Ends of the paths under which a state or a bank has tokens (`KV`)."""

RULES: tuple[tuple[str, int], ...] = (
    *((f"decoder.{name}.{leaf}", -1) for name in COLUMNS for leaf in ("kernel", "bias", "b")),
    *((f"decoder.{name}.{leaf}", -2) for name in ROWS for leaf in ("kernel", "a")),
    ("decoder.embedding.embedding", -1),
    ("decoder.mixers.*.mixer.memory.kernel", -2),
    # Tokens: [..., G, D], their positions [..., Gm, A], numbers and kinds [..., Gm].
    ("prefix.[kv]", -2),
    *((f"*{of}.{name}", -2) for of in TOKENS for name in ("k", "v", "pos")),
    *((f"*{of}.{name}", -1) for of in TOKENS for name in ("index", "modality")),
    # What memories know of a slot besides, by heads, or of the layer's input [..., U].
    *((f"state.slots*.{name}", -1) for name in ("received", "norm", "likeness", "score", "place")),
    ("state.slots*.unit", -1),
    ("state.slots.ends", -2),
    # And of the stream.
    *((f"state.aux*.{name}", -2) for name in ("low", "high", "means", "keys", "received")),
    # States of layers that have one, by heads.
    *((f"states.{name}.memory", -3) for name in ("GatedDelta", "MoM", "LinearAttention")),
    ("states.LinearAttention.total", -2),
    ("states.Mamba2.ssm", -3),
    *((f"states.Titans.{name}", -2) for name in ("memory", "momentum")),
)
"""Path of a leaf -> which of its axes is cut along `model`, counted from the last.

Paths are those of weights, with `decoder.` before a decoder's own, of `Bound` and of `Carry`, a
mixer's states by the name of its class. The first pattern that matches counts. What matches none
is on every device, as are axes that the devices do not divide (`uneven`), and a leaf's first one.
"""


def parse_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of a text such as "data=2,model=2"; an axis that is left out has size 1.

    Args:
      text: sizes of the axes.
      devices: that there are; None: all. The first ones are taken, `model` along neighbours.

    Raises:
      ValueError: for another axis, a size that is none, or more devices than there are.
    """
    sizes = {DATA: 1, MODEL: 1}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if name not in sizes or not size.isdigit() or int(size) < 1:
            raise ValueError(
                f"a mesh is {DATA}=N,{MODEL}=N with sizes of at least 1, for example model=2; got "
                f"{text!r}."
            )
        sizes[name] = int(size)
    devices = jax.devices() if devices is None else devices
    needed = sizes[DATA] * sizes[MODEL]
    if needed > len(devices):
        raise ValueError(
            f"a mesh of {text} needs {needed} devices, and there are {len(devices)} "
            f"({devices[0].platform}): take fewer, or on a CPU start Python with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={needed} to try it."
        )
    return Mesh(np.array(devices[:needed]).reshape(sizes[DATA], sizes[MODEL]), (DATA, MODEL))


def check_mesh(mesh: Mesh | None, kv_heads: int) -> None:
    """Refuse a mesh that is none of ours, or cuts heads.

    Raises:
      ValueError: naming the axes, or how many devices share the heads evenly.
    """
    if mesh is None:
        return
    if tuple(mesh.axis_names) != (DATA, MODEL):
        raise ValueError(
            f"a mesh has the axes {DATA} and {MODEL} (parse_mesh makes one), got {mesh.axis_names}."
        )
    count = mesh.shape[MODEL]
    if kv_heads and kv_heads % count:
        even = [str(n) for n in range(1, kv_heads + 1) if kv_heads % n == 0]
        raise ValueError(
            f"{MODEL}={count} devices do not share {kv_heads} KV heads evenly: take {MODEL}="
            f"{' or '.join(even)}, and further devices for streams side by side ({DATA}=N)."
        )


def axis_of(path: str, rank: int) -> int | None:
    """Return which axis of a leaf is cut along `model`, from the last; None: none is."""
    axis = next((axis for pattern, axis in RULES if fnmatchcase(path, pattern)), None)
    return None if axis is None or -axis >= rank else axis


def spec_of(mesh: Mesh, path: str, shape: Sequence[int], *, lanes: bool = False) -> PartitionSpec:
    """Return how a leaf is cut; with `lanes` its first axis are streams side by side."""
    axes: list[str | None] = [DATA if lanes else None, *[None] * (len(shape) - 1)][: len(shape)]
    axis, count = axis_of(path, len(shape) - lanes), mesh.shape[MODEL]
    if axis is not None and count > 1 and shape[axis] % count == 0:
        axes[axis] = MODEL
    while axes and axes[-1] is None:  # as XLA writes what it gives back
        axes.pop()
    return PartitionSpec(*axes)


def place_of(mesh: Mesh, path: str, shape: Sequence[int], *, lanes: bool = False) -> NamedSharding:
    """Return where a leaf lies; see `spec_of`."""
    return NamedSharding(mesh, spec_of(mesh, path, shape, lanes=lanes))


def named(tree: PyTree, stacks: Sequence[Any] = ()) -> tuple[list[tuple[str, Any]], Any]:
    """Return the leaves of a tree with the paths that `RULES` knows, and the tree's structure.

    Args:
      tree: a `Carry`, a `Bound`, or weights.
      stacks: mixers, as `DecoderConfig.stacks`.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    paths = (jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in found)
    return [(_known(p, stacks), x) for p, (_, x) in zip(paths, found, strict=True)], structure


def _known(path: str, stacks: Sequence[Any]) -> str:
    """Return the path by which `RULES` knows a leaf."""
    first, *rest = path.removeprefix("params.").removesuffix(".of").split(".")  # of `layout.Bits`
    if first in ("layers", "mixers", "embedding", "head"):  # a decoder's weights alone
        return ".".join(("decoder", first, *rest))
    if first == "states":
        return ".".join((first, stacks[int(rest[0])].name, *rest[1:]))
    return ".".join((first, *rest))


def placed(
    mesh: Mesh | None,
    tree: PyTree,
    stacks: Sequence[Any] = (),
    *,
    lanes: bool = False,
    host: bool = False,
) -> PyTree:
    """Return a tree whose arrays lie where the mesh has them; None: as they are.

    Args:
      mesh: of the devices.
      tree: a `Carry`, a `Bound`, or weights. Arrays that lie there already are not copied.
      stacks: mixers, as `DecoderConfig.stacks`.
      lanes: see `spec_of`.
      host: entries of a bank lie in host memory, those of each device's part beside it.
    """
    if mesh is None:
        return tree

    def put(path: str, x: Array) -> Array:
        place = place_of(mesh, path, x.shape, lanes=lanes)
        if host and path.startswith("bank.slots."):
            place = place.with_memory_kind("pinned_host")
        return jax.device_put(x, place)

    leaves, structure = named(tree, stacks)
    return jax.tree.unflatten(structure, [put(*leaf) for leaf in leaves])


def held(
    mesh: Mesh | None, tree: PyTree, stacks: Sequence[Any] = (), *, lanes: bool = False
) -> PyTree:
    """Return a tree that a compiled program keeps as `placed` lays it."""
    if mesh is None or mesh.size == 1:
        return tree

    def keep(path: str, x: Array) -> Array:
        if jax.typeof(x).memory_space == jax.memory.Space.Host:
            return x
        return _kept(mesh, x, spec_of(mesh, path, x.shape, lanes=lanes))

    leaves, structure = named(tree, stacks)
    return jax.tree.unflatten(structure, [keep(*leaf) for leaf in leaves])


def whole(mesh: Mesh | None, x: Array) -> Array:
    """Return an array that a compiled program has whole on every device along `model`."""
    if mesh is None or mesh.shape[MODEL] == 1:
        return x
    return _kept(mesh, x, PartitionSpec())


def tracing(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Return the context in which operations know that their heads are cut over a mesh.

    Some are written in another way then (`jax.sharding.get_abstract_mesh().empty` tells).
    """
    around = jax.sharding.get_abstract_mesh()  # that of one part of the streams
    if mesh is None or mesh.shape[MODEL] == 1 or not around.empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _kept(mesh: Mesh, x: Array, spec: PartitionSpec) -> Array:
    around = jax.sharding.get_abstract_mesh()
    place = NamedSharding(mesh if around.empty else around, spec)
    return jax.lax.with_sharding_constraint(x, place)


def gathered(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Return a tree that this process can read, where other processes hold parts of it.

    All of them must ask for it at the same moment.
    """
    if mesh is None or not mesh.is_multi_process:
        return tree
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)


def spread_nbytes(tree: PyTree) -> int:
    """Return the bytes of arrays, or of their shapes, on all devices that hold them, together."""

    def one(x: Any) -> int:
        place = getattr(x, "sharding", None)
        if place is None:
            return x.size * x.dtype.itemsize
        return math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize * len(place.device_set)

    return sum(one(x) for x in jax.tree.leaves(tree))


def weight_places(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Return the placement of weights while they are read, for `jaxmem.load(sharding=...)`."""
    return lambda path, shape: place_of(mesh, _known(path, ()), shape)


def uneven(mesh: Mesh, tree: PyTree, stacks: Sequence[Any] = ()) -> list[str]:
    """Return the leaves that a rule would cut and the devices do not divide: path and shape."""
    count, out = mesh.shape[MODEL], []
    for path, x in named(tree, stacks)[0]:
        axis = axis_of(path, x.ndim)
        if axis is not None and x.shape[axis] > 1 and x.shape[axis] % count:
            out.append(f"{path} {tuple(x.shape)}")
    return out
