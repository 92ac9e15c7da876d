"""Unmodified Hugging Face checkpoint directories: `config.json` and safetensors weights.

A family file says which tensor of the checkpoint goes where by a *weight table*, a plain dict
from tree paths (dots between the keys of the nested dict) to `Weight`:

    table = {
        "norm.scale": Weight("model.norm.weight", (E,)),
        "layers.q.kernel": Weight(
            "model.layers.{}.self_attn.q_proj.weight", (H * D, E), "linear", layers=L
        ),
        "layers.q.bias": Weight("model.layers.{}.self_attn.q_proj.bias", (H * D,), layers=L),
    }
    params = load(directory, table, dtype=jnp.bfloat16)   # {"norm": {...}, "layers": {...}}

* `name` and `shape` are the tensor's as the checkpoint stores it; `turn` says how it is laid out
  in the tree ("linear": torch's [out, in] becomes a kernel [in, out]; see `weights.Turn`).
* `{}` in a name counts from 0 to `layers` - 1; the tensors are stacked on a leading axis L.
* `rows` takes some rows of a fused tensor (q out of a fused qkv).
* Tables are joined with `|` and moved under a key with `under("decoder", table)`; `dense` and
  `norm` write the usual pairs of entries, `decoder_table` those of `jaxmem.decoder.decoder`.
* Names in the table are those of newer checkpoints; older layouts are brought to them by
  `renames`, pairs of prefixes (old, new) tried in order on every name of the checkpoint, each
  once: `[("thinker.", ""), ("language_model.model.", "model.language_model.")]`.
* Every tensor that is neither in the table nor matched by a pattern of `ignore` (`fnmatch`,
  against the renamed name) is an error, as is every missing or misshaped one; they are reported
  together.
* Quantised matrices (`jaxmem.models.hf.quantized`) are read as those that they were made of.

Weights are read tensor by tensor straight to their final dtype and placement: a stack exists
once, on its devices, and the host holds a mapped part of one file and one tensor at a time.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from safetensors import SafetensorError, safe_open

from jaxmem.models.hf.config import optional_json, read_json
from jaxmem.models.hf.keys import section
from jaxmem.models.hf.quantized import Stored, gathered
from jaxmem.models.hf.weights import Place, Table, Weight, nest, turned
from jaxmem.typing import Array, Params

Renames = Sequence[tuple[str, str]]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHOWN = 10  # tensors that an error names
ROWS = 4096  # of a matrix that are compared at once
MAPPED = 2**28  # bytes that are read of a file before it is opened anew
FLOATS = ("F64", "F32", "F16", "BF16")
BUFFERS = ("*rotary_emb.inv_freq", "*rotary_pos_emb.inv_freq", "*.position_ids")
"""Tensors that some checkpoints store and that follow from the config; always ignored."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")


def is_checkpoint(directory: Path) -> bool:
    """Return whether a directory has weights of a whole model, or an index of them."""
    return any((directory / name).is_file() for name in (SINGLE, INDEX))


def weight_files(directory: str | Path) -> list[Path]:
    """Return a checkpoint's safetensors files: the single one, or the shards of its index.

    Raises:
      ValueError: if there are none (pickled weights are refused), or shards are missing.
    """
    folder = Path(directory)
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        named = section(read_json(folder, INDEX), "weight_map", INDEX)
        shards = sorted(set(map(str, named.values())))
        lost = [shard for shard in shards if not (folder / shard).is_file()]
        if lost or not shards:
            what = f"lacks the shards {', '.join(lost)}" if lost else "has an index without shards"
            raise ValueError(f"{folder} {what}; download the checkpoint again.")
        return [folder / shard for shard in shards]
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} has pickled weights only ({', '.join(pickles)}). Unpickling runs whatever "
            "code the file holds, so they are not read; save the model as safetensors "
            "(save_pretrained of transformers does) and give that directory."
        )
    raise ValueError(
        f"no weights in {folder}: expected model.safetensors, or model.safetensors.index.json "
        "with its shards."
    )


