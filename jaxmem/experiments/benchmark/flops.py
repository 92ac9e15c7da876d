"""Floating-point operations of a traced function, counted from the shapes of its products.

A compiler's own estimate counts the body of a loop once, however often it runs, and a model here
is nothing but loops (over layers, tiles and chunks). The traced program knows their lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count(function: Callable[..., Any], *args: Any) -> int:
    """Return the operations of all matrix products and convolutions of `function(*args)`.

    It is traced only: `args` may be `jax.ShapeDtypeStruct`s, and nothing is computed. A product of
    [m, k] with [k, n] counts 2 m k n. Everything else (norms, softmax, sorting) is not counted; of
    a branch the dearer side is. A loop of unknown length counts once: none of the decoder's or the
    encoders' is such.
    """
    return _of(_open(jax.make_jaxpr(function)(*args)))


def _of(jaxpr: Any) -> int:
    total = 0
    for step in jaxpr.eqns:
        name, params = step.primitive.name, step.params
        if name == "dot_general":
            ((contracted, _), _) = params["dimension_numbers"]
            shape = step.invars[0].aval.shape
            total += 2 * step.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = step.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * step.outvars[0].aval.size * kernel.size // outputs
        elif name == "scan":
            total += params["length"] * sum(_of(inner) for inner in _inside(params))
        elif name == "cond":
            total += max(_of(_open(branch)) for branch in params["branches"])
        else:
            total += sum(_of(inner) for inner in _inside(params))
    return total


def _inside(params: dict[str, Any]) -> list[Any]:
    """Return the programs that an operation calls once (jit, checkpoint, while and the like)."""
    return [_open(value) for value in params.values() if hasattr(_open(value), "eqns")]


def _open(program: Any) -> Any:
    """Return a traced program without the constants it is closed over."""
    return getattr(program, "jaxpr", program)
