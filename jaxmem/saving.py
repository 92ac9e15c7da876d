"""Save live streams, restore them in another process, and go on as if nothing had happened.

A folder holds the last few saves, numbered. Each is a folder of two files: `arrays.bin`, and
`made.json` with what made the streams, what the host knows, and a checksum of every array. A save
appears under its number when it is complete, so a process may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.checks import arrays_of, difference
from jaxmem.decoder.program import Carry, Program, description, init_carry, settled
from jaxmem.typing import Array, Params, UInt

FORMAT = 3
"""Formats 1 and 2 were single folders of orbax; they are refused."""

KEPT = 2
"""Saves that a folder keeps: the last one, and the one before it should the last be damaged."""


class SavedPiece(NamedTuple):
    """A piece that waited for its chunk to fill."""

    frames: np.ndarray
    samples: np.ndarray


class Part(NamedTuple):
    """One stream, as it is saved."""

    made: Mapping[str, str]  # by what; empty: unknown
    numbers: Mapping[str, Any]  # what the host knows of it, as JSON
    arrays: Mapping[str, Any]


def made_by(program: Program, params: Params | None = None) -> dict[str, str]:
    """Return what a stream depends on, in words: memory and options, sizes, decoder, weights."""
    made = description(program)
    return made if params is None else made | {"weights": fingerprint(params)}


def fingerprint(params: Params) -> str:
    """Return a hash of weights: names, shapes, and a checksum of the bits of every array."""
    found, leaves = hashlib.sha256(), jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get([_checksum(leaf) for _, leaf in leaves])
    for (path, leaf), number in zip(leaves, sums, strict=True):
        words = f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {number.tolist()}"
        found.update(words.encode())
    return found.hexdigest()[:32]


@jax.jit
def _checksum(array: Array) -> UInt[Array, "2"]:
    """Return two sums of an array's bits, the same on every device: integers wrap, never round."""
    bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    bits = bits.astype(jnp.uint32)
    placed = bits
    for axis in range(bits.ndim):  # times odd numbers, so that no change is lost
        place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        placed = placed * (np.uint32(2) * place + np.uint32(2 * axis + 3))
    return jnp.stack([jnp.sum(bits, dtype=jnp.uint32), jnp.sum(placed, dtype=jnp.uint32)])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def part_of(
    carry: Carry,
    *,
    made: Mapping[str, str] | None = None,
    host: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> Part:
    """Return a live stream as it is saved.

    Args:
      carry: the stream.
      made: `made_by` of what made it; `carry_of` then refuses anything else. It reads all weights,
        so a stream that saves itself computes it once.
      host: arrays that the host knows of the stream.
      numbers: what else it knows, as JSON.
    """
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, carry)
    arrays = {f"carry.{name}": x for name, x in arrays_of(plain).items()}
    arrays |= {f"host.{name}": x for name, x in (host or {}).items()}
    return Part(made or {}, numbers or {}, arrays)


def save(
    path: str | Path,
    carry: Carry,
    *,
    program: Program | None = None,
    params: Params | None = None,
    replace: bool = False,
    keep: int = KEPT,
) -> None:
    """Write a live stream to the folder `path`, all of it or nothing.

    Args:
      path: of the folder.
      carry: the stream.
      program: that made it; `restore` then refuses another memory or other options.
      params: weights that made it; `restore` then refuses others.
      replace: whether `path` may hold saved streams; the new one is what `restore` returns.
      keep: how many saves stay, the new one included.

    Raises:
      ValueError: if there is something at `path` that is not to be replaced.
      OSError: if the disc is full or cannot be written to; what was saved before stays.
    """
    made = None if program is None else made_by(program, params)
    write(path, {"stream": part_of(carry, made=made)}, replace, keep)


