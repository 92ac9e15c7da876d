"""Llama decoders of text as a `Model`: a stream of token ids, one a piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import embed
from jaxmem.kv import EMPTY, Modality
from jaxmem.memory.exchange import Embeds
from jaxmem.models.base import Encode, MediaFormat, Model
from jaxmem.models.hf.gguf import Words, gguf_of, read_gguf, read_words
from jaxmem.typing import Array, Int, Params

MEDIA = MediaFormat(fps=1.0, size=(1, 1), sample_rate=16_000, piece_seconds=1.0)


@dataclass(frozen=True)
class Watched:
    """Token ids as the rows of a stream.

    They are marked as vision. To memories text is what stands between the frames: OmniMem, for one,
    keeps it apart, and nothing of it where there are no time stamps. Here it is what is watched.

    Attributes:
      modality: that they are marked with; TEXT for memories that score text in its own way.
    """

    modality: Modality = Modality.VISION

    def encode(self, params: Params, inputs: Int[Array, "T"]) -> Embeds:
        """Return ids as rows; -1 is padding, which comes last."""
        real = inputs >= 0
        row = jnp.arange(inputs.shape[0], dtype=jnp.int32)
        return Embeds(
            x=embed(params.get("decoder", params), jnp.maximum(inputs, 0)),
            pos=jnp.where(real, row, 0)[:, None],
            modality=jnp.where(real, int(self.modality), EMPTY).astype(jnp.int8),
            advance=jnp.sum(real, dtype=jnp.int32)[None],
        )


def text_model(
    name: str = "smollm2", dtype: Any = jnp.float32, modality: Modality = Modality.VISION
) -> Model:
    """Return a decoder of text whose streams are token ids, a piece each.

    Its chunks are so many pieces as they have tokens: `model_spec(model, 128)`. It knows no frames,
    so memories that count frames need their sizes as options.

    Args:
      name: "smollm2" (SmolLM2 135M Instruct, with the extra `real`), or a .gguf file of a Llama
        with SmolLM2's tokenizer.
      dtype: of the weights.
      modality: that tokens are marked with, see `Watched`.

    Raises:
      ValueError: if there is no such file or a package is missing, or the file holds another
        decoder or tokenizer.
    """
    path = gguf_of(name)
    if path is None:
        raise ValueError(
            f"no text model {name!r}: give a .gguf file, or smollm2 with the extra real (pip "
            "install 'jaxmem[real,hf]')."
        )
    config, params = read_gguf(path, dtype)
    return text_model_of(path.stem, config, params, read_words(path), modality)


def text_model_of(
    name: str,
    decoder: Any,
    params: Params,
    words: Words,
    modality: Modality = Modality.VISION,
) -> Model:
    """Return `text_model` of a decoder, its weights and its tokenizer."""

    def ids(text: str) -> np.ndarray:
        found = words.tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(found, np.int32)

    def no_frames(*media: Any) -> NoReturn:
        raise ValueError(f"{name} reads text and sees no video: stream token ids, or a video model")

    return Model(
        name=name,
        params=params,
        decoder=decoder,
        media=MEDIA,
        tokens_per_piece=1,
        preprocess=no_frames,
        encode=Encode(Watched(modality)),
        tokenize=ids,
        detokenize=lambda given: words.tokenizer.decode(np.asarray(given).tolist()),
        end=words.ends,
        max_new=32,
        tokenize_text=ids,
        max_position=words.context,
    )
