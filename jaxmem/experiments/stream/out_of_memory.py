"""What to say when the device has no room for a checkpoint and its stream."""

from __future__ import annotations

from jaxmem.experiments.benchmark.price import nbytes
from jaxmem.experiments.stream.config import StreamConfig
from jaxmem.experiments.stream.cost import device_limit
from jaxmem.experiments.stream.job import Plan
from jaxmem.memory.bank.bank import footprint
from jaxmem.models.load import load
from jaxmem.report.numbers import size


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of the runtime says that memory ran out."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def asked_and_price(config: StreamConfig, ready: Plan | None) -> str:
    """Return an error that names what was asked, and the bytes that it needs at least.

    `ready` is how far the run came; None: the weights were being loaded.
    """
    needs = []
    weights = _weights(config) if ready is None else nbytes(ready.job.model.params)
    if weights is not None:
        needs.append(f"{size(weights)} of weights")
    if ready is not None:
        needs += [
            f"{size(footprint(one.memory, ready.spec).device)} of state ({one.name})"
            for one in ready.contestants
        ]
    price = f" needs {' and '.join(needs)}, and room to compute in" if needs else ""
    room = device_limit()
    has = "" if room is None else f"; the device has {size(room)}"
    memory = config.compare or config.memory
    return (
        f"the device ran out of memory while {'loading' if ready is None else 'streaming'}: "
        f"--model {config.model} in {config.dtype} with --memory {memory} and --budget "
        f"{config.budget}{price}{has}. Take a smaller model or budget, fewer pixels "
        "(--max-pixels), or shorter chunks (--chunk-seconds); `python -m "
        "jaxmem.experiments.benchmark price` says what each of them needs."
    )


def _weights(config: StreamConfig) -> int | None:
    """Return the bytes of a checkpoint's weights by their shapes; None where those are unknown."""
    try:
        return nbytes(load(config.model or "", abstract=True, dtype=config.dtype).params)
    except ValueError:
        return None
