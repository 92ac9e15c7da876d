"""What a compiled program says of itself: copies of large arrays, and temporary memory."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import jax

from jaxmem.memory.base import shapes
from jaxmem.typing import PyTree

_COPY = re.compile(r" = \w+\[([\d,]+)\]\S* copy\(")


class Compiled(NamedTuple):
    """Exact figures of a compiled step."""

    copies: int  # of arrays as large as all layers' keys, in one pass of every loop's body
    temporaries: int  # bytes


def inspect(compiled: Any, pool: int) -> Compiled:
    """Return the figures of a compiled step.

    Args:
      compiled: what `jax.jit(...).lower(...).compile()` returned.
      pool: entries of the smallest array that counts as large, see `pool_size`.
    """
    found = _COPY.finditer(compiled.as_text())
    copies = sum(math.prod(int(n) for n in copy[1].split(",")) >= pool for copy in found)
    return Compiled(copies, int(compiled.memory_analysis().temp_size_in_bytes))


def pool_size(program: Any) -> int:
    """Return the entries of the largest array that a memory holds, over all layers that share it.

    Fewer than this are copied for good reasons: one layer's window, or a chunk.
    """
    states = shapes(program.memory, program.spec)
    leaves: PyTree = [max(x.size for x in jax.tree.leaves(state.slots)) for state in states]
    return sum(leaves)
