"""Choice of a back end by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import jax

DEFAULT = ("xla",)
"""What None tries, in order, after what an operation prefers on a GPU."""
AMPERE = 8
"""Least compute capability of the Pallas kernels, sm_80."""
_first: tuple[str, ...] = ()


@contextmanager
def preferring(name: str | None) -> Iterator[None]:
    """Let None try the back end `name` before any other; with None nothing changes.

    It counts while a program is traced: one that is compiled already keeps its kernels.
    """
    global _first
    before = _first
    _first = before if name is None else (name,)
    try:
        yield
    finally:
        _first = before


def on_ampere() -> bool:
    """Return whether what is traced now is for one NVIDIA GPU, Ampere or later.

    A program for a mesh is for many: XLA cannot cut a kernel of ours along its heads.
    """
    device = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
    if jax.default_backend() != "gpu" or not jax.sharding.get_abstract_mesh().empty:
        return False
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return major.isdigit() and int(major) >= AMPERE  # AMD's are names


def call(
    backends: Mapping[str, Callable[..., Any]],
    implementation: str | None,
    *args: Any,
    on_gpu: tuple[str, ...] = (),
    **kwargs: Any,
) -> Any:
    """Call the back end named `implementation`, or with None the first that can do it.

    Tried are, in this order, what `preferring` says, `on_gpu` where the program is for an NVIDIA
    GPU (what was measured to be fastest there, experiments/gpu), and `DEFAULT`.

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
    for name in (*_first, *(on_gpu if on_gpu and on_ampere() else ()), *DEFAULT):
        if name not in backends:
            continue
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
