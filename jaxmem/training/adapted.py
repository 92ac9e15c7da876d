"""A model with adapters merged into its weights."""

from __future__ import annotations

from pathlib import Path

from jaxmem.models.base import Model
from jaxmem.training import lora

ADAPTERS = Path(__file__).parents[1] / "assets" / "adapters"


def shipped() -> tuple[str, ...]:
    """Return the names of the adapters that come with the package."""
    return tuple(sorted(path.stem for path in ADAPTERS.glob("*.safetensors")))


def with_adapter(model: Model, where: str | Path) -> Model:
    """Return the model with adapters in its weights; the model that is given stays as it is.

    Args:
      model: whose weights the adapters were trained on.
      where: a name of `shipped`, or a file of `lora.save`, such as `jaxmem.experiments.finetune`
        writes.

    Raises:
      ValueError: if there is no such file, or it was trained on other weights.
    """
    named = str(where) in shipped()
    if not named and not Path(where).is_file():
        raise ValueError(
            f"there is no file {where} with adapters; those of the package are called "
            f"{', '.join(shipped()) or 'nothing yet'}."
        )
    path = ADAPTERS / f"{where}.safetensors" if named else Path(where)
    adapters, alpha = lora.load(path, model.params)
    return model._replace(params=lora.merge(model.params, adapters, alpha=alpha))
