"""Any supported checkpoint as a `Model`: a directory, or the name of a Hugging Face repository."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Sharding

from jaxmem.models.base import Model
from jaxmem.models.hf.chat import read_sampling
from jaxmem.models.hf.checkpoint import Place
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.family import Parts, open_model
from jaxmem.models.llava import onevision as llava_onevision
from jaxmem.models.llava import onevision_stream as llava_onevision_model
from jaxmem.models.llava import video as llava_video
from jaxmem.models.llava import video_stream as llava_video_model
from jaxmem.models.qwen import qwen2_5_omni, qwen2_5_vl, qwen3_vl
from jaxmem.models.qwen import qwen2_5_omni_stream as qwen2_5_omni_model
from jaxmem.models.qwen import qwen2_5_vl_stream as qwen2_5_vl_model
from jaxmem.models.qwen import qwen3_vl_stream as qwen3_vl_model
from jaxmem.models.salmonn import salmonn
from jaxmem.models.salmonn import stream as salmonn_model
from jaxmem.models.tiny.embedded import embedded

FAMILIES: dict[str, Callable[..., Parts]] = {
    **dict.fromkeys(llava_onevision.MODEL_TYPES, llava_onevision_model.read_parts),
    **dict.fromkeys(qwen2_5_vl.MODEL_TYPES, qwen2_5_vl_model.read_parts),
    **dict.fromkeys(qwen3_vl.MODEL_TYPES, qwen3_vl_model.read_parts),
    **dict.fromkeys(qwen2_5_omni.MODEL_TYPES, qwen2_5_omni_model.read_parts),
    **dict.fromkeys(llava_video.MODEL_TYPES, llava_video_model.read_parts),
    **dict.fromkeys(salmonn.MODEL_TYPES, salmonn_model.read_parts),
}
"""`model_type` of config.json to what reads such a directory, but for the weights."""
ONE_SIZE = (*llava_onevision.MODEL_TYPES, *llava_video.MODEL_TYPES)
DTYPES = ("bfloat16", "float16", "float32")
FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")
"""What is downloaded of a repository: never pickled weights or code."""


def load(
    where: str | Path,
    *,
    dtype: Any = "bfloat16",
    sharding: Place | Sharding | None = None,
    fps: float = 1.0,
    max_new: int = 128,
    max_pixels: int | None = None,
    **options: Any,
) -> Model:
    """Return the embedded model, or that of a checkpoint of any supported family.

    Give `base.for_frames` the size of the frames before a stream.

    Args:
      where: "tiny" for the embedded model, which takes no other argument; or a directory as
        `save_pretrained` writes it, or "organisation/name" on Hugging Face: with
        config.json, safetensors, tokenizer.json, a chat template and preprocessor settings.
      dtype: of the weights: bfloat16, float16 or float32.
      sharding: placement of the weights, see `checkpoint.load`.
      fps: pictures per second of a stream; LLaVA takes whole numbers, Qwen2.5-Omni two of them or a
        multiple in every piece of 2 s.
      max_new: answer tokens at most.
      max_pixels: of a frame; None: as the directory says. Not for families of one size.
      options: of the family, see its `read_parts`.

    Raises:
      ValueError: if there is no such checkpoint, its family is not supported, or something of it is
        missing or does not fit; nothing large is read before that is known.
    """
    if where == "tiny":
        return embedded()
    kind = as_dtype(dtype)
    directory = find(where)
    found = read_json(directory).get("model_type")
    if found not in FAMILIES:
        raise ValueError(
            f"{directory} has model_type {found!r} in its config.json; supported are "
            f"{', '.join(FAMILIES)}."
        )
    if max_pixels is not None and found in ONE_SIZE:
        raise ValueError(
            f"a model of type {found} takes frames of one size: leave max_pixels out, got "
            f"{max_pixels}."
        )
    if max_pixels is not None:
        options["max_pixels"] = max_pixels
    sampling = read_sampling(directory)
    parts = FAMILIES[found](directory, fps=fps, **options)
    return open_model(
        parts,
        directory,
        name=Path(where).resolve().name,  # a downloaded directory has one that says nothing
        dtype=kind,
        sharding=sharding,
        max_new=max_new,
        sampling=sampling,
    )


def as_dtype(dtype: Any) -> Any:
    """Return the dtype of weights.

    Raises:
      ValueError: if it is none that weights can have.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise ValueError(f"weights can be {', '.join(DTYPES)}, got {dtype!r}.")
    return found


def find(where: str | Path) -> Path:
    """Return the directory of a checkpoint, downloaded if it is the name of a repository.

    Raises:
      ValueError: if it is neither, or cannot be downloaded.
    """
    if Path(where).is_dir():
        return Path(where)
    name = str(where)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ValueError(
            f"no directory {name}: give a checkpoint's directory, or organisation/name of a "
            "repository on Hugging Face."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"no directory {name}, and to download it the package huggingface_hub is needed: pip "
            "install 'jaxmem[hf]', or give a directory."
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # the client's errors are kinds of OSError
        raise ValueError(
            f"{name} is no directory and cannot be downloaded from Hugging Face: {error}"
        ) from error
