"""The tokenizer of a checkpoint directory, without the tokens that its other files add."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text into words; its slow files do not hold it."""
SLOW = ("vocab.json", "merges.txt")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of tokenizer.json, or of vocab.json and merges.txt as Qwen2 has them.

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
    files = [str(folder / name) for name in names]
    try:
        tokenizer = Tokenizer.from_file(*files) if len(files) == 1 else _from_slow_files(*files)
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(
            f"{' and '.join(names)} in {folder} cannot be read ({error}): download them again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_slow_files(vocab: str, merges: str) -> Tokenizer:
    """Return Qwen2's byte-level BPE."""
    tokenizer = Tokenizer(models.BPE.from_file(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
