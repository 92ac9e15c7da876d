"""How the programs of a stream are compiled, priced ones included: `jax.jit` with options."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

NARROW = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
"""What the CPU's compiler is told where weights are narrower than float32.

What it does not multiply as it is, it would convert for all layers ahead of the loop over layers.
Without this pass it converts one layer at a time. Float32 programs keep the pass: without
it, chunks of the embedded model take 1.3 times as long.
"""
HALVES = frozenset({jnp.dtype("bfloat16"), jnp.dtype("float16")})


class Compiled:
    """`jax.jit` of a function, with `NARROW` where it applies; inside another function without.

    Nothing asks for the backend before the first call.
    """

    def __init__(
        self, function: Callable[..., Any], narrow: Callable[..., Any] | None = None, **how: Any
    ):
        """Wrap a function, and the one to run where `NARROW` applies; `how` is for `jax.jit`."""
        self._plain = jax.jit(function, **how)
        self._narrow = jax.jit(narrow or function, compiler_options=NARROW, **how)
        update_wrapper(self, function)

    def _of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # the weights come first
        if not any(getattr(x, "dtype", None) in HALVES for x in jax.tree.leaves(args[:1])):
            return self._plain
        # `jax.jit` refuses compiler options where it is traced itself; bits have no gradient
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((args, kwargs)))
        return self._plain if traced or jax.default_backend() != "cpu" else self._narrow

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        try:
            return self._of(args, kwargs)(*args, **kwargs)
        except ValueError as error:
            if "top-level" not in str(error):
                raise
            return self._plain(*args, **kwargs)  # traced, with nothing but constants

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """Lower the function as it is compiled for such arguments (arrays or their shapes)."""
        return self._of(args, kwargs).lower(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return what the compiled function has, such as `eval_shape`."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._plain, name)


def make_room(most: int = 40_000) -> None:
    """Let go of all compiled programs once they are many; for processes that compile hundreds.

    On a CPU a program holds dozens of mappings of memory, of which Linux gives a process 65,530.
    Beyond them the next program is not compiled, and the process ends with a fault of its segments.

    Args:
      most: mappings of this process up to which programs are kept.
    """
    if mappings() > most:
        jax.clear_caches()


def mappings() -> int:
    """Return the memory mappings of this process; 0 where the system does not say."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0
