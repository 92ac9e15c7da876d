"""Any supported checkpoint as a `Model`: a directory, or the name of a Hugging Face repository."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from jaxmem.models.adapters import adapted
from jaxmem.models.base import Model
from jaxmem.models.hf import checkpoint
from jaxmem.models.hf.adapter import base_of, is_adapter, merged, read_adapter
from jaxmem.models.hf.chat import Uncoded
from jaxmem.models.hf.checkpoint import Place
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.family import (
    ANY_SIZE,
    Family,
    Files,
    Names,
    max_position,
    model_of,
    read_files,
)
from jaxmem.models.hf.published import names, published_config
from jaxmem.models.hf.quantized import Stored, settings_of
from jaxmem.models.hf.special import check_ids
from jaxmem.models.hf.weights import abstract as shapes_of
from jaxmem.models.llava.onevision import LlavaFamily, LlavaOnevision
from jaxmem.models.llava.video import LlavaOnevisionNext, LlavaVideo, newline_of
from jaxmem.models.mamba import mamba2, nemotron_h
from jaxmem.models.mamba.ma2mba import VideoMa2mba
from jaxmem.models.qwen.qwen2_5_omni import Qwen25Omni
from jaxmem.models.qwen.qwen2_5_vl import Qwen25VL
from jaxmem.models.qwen.qwen2_vl import Qwen2VL
from jaxmem.models.qwen.qwen3_5 import Qwen35
from jaxmem.models.qwen.qwen3_vl import Qwen3VL
from jaxmem.models.salmonn.config import hears
from jaxmem.models.salmonn.salmonn import Salmonn, TimedSalmonn
from jaxmem.models.smolvlm.smolvlm import SmolVLM
from jaxmem.models.tiny.embedded import embedded, is_embedded, shipped

FAMILIES: dict[str, type[Family]] = {
    "llava_onevision": LlavaOnevision,
    "llava_qwen": LlavaVideo,
    "llava": LlavaVideo,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "qwen3_5": Qwen35,
    "qwen2_5_omni": Qwen25Omni,
    "qwen2_5_omni_thinker": Qwen25Omni,
    "smolvlm": SmolVLM,
    "video_ma2mba": VideoMa2mba,
}
"""`model_type` of config.json to the class that reads such a checkpoint."""
HEARING: dict[str, type[Family]] = {"qwen2_5_vl": Salmonn, "qwen3_vl": TimedSalmonn}
"""The same for a config.json with `audio_config`: video-SALMONN 2+ keeps its base's type."""
TEXT_ALONE = (*mamba2.MODEL_TYPES, *nemotron_h.MODEL_TYPES)
"""Types of language models; each has a module of this name with a `load` of its own."""
HEAD, EMBEDDING = "decoder.head.kernel", "decoder.embedding.embedding"
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
"""Where an output matrix goes, and what it is called once names are brought to the table's."""
DTYPES = ("bfloat16", "float16", "float32")
SMALL = ("*.json", "*.jinja", "*.txt")
FILES = (*SMALL, "*.safetensors")
"""What is downloaded of a repository: never pickled weights or code."""


def load(
    where: str | Path,
    *,
    adapter: str | Path | None = None,
    abstract: bool = False,
    dtype: Any = "bfloat16",
    sharding: Place | Sharding | None = None,
    fps: float = 1.0,
    max_new: int = 128,
    max_pixels: int | None = None,
    **options: Any,
) -> Model:
    """Return an embedded model, or that of a checkpoint of any supported family.

    Give `base.for_frames` the size of the frames before a stream.

    Args:
      where: "tiny" for the embedded model, another name in `tiny.embedded.shipped`, or a file of
        weights that training such a model wrote; of the other arguments these take `adapter` and
        `abstract`. Or a directory as `save_pretrained` writes it, or "organisation/name" on Hugging
        Face: with config.json, safetensors, a tokenizer, a chat template and preprocessor settings.
        An abstract model can also be one of `published.names` ("qwen2.5-vl:7b"). The directory of
        an adapter stands for its base, if that is a local folder, with the adapter.
      adapter: directory or "organisation/name" of a LoRA adapter as PEFT writes it, which is merged
        into the weights while they are read (in float32, then `dtype`). Of an embedded model: a
        file that `jaxmem finetune` or `training.lora` wrote, or a name of `adapters.shipped`.
      abstract: the same model with shapes (`jax.ShapeDtypeStruct`) for weights. No weights are
        read, and of a directory config.json is enough.
      dtype: of the weights: bfloat16, float16 or float32.
      sharding: placement of the weights, see `checkpoint.load`.
      fps: pictures per second of a stream; LLaVA takes whole numbers, Qwen2.5-Omni two of them or a
        multiple in every piece of 2 s.
      max_new: answer tokens at most.
      max_pixels: of a frame; None: as the directory says. Not for families of one size.
      options: of the family, see its `read`.

    Raises:
      ValueError: if there is no such checkpoint, its family is not supported, or something of it is
        missing or does not fit; nothing large is read before that is known.
    """
    if is_embedded(where):
        model = adapted(embedded(where), adapter)
        return model._replace(params=jax.eval_shape(lambda: model.params)) if abstract else model
    kind = as_dtype(dtype)
    wanted = SMALL if abstract else FILES
    lora = None if adapter is None else find(adapter, wanted)
    if abstract and str(where).lower() in names():
        name = str(where).lower()
        directory, files = Path(), Files(published_config(name), ANY_SIZE, Uncoded())
        made_by = family_of(files.config, name)
    else:
        directory = find(where, wanted)
        if is_adapter(directory, abstract=abstract):
            base = base_of(directory, where, adapter)
            lora, adapter, directory, where = directory, where, base, base
        name = Path(where).resolve().name  # a downloaded directory has one that says nothing
        config = read_json(directory)
        made_by = family_of(config, directory)
        if not abstract:
            settings_of(config)  # a quantisation that is not read is refused first
        with _as_expected(name):
            files = read_files(directory, abstract=abstract)
    if lora is not None and adapter is not None:
        read_adapter(lora)  # one that is not read is refused first
        name += f"+{Path(adapter).resolve().name}"
    if max_pixels is not None:
        if issubclass(made_by, LlavaFamily | SmolVLM):
            raise ValueError(
                f"{name} takes frames of one size: leave max_pixels out, got {max_pixels}."
            )
        options["max_pixels"] = max_pixels
    family = read_family(made_by, files, name, fps=fps, **options)
    family.turn("?")  # errors of the template come before anything large is read
    max_position(files.config)  # likewise
    if files.chat.tokenizer is not None:
        check_ids(files.chat.tokenizer, family.decoder.vocab, name)
    stored = [] if abstract else stored_of(directory, lora, family.names)
    if not abstract and own_head(stored, family.names):
        files = files._replace(config=untied(files.config))
        family = read_family(made_by, files, name, fps=fps, **options)
    table, renames, ignore, _ = family.names
    if abstract:
        params = jax.eval_shape(family.finalise, shapes_of(table, kind))
    else:
        more = {"renames": renames, "ignore": ignore, "stored": stored}
        params = checkpoint.load(directory, table, dtype=kind, sharding=sharding, **more)
        params = family.finalise(params)
    return model_of(family, files, params, name=name, max_new=max_new)


