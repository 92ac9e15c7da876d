"""Choice of a back end by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

# What None tries, in order. The Pallas kernels have not been timed on a GPU, so they are asked for
# by name only (docs/kernels.md says what it takes to put them here).
DEFAULT = ("xla",)


def call(
    backends: Mapping[str, Callable[..., Any]],
    implementation: str | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call the back end named `implementation`, or the first of `DEFAULT` that can do it.

    Raises:
      ValueError: if there is no back end of that name.
      NotImplementedError: if the named one (or, with None, every one) cannot do what is asked.
    """
    if implementation is not None:
        if implementation not in backends:
            raise ValueError(
                f"implementation must be None or one of {sorted(backends)}, got {implementation!r}."
            )
        return backends[implementation](*args, **kwargs)
    reasons = []
    for name in DEFAULT:
        try:
            return backends[name](*args, **kwargs)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
    raise NotImplementedError("no back end can do this: " + "; ".join(reasons))


def pallas(module: str, function: str) -> dict[str, Callable[..., Any]]:
    """Return the back ends "pallas" and "pallas_interpret" of an operation.

    The module is imported at the first call: Pallas is slow to import, and its Triton back end is
    marked for removal from JAX. Without it the back ends raise NotImplementedError.
    """

    def call(*args: Any, interpret: bool, **kwargs: Any) -> Any:
        try:
            kernel = getattr(import_module(module), function)
        except ImportError as error:
            raise NotImplementedError(f"this JAX has no Pallas Triton: {error}") from error
        return kernel(*args, interpret=interpret, **kwargs)

    return {
        "pallas": lambda *args, **kwargs: call(*args, interpret=False, **kwargs),
        "pallas_interpret": lambda *args, **kwargs: call(*args, interpret=True, **kwargs),
    }
