"""Which order of layers and time a gradient may take, by what a layer's memory depends on."""

from __future__ import annotations

from jaxmem.memory.base import AnyMemory, FeatureMemory
from jaxmem.mixers.base import Mixer
from jaxmem.training.remat import LAYERS_OUTSIDE, SCHEMES, Scheme


def legal(memory: AnyMemory | Mixer) -> tuple[Scheme, ...]:
    """Return the schemes that are right for layers with this memory, or this mixer.

    Layers outside, a block of layers passes the whole stream before the next one begins. That is
    right only where what a layer holds depends on the layers below it and on itself: so it is of
    mixers and of memories that see one layer at a time. A memory that sees the whole stack may
    write from the layers above; one of features has no layers while it watches.
    """
    below = isinstance(memory, Mixer) or (
        not isinstance(memory, FeatureMemory) and memory.per == "layer"
    )
    return SCHEMES if below else tuple(s for s in SCHEMES if s not in LAYERS_OUTSIDE)


def check_order(memory: AnyMemory | Mixer, scheme: Scheme) -> None:
    """Refuse a scheme whose order a memory does not allow.

    Raises:
      ValueError: if the scheme passes layers over the whole stream, and the memory sees more than
        one layer.
    """
    allowed = legal(memory)
    if scheme not in allowed:
        raise ValueError(
            f"scheme {scheme!r} passes a block of layers over the whole stream, but {memory.name} "
            f"writes to a layer what others computed; take one of {', '.join(allowed)}."
        )