def stored_tensors(directory: str | Path) -> list[Stored]:
    """Return what a checkpoint holds, from config.json and the headers of its files only.

    A quantised matrix counts as one tensor, see `quantized`.
    """
    found = [item for path in weight_files(directory) for item in headers(path)]
    return gathered(found, optional_json(directory, "config.json"))


def headers(path: Path) -> list[Stored]:
    """Return what a safetensors file holds; ValueError if it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            pieces = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return [
                Stored(path, key, tuple(piece.get_shape()), str(piece.get_dtype()))
                for key, piece in pieces.items()
            ]
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); download it again."
        ) from None


def rename(name: str, renames: Renames) -> str:
    """Return a name with every matching prefix replaced, in order, each pair at most once."""
    for old, new in renames:
        if name.startswith(old):
            name = new + name[len(old) :]
    return name


def back(renames: Renames) -> Renames:
    """Return the pairs that undo others."""
    return tuple((new, old) for old, new in reversed(renames))


def match(
    stored: Iterable[Stored], table: Table, *, renames: Renames = (), ignore: Sequence[str] = ()
) -> dict[str, Stored]:
    """Return the stored tensor of every name in the table.

    Raises:
      ValueError: saying what to do, and naming up to ten tensors that are missing, unexpected,
        misshaped, stored twice or of an unknown dtype.
    """
    stored = list(stored)
    expected = {name: weight for weight in table.values() for name in weight.names}
    found: dict[str, Stored] = {}
    problems = []
    for item in stored:
        name = rename(item.key, renames)
        if name in found:
            problems.append(f"  {name}: stored twice, as {found[name].key} and as {item.key}")
        elif name in expected:
            found[name] = item
        elif not any(fnmatchcase(name, pattern) for pattern in (*BUFFERS, *ignore)):
            problems.append(f"  {name}: unexpected, shape {item.shape}")
    for name, weight in expected.items():
        item = found.get(name)
        if item is None:
            problems.append(f"  {name}: missing, expected shape {weight.shape}")
            continue
        if item.shape != weight.shape:
            problems.append(f"  {name}: has shape {item.shape}, expected {weight.shape}")
        if item.dtype not in FLOATS:
            problems.append(f"  {name}: has dtype {item.dtype}, known are {', '.join(FLOATS)}")
    if problems:
        raise ValueError(
            f"the weights do not fit config.json: {_advice(stored)}. "
            + listed(problems, "tensor(s) differ")
        )
    return found


def listed(problems: Sequence[str], what: str) -> str:
    """Return the number of problems and a line for each of the first ten."""
    some = f", {SHOWN} of them are" if problems[SHOWN:] else ""
    return f"{len(problems)} {what}{some}:\n" + "\n".join(sorted(problems)[:SHOWN])


def _advice(stored: Iterable[Stored]) -> str:
    """Return what to do with tensors that do not fit."""
    adapter = "give its base, and its directory as adapter= or --adapter"
    whole = "give a whole checkpoint of this family, not quantised"
    signs = {
        f"an adapter; {adapter}": (".lora_A.", ".lora_B."),
        f"quantised; {whole}": (
            ".qweight", ".absmax", ".weight_packed", ".weight_scale_inv", ".SCB",
        ),
    }  # fmt: skip
    for what, parts in signs.items():
        if any(part in item.key for item in stored for part in parts):
            return f"they are {what}"
    return "use the config.json and the weights of one checkpoint, whole and not quantised"


def same(one: Stored, other: Stored | None) -> bool:
    """Return whether two stored tensors hold equal numbers; they are read some rows at a time."""
    if other is None or one.shape != other.shape or one.source or other.source:
        return False
    with safe_open(one.file, "numpy") as a, safe_open(other.file, "numpy") as b:
        parts, rows = (a.get_slice(one.key), b.get_slice(other.key)), one.shape[0]
        return all(
            np.array_equal(*(part[i : min(i + ROWS, rows)].astype(np.float32) for part in parts))
            for i in range(0, rows, ROWS)
        )


def load(
    directory: str | Path,
    table: Table,
    *,
    dtype: Any = None,
    sharding: Place | Sharding | None = None,
    renames: Renames = (),
    ignore: Sequence[str] = (),
    stored: Sequence[Stored] | None = None,
) -> Params:
    """Read the weights of a table into a nested dict.

    Args:
      directory: the checkpoint.
      table: tree paths to stored tensors.
      dtype: of every leaf; None: as stored, float64 as float32.
      sharding: placement of every leaf, or a function of its path and shape (`mesh_rule`, or
        `jaxmem.decoder.placing.weight_places`); None: the default device.
      renames: see the module's docstring.
      ignore: patterns of names that need not be in the table.
      stored: the tensors, where they are not just those of the files (`adapter.merged`).

    Raises:
      ValueError: see `weight_files` and `match`, or if a leaf does not divide over its devices;
        nothing is read before all names, shapes, dtypes and placements are checked.
    """
    stored = stored_tensors(directory) if stored is None else stored
    matched = match(stored, table, renames=renames, ignore=ignore)
    cut = lambda path: sharding(path, table[path].tree_shape) if callable(sharding) else sharding
    places = {path: cut(path) for path in table}
    _check_places(table, places)
    leaves: dict[str, Array] = {}
    jobs: dict[tuple[Path, int], list[tuple[str, int, Stored]]] = {}
    begun: Counter[Path] = Counter()  # of each file so far, as numbers of two bytes
    for path, weight in table.items():
        for layer, name in enumerate(weight.names):
            item = matched[name]
            jobs.setdefault((item.file, begun[item.file] // MAPPED), []).append((path, layer, item))
            begun[item.file] += math.prod(item.shape) * 2
    for (file, _), parts in jobs.items():
        # One mapping at a time, and not for long: what was read through it counts as memory.
        with safe_open(file, "numpy") as opened:
            for path, layer, item in parts:
                weight = table[path]
                rows = slice(*(weight.rows or (None,)))
                whole = opened.get_slice(item.key) if item.source is None else item.source.read()
                # What is read is a view of the mapping, which JAX would go on to use as it is.
                part = np.array(turned(whole[rows], weight.turn))
                kind = np.float32 if part.dtype == np.float64 else part.dtype
                kind = kind if dtype is None else dtype
                leaves[path] = _placed(leaves.get(path), part, weight, layer, kind, places[path])
    return nest({path: leaves[path] for path in table})


def _check_places(table: Table, places: Mapping[str, Sharding | None]) -> None:
    """Raise a ValueError that names every leaf that its placement does not divide."""
    uneven = []
    for path, place in places.items():
        try:
            if place is not None:
                place.shard_shape(table[path].tree_shape)
        except ValueError:
            uneven.append(f"  {path}: shape {table[path].tree_shape}, {place}")
    if uneven:
        raise ValueError(
            "these weights cannot be cut evenly over the devices:\n"
            + "\n".join(uneven)
            + "\nPut a rule in front that replicates them, or use another number of devices."
        )


def _placed(
    leaf: Array | None,
    part: np.ndarray,
    weight: Weight,
    layer: int,
    dtype: Any,
    place: Sharding | None,
) -> Array:
    """Return the leaf with one stored tensor in it."""
    # The host's copy is let go before the next one is read: queued transfers would hold many.
    if weight.layers is None:
        return jax.block_until_ready(jax.device_put(part, place).astype(dtype))
    if leaf is None:
        leaf = jnp.zeros((len(weight.names), *part.shape), dtype, device=place)
    one = place
    if isinstance(place, NamedSharding):
        one = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    write = jax.jit(_write, donate_argnums=0, out_shardings=place)
    return jax.block_until_ready(write(leaf, jax.device_put(part, one), layer))


def _write(stack: Array, part: Array, layer: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, part.astype(stack.dtype), layer, 0)
