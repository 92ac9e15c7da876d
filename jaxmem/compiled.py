"""How the programs of a stream are compiled, priced ones included: `jax.jit` with options."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any

import jax
from jax.core import Tracer


def compiler_options() -> dict[str, str] | None:
    """Return what the compiler is told on this backend; None: nothing."""
    if jax.default_backend() != "cpu":
        return None
    # The CPU multiplies bfloat16 as float32 and would convert the weights of all layers ahead of
    # the loop over layers. Without this pass it converts one layer at a time.
    return {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


class Compiled:
    """`jax.jit` of a function with `compiler_options`; inside another function plain `jax.jit`.

    Nothing asks for the backend before the first call.
    """

    def __init__(self, function: Callable[..., Any], **how: Any):
        """Wrap a function; `how` are the options of `jax.jit`."""
        self._function, self._how = function, how
        update_wrapper(self, function)

    @cached_property
    def _outer(self) -> Any:
        return jax.jit(self._function, compiler_options=compiler_options(), **self._how)

    @cached_property
    def _inner(self) -> Any:  # `jax.jit` refuses compiler options where it is traced itself
        return jax.jit(self._function, **self._how)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((args, kwargs))):
            return self._inner(*args, **kwargs)
        try:
            return self._outer(*args, **kwargs)
        except ValueError as error:
            if "top-level" not in str(error):
                raise
            return self._inner(*args, **kwargs)  # traced, with nothing but constants

    def __getattr__(self, name: str) -> Any:
        """Return what the compiled function has, such as `lower`."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._outer, name)
