"""A model with the weights of the score that `Retention` reads off values, and their file."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxmem.decoder.scorer import add_scorer
from jaxmem.models.base import Model
from jaxmem.models.hf.tensors import write_tensors
from jaxmem.typing import Params


def with_scorer(model: Model, scorer: Params | str | Path) -> Model:
    """Return the model with the weights of a score that `Retention` reads off values.

    Args:
      model: whose decoder the scorer was learned for.
      scorer: {"kernel": [L, G D, G], "a": [L, G]}, or a file of `jaxmem.experiments.scorer`.

    Raises:
      ValueError: if there is no such file, or it is of another decoder.
    """
    scorer = load_scorer(scorer) if isinstance(scorer, str | Path) else scorer
    if "decoder" in model.params:
        decoder = add_scorer(model.params["decoder"], scorer)
        return model._replace(params={**model.params, "decoder": decoder})
    return model._replace(params=add_scorer(model.params, scorer))


def without_scorer(model: Model) -> Params:
    """Return a model's weights without those of its scorer, which no other memory reads."""

    def bare(params: Params) -> Params:
        if "layers" not in params:
            return params
        layers = {name: x for name, x in params["layers"].items() if name != "retention"}
        return {**params, "layers": layers}

    params = model.params
    return {**params, "decoder": bare(params["decoder"])} if "decoder" in params else bare(params)


def save_scorer(path: str | Path, scorer: Params) -> None:
    """Write a scorer's weights as float16 safetensors."""
    write_tensors(path, {name: np.asarray(x, np.float16) for name, x in scorer.items()})


def load_scorer(path: str | Path) -> Params:
    """Read a scorer's weights, float32.

    Raises:
      ValueError: if there is no such file, or it is none of `save_scorer`.
    """
    try:
        found = load_file(path)
        return {name: jnp.asarray(found[name], jnp.float32) for name in ("kernel", "a")}
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is no file of a scorer that `python -m jaxmem.experiments.scorer` wrote: "
            f"{error}"
        ) from error
