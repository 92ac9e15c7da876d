"""A model with adapters merged into its weights."""

from __future__ import annotations

from pathlib import Path

from jaxmem.models.base import Model
from jaxmem.training import lora


def with_adapter(model: Model, path: str | Path) -> Model:
    """Return the model with adapters in its weights; the model that is given stays as it is.

    Args:
      model: whose weights the adapters were trained on.
      path: a file of `lora.save`, such as `jaxmem.experiments.finetune` writes.

    Raises:
      ValueError: if there is no such file, or it was trained on other weights.
    """
    adapters, alpha = lora.load(path, model.params)
    return model._replace(params=lora.merge(model.params, adapters, alpha=alpha))
