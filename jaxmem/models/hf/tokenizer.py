"""The tokenizer of a checkpoint directory, with every token that its files add to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmem.models.hf.config import read_json

TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text into words; its slow files do not hold it."""


def optional(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of a directory, {} where there is no such file."""
    return read_json(folder, name) if (folder / name).is_file() else {}


def read_tokenizer(directory: str | Path) -> Any:
    """Return a `tokenizers.Tokenizer`, of tokenizer.json or of vocab.json and merges.txt.

    Tokens of tokenizer_config.json (`added_tokens_decoder`) and added_tokens.json that it lacks are
    added, as transformers does.

    Raises:
      ValueError: if the package or the files are missing, or a token cannot have its number.
    """
    try:
        from tokenizers import AddedToken, Tokenizer
    except ImportError:
        raise ValueError(
            "a checkpoint's tokenizer needs the package `tokenizers`: pip install 'jaxmem[hf]'."
        ) from None
    folder = Path(directory)
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _from_slow_files(folder)
    else:
        raise ValueError(
            f"no tokenizer.json in {folder}, nor vocab.json with merges.txt: download the "
            "tokenizer files of the checkpoint too."
        )
    for number, token in sorted(_added(folder)):
        if tokenizer.token_to_id(token["content"]) is None:
            special = token.pop("special", True)
            add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
            add([AddedToken(**token, special=special)])
        found = tokenizer.token_to_id(token["content"])
        if found != number:
            raise ValueError(
                f"the files of {folder} give {token['content']} the number {number}, but in the "
                f"tokenizer it is {found}: they are not of one checkpoint; download them again."
            )
    return tokenizer


def _from_slow_files(folder: Path) -> Any:
    """Return Qwen2's byte-level BPE from its slow files."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _added(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield numbers and settings of the tokens that the small files add."""
    seen = set()
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    found = optional(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
    for number, token in found.items():
        seen.add(int(number))
        yield int(number), {key: token[key] for key in known if key in token}
    for content, number in optional(folder, "added_tokens.json").items():
        if number not in seen:
            yield number, {"content": content, "normalized": False}


def special_tokens(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that a template may name: `eos_token` and its like.

    Args:
      settings: of tokenizer_config.json.
      more: of special_tokens_map.json, where the settings do not say.
    """
    found = {}
    for name in (f"{token}_token" for token in TOKENS):
        token = settings.get(name, more.get(name))
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            found[name] = token
    return found
