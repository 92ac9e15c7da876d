"""What a compiled program says of itself: copies of large arrays, and temporary memory."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jaxmem.memory.sizes import shapes
from jaxmem.typing import PyTree

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w-]+)\((.*)$"
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_PASSED = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call opt-barrier "
    "copy copy-start copy-done async-start async-update async-done dynamic-update-slice".split()
)
"""Instructions that write no array of their own, in place, or are counted as copies."""
_COLLECTIVE = re.compile(
    r" (all-(?:reduce|gather|to-all)|reduce-scatter|collective-\w+|ragged-all-to-all|send|recv)"
    r"(?:-start)?\("
)


class Compiled(NamedTuple):
    """Exact figures of a compiled step."""

    copies: int  # of arrays as large as all layers' keys, in one pass of every loop's body
    temporaries: int  # bytes
    rewritten: int  # such arrays that something else than a copy writes whole, in the same pass


class _Op(NamedTuple):
    """An instruction of the text."""

    shapes: tuple[tuple[str, str], ...]  # type and sides of what it returns, a tuple's in order
    kind: str
    operands: tuple[str, ...]
    calls: str | None
    root: bool

    @property
    def sizes(self) -> list[int]:
        """Entries of every array that it returns."""
        return [math.prod(int(n) for n in sides.split(",") if n) for _, sides in self.shapes]


_Ops = dict[str, _Op]


def inspect(compiled: Any, pool: int) -> Compiled:
    """Return the figures of a compiled step.

    On a GPU most copies are no instruction `copy`: a fusion copies where its root is no update in
    place. An update in place takes a whole operand, and of that reads nothing but what it replaces.

    Args:
      compiled: what `jax.jit(...).lower(...).compile()` returned.
      pool: entries of the smallest array that counts as large, see `pool_size`.
    """
    parts = _computations(compiled.as_text())
    copies = sum(
        max(op.sizes, default=0) >= pool
        for ops in parts.values()
        for op in ops.values()
        if op.kind in ("copy", "copy-start")
    )
    rewritten = sum(
        size >= pool and not _in_place(leaf, ops)
        for written in _written(parts)
        for size, leaf, ops in written
    )
    memory = compiled.memory_analysis()
    return Compiled(copies, int(memory.temp_size_in_bytes), rewritten)


def large(compiled: Any, entries: int) -> dict[str, int]:
    """Return how often the text names an array of at least so many entries, by type and sides.

    What is named inside of a fusion is no array: its numbers pass through registers.
    """
    found: Counter[str] = Counter()
    parts = _computations(compiled.as_text())
    for ops in (parts[name] for name in parts.keys() - _fused(parts)):
        for op in ops.values():
            for (kind, sides), size in zip(op.shapes, op.sizes, strict=True):
                if size >= entries:
                    found[f"{kind}[{sides}]"] += 1
    return dict(found)


def collectives(compiled: Any) -> list[str]:
    """Return the instructions by which devices wait for each other."""
    return _COLLECTIVE.findall(compiled.as_text())


def pool_size(program: Any) -> int:
    """Return the entries of the largest array that a memory holds, over all layers that share it.

    Fewer than this are copied for good reasons: one layer's window, or a chunk.
    """
    states = shapes(program.memory, program.spec)
    leaves: PyTree = [max(x.size for x in jax.tree.leaves(state.slots)) for state in states]
    return sum(leaves)


def _computations(text: str) -> dict[str, _Ops]:
    """Return the instructions of every computation, by their names."""
    found: dict[str, _Ops] = {}
    ops: _Ops = {}
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            ops = found.setdefault(head[1], {})
        elif one := _INSTRUCTION.match(line):
            root, name, returned, kind, rest = one.groups()
            calls = re.search(r"\bcalls=%?([\w.-]+)", rest)
            operands = tuple(re.findall(r"%([\w.-]+)", rest.split(")", 1)[0]))
            of = tuple(_SHAPE.findall(returned))
            ops[name] = _Op(of, kind, operands, calls and calls[1], root is not None)
    return found


def _fused(parts: dict[str, _Ops]) -> set[str | None]:
    """Return the computations that are the insides of fusions."""
    return {op.calls for ops in parts.values() for op in ops.values() if op.kind == "fusion"}


def _written(parts: dict[str, _Ops]) -> Iterator[Iterator[tuple[int, _Op, _Ops]]]:
    """Yield what each instruction outside of fusions writes: sizes, and what computes them."""
    inside = _fused(parts)
    for name, ops in parts.items():
        for op in ops.values() if name not in inside else ():
            if op.kind == "fusion" and op.calls in parts:
                body = parts[op.calls]
                (root,) = (x for x in body.values() if x.root)
                leaves = [body[x] for x in root.operands] if root.kind == "tuple" else [root]
                yield ((max(x.sizes, default=0), x, body) for x in leaves if x.kind != "copy")
            elif op.kind not in _PASSED:
                yield ((size, op, ops) for size in op.sizes)


def _behind(name: str, ops: _Ops) -> str:
    """Return the instruction whose bytes a name stands for."""
    while ops[name].kind == "bitcast":
        name = ops[name].operands[0]
    return name


def _in_place(op: _Op, ops: _Ops) -> bool:
    """Return whether the root of a fusion writes a part of an operand and leaves the rest."""
    while op.kind == "bitcast":
        op = ops[op.operands[0]]
    if op.kind != "dynamic-update-slice":
        return False
    whole, place = _behind(op.operands[0], ops), op.operands[2:]
    reads = [x for x in ops.values() if any(_is(whole, name, ops) for name in x.operands)]
    others = [x for x in reads if x is not op and x.kind != "bitcast"]
    same = all(x.kind == "dynamic-slice" and x.operands[1:] == place for x in others)
    return ops[whole].kind == "parameter" and same


def _is(whole: str, name: str, ops: _Ops) -> bool:
    return name in ops and _behind(name, ops) == whole
