"""Special and added tokens of a checkpoint directory, as transformers gathers them.

They lie in up to four files: tokenizer.json itself (if any), tokenizer_config.json
(`added_tokens_decoder` and names such as `eos_token`), and in older directories
special_tokens_map.json and added_tokens.json, which count only where the second is silent.
transformers numbers a token that only they declare after all others, whatever they say; an id that
this contradicts would pick another row of the embedding without a word, and is refused here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmem.models.hf.config import optional_json
from jaxmem.models.hf.keys import refusal, section

SETTINGS, OLDER = "tokenizer_config.json", "added_tokens.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def special_tokens(folder: Path) -> dict[str, str]:
    """Return the named special tokens (`eos_token`, `image_token`), which templates may use."""
    return {name: _text(token) for name, token in _named(folder).items()}


def add_tokens(tokenizer: Any, folder: Path) -> None:
    """Add the tokens that a directory declares outside of tokenizer.json.

    Args:
      tokenizer: a `tokenizers.Tokenizer`; one that knows a token keeps its id.
      folder: the directory.

    Raises:
      ValueError: if a token has an id in one file and another one in the next.
    """
    from tokenizers import AddedToken

    settings, named = optional_json(folder, SETTINGS), _named(folder)
    special = {_text(token) for token in named.values()}
    more = _extra(settings) if _declared(settings) else [*_extra(settings), *_extra_of_map(folder)]
    special |= {_text(token) for token in more}
    tokens: dict[str, Any] = {}
    declared = sorted(_decoder(settings, folder, special).items())
    for _, token in declared:
        flags = {key: bool(token[key]) for key in FLAGS if key in token}
        flags["special"] = flags.get("special", False) or token["content"] in special
        tokens[token["content"]] = AddedToken(token["content"], **flags)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in (*named.values(), *more):
        text = _text(token)
        if text not in tokens and text not in known:
            flags = {k: bool(token[k]) for k in FLAGS[:-1] if k in token} if token != text else {}
            tokens[text] = AddedToken(text, special=True, **flags)
    tokenizer.add_tokens(list(tokens.values()))
    own = optional_json(folder, "tokenizer.json").get("added_tokens") or []
    older = SETTINGS if _declared(settings) else OLDER
    for file, listed in (
        ("tokenizer.json", [(token["id"], token) for token in own]),
        (older, declared),
    ):
        for number, token in listed:
            found = tokenizer.token_to_id(token["content"])
            if found != number:
                raise ValueError(
                    f"the token {token['content']!r} has two ids in {folder}: {number} in {file}, "
                    f"but {found} by the files before it; download all tokenizer files of one "
                    "checkpoint again."
                )


def check_ids(tokenizer: Any, rows: int, name: str) -> None:
    """Refuse a token beyond the rows of the embedding.

    Args:
      tokenizer: a `tokenizers.Tokenizer`, all tokens added.
      rows: of the embedding.
      name: of the checkpoint, for the error.

    Raises:
      ValueError: if there is one; it names the first.
    """
    beyond = [(i, text) for text, i in tokenizer.get_vocab().items() if i >= rows]
    if beyond:
        number, text = min(beyond)
        raise ValueError(
            f"the token {text!r} of {name} has id {number}, beyond the {rows} rows of the "
            f"embedding (vocab_size of config.json), as have {len(beyond) - 1} more: download the "
            "tokenizer files and config.json of one checkpoint again."
        )


def _declared(settings: Mapping[str, Any]) -> bool:
    """Return whether the older files are not asked."""
    return "added_tokens_decoder" in settings


def _decoder(
    settings: Mapping[str, Any], folder: Path, special: set[str]
) -> dict[int, dict[str, Any]]:
    """Return the added tokens by id."""
    if _declared(settings):
        return _declared_tokens(settings)
    added = optional_json(folder, OLDER)
    for text, i in added.items():
        if type(i) is not int or i < 0:
            raise refusal(repr(text), i, "the number of a token", OLDER)
    return {
        i: {"content": text, "special": text in special, "normalized": text not in special}
        for text, i in added.items()
    }


def _declared_tokens(settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the tokens of `added_tokens_decoder`; ValueError that names one that is none."""
    key = "added_tokens_decoder"
    found = section(settings, key, SETTINGS)
    for i, token in found.items():
        if not i.isdecimal() or not isinstance(token, Mapping) or not _text(token):
            expected = "the number of a token with an object that has its content"
            raise refusal(f"{key}.{i}", token, expected, SETTINGS)
    return {int(i): dict(token) for i, token in found.items()}


def _named(folder: Path) -> dict[str, Any]:
    """Return special tokens by name, each a text or a dict with `content`."""
    settings = optional_json(folder, SETTINGS)
    found = _tokens(settings)
    extra = settings.get("extra_special_tokens")
    found |= _tokens(extra, every=True) if isinstance(extra, Mapping) else {}
    if not _declared(settings):
        older = optional_json(folder, "special_tokens_map.json")
        extra = older.get("extra_special_tokens")
        found |= _tokens(older) | (_tokens(extra, every=True) if isinstance(extra, Mapping) else {})
    return found


def _tokens(part: Mapping[str, Any], *, every: bool = False) -> dict[str, Any]:
    return {
        name: token
        for name, token in part.items()
        if (every or name.endswith("_token")) and _text(token)
    }


def _extra(part: Mapping[str, Any]) -> list[Any]:
    """Return the special tokens without a name."""
    found = part.get("extra_special_tokens") or part.get("additional_special_tokens") or []
    return [token for token in found if _text(token)] if isinstance(found, list) else []


def _extra_of_map(folder: Path) -> list[Any]:
    return _extra(optional_json(folder, "special_tokens_map.json"))


def _text(token: Any) -> str:
    """Return the text of a token; "": it is none."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else ""
