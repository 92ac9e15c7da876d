"""The legend: one letter per axis, used in every signature and docstring of the package.

| letter | meaning | letter | meaning |
|---|---|---|---|
| B | streams side by side | T | tokens of a chunk |
| L | decoder layers | S | slots of a memory (per layer) |
| H | query heads | N | the pool that selection chooses from, S + T |
| G | KV heads | Q | query rows |
| Gm | KV heads whose kept sets differ (1 or G) | D | head width |
| A | position axes (1, or 3 for M-RoPE) | E | model width |
| P | prefix tokens | U | width of a redundancy vector |

Kinds of token are `int8` data, see `jaxmem.kv`.
"""

from typing import Any

from jax import Array
from jaxtyping import Bool, Float, Int, Num, UInt

PyTree = Any
"""Any nest of tuples, lists, dicts and NamedTuples with arrays at its leaves."""

Params = Any
"""A plain pytree of weights; always an argument of jitted functions, never closed over."""

Keys = Float[Array, "N G D"]
Queries = Float[Array, "Q H D"]
Positions = Num[Array, "N Gm A"]
Kinds = Int[Array, "N Gm"]
Hidden = Float[Array, "T E"]
Scalar = Num[Array, ""]

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Hidden",
    "Int",
    "Keys",
    "Kinds",
    "Num",
    "Params",
    "Positions",
    "PyTree",
    "Queries",
    "Scalar",
    "UInt",
]