def write(
    path: str | Path,
    parts: Mapping[str, Part],
    replace: bool = False,
    keep: int = KEPT,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write streams of one moment to the folder `path`, all of it or nothing; see `save`.

    Args:
      path: of the folder.
      parts: streams by name.
      replace: as in `save`.
      keep: as in `save`.
      more: what else is known of the moment, as JSON.

    Raises:
      ValueError: as in `save`.
      OSError: as in `save`.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    target = Path(path).absolute()
    check_target(target, replace)
    target.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        for leftover in target.glob(".[wr]*-*"):  # of processes that were killed
            shutil.rmtree(leftover, ignore_errors=True)
        before = numbered(target)
        temporary = target / f".writing-{os.getpid()}-{threading.get_ident()}"
        temporary.mkdir()
        try:
            _fill(temporary, parts, more or {})
            number = int(before[-1].name) + 1 if before else 1
            temporary.rename(target / f"{number:08d}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(target)
        for old in before[: len(before) + 1 - keep]:
            gone = old.rename(target / f".removed-{old.name}")  # never half a save by its name
            shutil.rmtree(gone, ignore_errors=True)


def check_target(path: str | Path, replace: bool) -> None:
    """Refuse a folder that holds something else than saved streams, or those unless replaced.

    Raises:
      ValueError: naming the folder.
    """
    target = Path(path).absolute()
    if not target.exists():
        return
    if not target.is_dir() or [x for x in target.iterdir() if not _ours(x)]:
        raise ValueError(
            f"{target} exists already and is no folder of saved streams: name a new folder, or "
            "remove it first."
        )
    if not replace and numbered(target):
        raise ValueError(
            f"{target} exists already: name a new folder, remove it first, or replace it "
            "(replace=True)."
        )


def _ours(path: Path) -> bool:
    return re.fullmatch(r"\d{8}|\.writing-.*|\.removed-.*", path.name) is not None


def numbered(target: Path) -> list[Path]:
    """Return the complete saves in a folder, the last one last."""
    if not target.is_dir():
        return []
    return sorted(x for x in target.iterdir() if re.fullmatch(r"\d{8}", x.name))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, where the system has such locks: two never save there at once."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):  # Windows
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disc, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _fill(folder: Path, parts: Mapping[str, Part], more: Mapping[str, Any]) -> None:
    """Write the two files of a save, and have them on the disc."""
    index: dict[str, list[Any]] = {}
    with (folder / "arrays.bin").open("wb") as file:
        for part, (_, _, arrays) in parts.items():
            for name, leaf in arrays.items():
                array = np.ascontiguousarray(np.asarray(leaf))  # one at a time: banks are large
                data = array.reshape(-1).view(np.uint8).data
                shape = list(np.shape(leaf))
                index[f"{part}/{name}"] = [str(array.dtype), shape, file.tell(), _sum(data)]
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    named = {name: {"made": part.made, "numbers": part.numbers} for name, part in parts.items()}
    document = {"format": FORMAT, "parts": named, "more": more, "arrays": index}
    text = json.dumps(document)
    document["sum"] = _sum(_canonical(json.loads(text)))
    with (folder / "made.json").open("w") as file:
        file.write(json.dumps(document, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _sum(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


@dataclass(frozen=True)
class Saved:
    """A save that can be read: its document is whole, its arrays are checked as they are read.

    Attributes:
      where: its folder.
      document: what `made.json` holds.
    """

    where: Path
    document: Mapping[str, Any]

    @property
    def more(self) -> Mapping[str, Any]:
        """Return what else is known of the moment."""
        return self.document["more"]

    def part(self, name: str | None = None) -> Part:
        """Return a stream by name; None: the only one.

        Raises:
          ValueError: if there is no such stream, or an array is damaged.
        """
        names = list(self.document["parts"])
        name = names[0] if name is None and len(names) == 1 else name
        if name not in names:
            raise ValueError(
                f"{self.where} holds the streams {', '.join(names)}, not {name}: name one of them."
            )
        head, start = self.document["parts"][name], f"{name}/"
        mine = {k: v for k, v in self.document["arrays"].items() if k.startswith(start)}
        arrays = {k.removeprefix(start): self._array(k, *v) for k, v in mine.items()}
        return Part(head["made"], head["numbers"], arrays)

    def _array(self, name: str, dtype: str, shape: list[int], at: int, wanted: str) -> np.ndarray:
        kind = jnp.dtype(dtype)
        try:
            with (self.where / "arrays.bin").open("rb") as file:
                file.seek(at)
                data = bytearray(file.read(int(np.prod(shape, dtype=np.int64)) * kind.itemsize))
        except OSError as error:
            raise _damaged(self.where, str(error)) from error
        if _sum(data) != wanted:
            raise _damaged(self.where, f"its array {name} has another checksum")
        return np.frombuffer(data, np.uint8).view(kind).reshape(shape)


def _damaged(where: Path, what: str) -> ValueError:
    """Return the refusal of a save, which offers the last whole one before it."""
    offered = "there is none before it: begin anew"
    for old in reversed(numbered(where.parent)):
        if old.name < where.name and _is_whole(old):
            offered = f"the one before it is whole: restore {old}"
            break
    return ValueError(f"the stream saved at {where} is damaged ({what}); {offered}.")


def _is_whole(where: Path) -> bool:
    try:
        saved = Saved(where, _document(where))
        for name, found in saved.document["arrays"].items():
            saved._array(name, *found)
    except ValueError:
        return False
    return True


def _document(where: Path) -> dict[str, Any]:
    """Return the document of a save.

    Raises:
      ValueError: if it is damaged or of another format.
    """
    try:
        document = json.loads((where / "made.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(where, f"made.json: {error}") from error
    if not isinstance(document, dict):
        raise _damaged(where, "made.json is no document")
    found, form = document.pop("sum", None), document.get("format")
    if found is None and form in (1, 2):
        raise ValueError(
            f"the stream at {where} has format {form}, this release reads {FORMAT}: save the "
            "stream again with this release."
        )
    if found != _sum(_canonical(document)):
        raise _damaged(where, "made.json has another checksum")
    if form != FORMAT:
        raise ValueError(
            f"the stream at {where} has format {form}, this release reads {FORMAT}: restore it "
            "with the release that saved it."
        )
    return document


def read(path: str | Path) -> Saved:
    """Return the last save in a folder, or the one that `path` names itself.

    Raises:
      ValueError: if there is none, or it is damaged; the one before it is then offered.
    """
    source = Path(path).absolute()
    if not source.is_dir():
        raise ValueError(f"there is no saved stream at {source}: check the path.")
    found = numbered(source)
    if re.fullmatch(r"\d{8}", source.name) or (source / "made.json").exists():
        found = [source]
    if not found:
        raise ValueError(
            f"{source} is no saved stream of format {FORMAT}: none was ever completed there."
        )
    return Saved(found[-1], _document(found[-1]))


def restore(path: str | Path, program: Program, *, params: Params | None = None) -> Carry:
    """Return the live stream that was saved last at `path`, by an equal program.

    Args:
      path: of the folder; or of one save in it, to go back to the one before the last.
      program: that goes on with it.
      params: weights that go on with it; None: they are not compared.

    Raises:
      ValueError: if there is nothing at `path`, it is damaged (the save before it is offered), or
        it was saved by another program, with another memory, other options or other weights.
    """
    saved = read(path)
    return carry_of(saved.part(), program, params, saved.where)


def carry_of(part: Part, program: Program, params: Params | None, source: Path) -> Carry:
    """Return the live stream of a saved one; see `restore`.

    Raises:
      ValueError: if it was made otherwise.
    """
    wanted = made_by(program, params)
    stored = {k: v for k, v in part.made.items() if k in wanted}
    wanted = {k: v for k, v in wanted.items() if k in stored}
    if stored != wanted:
        raise ValueError(
            f"the stream at {source} was made otherwise ({difference(stored, wanted)}): restore "
            "it with the model, memory and options it was saved with."
        )
    empty = init_carry(program)
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, empty)
    found = {n.removeprefix("carry."): x for n, x in part.arrays.items() if n.startswith("carry.")}
    arrays, shapes = arrays_of(found, shapes=True), arrays_of(plain, shapes=True)
    if arrays != shapes:
        raise ValueError(
            f"the stream at {source} does not fit this program ({difference(arrays, shapes)}):"
            " restore it with the model, memory and budget it was saved with."
        )
    leaves = [
        jax.random.wrap_key_data(found[name], impl=jax.random.key_impl(like))
        if _is_key(like)
        else jnp.array(found[name])
        for name, like in arrays_of(empty).items()
    ]
    carry = jax.tree.unflatten(jax.tree.structure(empty), leaves)
    if not np.array_equal(carry.made_by, empty.made_by):
        raise ValueError(
            f"the stream at {source} was made by another program than this one "
            f"({program.memory!r}): restore it with the model, memory and options it was saved "
            "with."
        )
    return settled(program, carry)
