"""The tokenizer of a checkpoint directory, without the tokens that its other files add."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from jaxmem.models.hf.config import optional_json

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?LETTERS+|\p{N}"
    r"| ?[^\s\p{L}OTHERS\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text into words; slow files do not hold it."""
WORDS = SPLIT.replace("LETTERS", r"\p{L}").replace("OTHERS", "")
MARKED_WORDS = SPLIT.replace("LETTERS", r"[\p{L}\p{M}]").replace("OTHERS", r"\p{M}")
"""Likewise that of Qwen3.5, where combining marks belong to words."""
SLOW = ("vocab.json", "merges.txt")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of tokenizer.json, or of vocab.json and merges.txt as Qwen has them.

    Raises:
      ValueError: if the files are missing or cannot be read.
    """
    if (folder / "tokenizer.json").is_file():
        names = ("tokenizer.json",)
    elif all((folder / name).is_file() for name in SLOW):
        names = SLOW
    else:
        raise ValueError(
            f"no tokenizer.json in {folder}, nor vocab.json with merges.txt: download the "
            "tokenizer files of the checkpoint too."
        )
    words = MARKED_WORDS if names == SLOW and _of_qwen3_5(folder) else WORDS
    try:
        if names == SLOW:
            tokenizer = _from_slow_files(folder, words)
        else:
            tokenizer = Tokenizer.from_file(str(folder / names[0]))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(
            f"{' and '.join(names)} in {folder} cannot be read ({error}): download them again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _of_qwen3_5(folder: Path) -> bool:
    """Return whether a directory is one of Qwen3.5, by its model or its tokenizer's class."""
    kind = optional_json(folder, "tokenizer_config.json").get("tokenizer_class")
    found = optional_json(folder, "config.json").get("model_type")
    return kind == "Qwen3_5Tokenizer" or found == "qwen3_5"


def _from_slow_files(folder: Path, words: str) -> Tokenizer:
    """Return Qwen's byte-level BPE over words that an expression finds."""
    tokenizer = Tokenizer(models.BPE.from_file(*(str(folder / name) for name in SLOW)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