def read_family(made_by: type[Family], files: Files, name: str, **options: Any) -> Family:
    """Return the member that files hold.

    Raises:
      ValueError: if something is missing, does not fit, or is of another kind than its key says, or
        the family has no such option.
    """
    known = inspect.signature(made_by.read).parameters
    more = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    if not more and (idle := options.keys() - known.keys()):
        told = ", ".join(key for key in known if key not in ("files", "cls"))
        raise ValueError(f"{name} has no option {min(idle)}: leave it out; it takes {told}.")
    with _as_expected(name):
        return made_by.read(files, **options)


@contextmanager
def _as_expected(name: str) -> Iterator[None]:
    """Turn what values of another kind raise, in any of the small files, into words."""
    try:
        yield
    except (AttributeError, ArithmeticError, LookupError, TypeError) as error:
        if "keyword argument" in str(error):  # an option that the family does not have
            raise
        raise ValueError(
            f"the JSON files of {name} hold something else than expected ({error}): download them "
            "again."
        ) from error


def stored_of(directory: Path, adapter: Path | None, names: Names) -> list[Stored]:
    """Return the tensors of a checkpoint, with an adapter in them if one is given."""
    stored = checkpoint.stored_tensors(directory)
    if adapter is None:
        return stored
    tied = None if HEAD in names.table else names.table[EMBEDDING].name
    return merged(stored, adapter, names.renames, tied)


def own_head(stored: Sequence[Stored], names: Names) -> bool:
    """Return whether a checkpoint that says it is tied stores another output matrix all the same.

    transformers uses a stored one whatever the flag says; a copy of the embedding is left out.
    """
    if HEAD in names.table:
        return False
    found = {checkpoint.rename(item.key, names.renames): item for item in stored}
    head = next((found[name] for name in HEADS if name in found), None)
    return head is not None and not checkpoint.same(head, found.get(names.table[EMBEDDING].name))


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json that says of all its parts that the output matrix is their own."""
    parts = {key: untied(config[key]) for key in ("thinker_config", "text_config") if key in config}
    return {**config, **parts, "tie_word_embeddings": False}


def family_of(config: Mapping[str, Any], where: str | Path) -> type[Family]:
    """Return the class that reads a checkpoint of this config.json.

    Raises:
      ValueError: if there is none; it says `where` the checkpoint is.
    """
    found = config.get("model_type")
    text = "mamba2" if "ssm_cfg" in config else found
    if text in TEXT_ALONE:
        raise ValueError(
            f"{where} is a language model ({text}), which sees no video: load it with "
            f"jaxmem.models.mamba.{text}.load, and stream its rows as docs/mixers.md says."
        )
    if not isinstance(found, str) or found not in FAMILIES:
        raise ValueError(
            f"{where} has model_type {found!r} in its config.json; supported are "
            f"{', '.join(FAMILIES)}."
        )
    if found in HEARING and hears(config):
        return HEARING[found]
    if FAMILIES[found] is LlavaVideo and newline_of(config) != "grid":
        return LlavaOnevisionNext
    return FAMILIES[found]


def as_dtype(dtype: Any) -> Any:
    """Return the dtype of weights; ValueError if it is none that they can have."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise ValueError(f"weights can be {', '.join(DTYPES)}, got {dtype!r}.")
    return found


def find(where: str | Path, files: Sequence[str] = FILES) -> Path:
    """Return the directory of a checkpoint; of a repository's name its `files` are downloaded.

    Raises:
      ValueError: if it is neither, or cannot be downloaded.
    """
    if Path(where).is_dir():
        return Path(where)
    name = str(where)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ValueError(
            f"no directory {name}: give a checkpoint's directory, organisation/name of a "
            f"repository on Hugging Face, or a model of the package ({', '.join(shipped())})."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"no directory {name}, and to download it the package huggingface_hub is needed: pip "
            "install 'jaxmem[hf]', or give a directory."
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # the client's errors are kinds of OSError
        raise ValueError(
            f"{name} is no directory and cannot be downloaded from Hugging Face: {error}"
        ) from error
