"""What the two Flash-VStream memories have in common: whose form, and sizes of their own kind."""

from __future__ import annotations

from typing import Any, Literal, get_args

Form = Literal["as_released", "as_published"]


def check_options(form: str, sizes: Any, kind: type) -> None:
    """Refuse an unknown form, and sizes that are not of a kind or do not go together.

    Args:
      form: as in the memory.
      sizes: as in the memory; None: those of the model's frames.
      kind: what sizes must be; its `check` looks at their numbers.

    Raises:
      ValueError: naming what came and what was expected.
    """
    if form not in get_args(Form):
        raise ValueError(f'form must be "as_released" or "as_published", got {form!r}.')
    if sizes is None:
        return
    if not isinstance(sizes, kind):
        raise ValueError(
            f"sizes must be {kind.__name__}(...), got {sizes!r}: leave them out for those of the "
            "model's frames, and let jaxmem.within fit the memory to bytes."
        )
    sizes.check()
