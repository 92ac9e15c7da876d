"""Keys of a `config.json` and its like: what they hold is checked, and refused by name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

ENCODER = {
    "depth": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}  # fmt: skip
"""Fields of an encoder, and what transformers calls them."""
PICTURE = {"side": "image_size", "patch": "patch_size", "channels": "num_channels"}
"""Fields of an encoder of square pictures, likewise."""
MOST_LAYERS = 10_000


def refusal(key: str, found: Any, expected: str, where: str = "config.json") -> ValueError:
    """Return the error of a key that holds something else than it should.

    Args:
      key: of the value.
      found: the value.
      expected: what it should be, in words.
      where: the key is; a file that is named in it is the one to replace, else config.json.
    """
    file = next((word for word in where.split() if word.endswith(".json")), "config.json")
    return ValueError(
        f"{key} is {found!r} in {where}, expected {expected}: use the {file} of the checkpoint."
    )


def check_keys(config: Mapping[str, Any], keys: Sequence[str], where: str = "config.json") -> None:
    """Raise a ValueError that names every key a config lacks."""
    lacking = [key for key in keys if config.get(key) is None]
    if lacking:
        raise ValueError(
            f"{where} has no {', '.join(lacking)}: it is not the config of this family."
        )


def fields(
    config: Mapping[str, Any], names: Mapping[str, str], where: str = "config.json"
) -> dict[str, Any]:
    """Return the fields whose keys are given; ValueError that names all keys that are missing."""
    check_keys(config, tuple(names.values()), where)
    for field in {"layers", "depth"} & set(names):  # a table of all their tensors is made
        found = config[names[field]]
        if type(found) is not int or not 0 <= found <= MOST_LAYERS:
            raise ValueError(
                f"{where} has {names[field]} {found!r}, expected at most {MOST_LAYERS:,}: use the "
                "config.json of the checkpoint."
            )
    return {field: config[key] for field, key in names.items()}


def sizes(
    config: Mapping[str, Any], names: Mapping[str, str], where: str = "config.json"
) -> dict[str, Any]:
    """Return `fields` that are whole numbers from 1 on; ValueError that names one that is not."""
    found = fields(config, names, where)
    for field, key in names.items():
        if type(found[field]) is not int or found[field] < 1:
            raise refusal(key, found[field], "a whole number from 1 on", where)
    return found


def picture_sizes(config: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return `sizes` of the pictures of an encoder; ValueError also if a patch is larger."""
    found = sizes(config, PICTURE, where)
    if found["patch"] > found["side"]:
        most = f"at most image_size ({found['side']})"
        raise refusal("patch_size", found["patch"], most, where)
    return found


def number(
    config: Mapping[str, Any],
    key: str,
    where: str = "config.json",
    *,
    above: float | None = None,
    most: float = math.inf,
) -> float:
    """Return a finite number from 0 on, or one above a limit; ValueError if it is something else.

    Args:
      config: with the key.
      key: of the number.
      where: the config is, for the error.
      above: what it must be larger than; None: from 0 on.
      most: the largest number.
    """
    found, least = config.get(key), 0 if above is None else above
    if (
        isinstance(found, bool)
        or not isinstance(found, int | float)
        or not least <= found <= most
        or found in (above, math.inf)
    ):
        expected = "a number from 0 on" if above is None else f"a number above {above:g}"
        expected += "" if most == math.inf else f" and up to {most:g}"
        raise refusal(key, found, expected, where)
    return found


def whole_numbers(
    config: Mapping[str, Any], key: str, where: str = "config.json"
) -> tuple[int, ...]:
    """Return a list of whole numbers from 0 on; ValueError if it is something else."""
    found = config.get(key)
    if not isinstance(found, list | tuple) or any(type(x) is not int or x < 0 for x in found):
        raise refusal(key, found, "a list of whole numbers from 0 on", where)
    return tuple(found)


def section(config: Mapping[str, Any], key: str, where: str = "config.json") -> Mapping[str, Any]:
    """Return a JSON object, {} where there is none; ValueError if it is something else."""
    found = config.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise refusal(key, found, "a JSON object", where)
    return found


def sections(
    config: Mapping[str, Any], keys: Sequence[str], where: str = "config.json"
) -> list[Mapping[str, Any]]:
    """Return JSON objects; ValueError that names all that are missing, or one that is no object."""
    check_keys(config, keys, where)
    return [section(config, key, where) for key in keys]


def flag(config: Mapping[str, Any], key: str, default: bool, where: str = "config.json") -> bool:
    """Return a yes or no, the default where there is none; ValueError if it is something else."""
    found = config.get(key)
    if found is None:
        return default
    if not isinstance(found, bool):
        raise refusal(key, found, "true or false", where)
    return found


def is_tied(*parts: Mapping[str, Any]) -> bool:
    """Return whether a part of a config says that the embedding is the output matrix.

    Where the tie is written changed between versions; the default of all is an own matrix.

    Raises:
      ValueError: if a part says something else than yes or no.
    """
    return any([flag(part, "tie_word_embeddings", False) for part in parts])


def token_ids(
    config: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, int], vocab: int
) -> dict[str, int]:
    """Return the fields that are ids of tokens.

    An id beyond the embedding would have a row of NaN, and a negative one that of another token.

    Args:
      config: with the keys.
      names: fields and their keys; "x_token_index" may also be called "x_token_id".
      defaults: of keys that are not there.
      vocab: rows of the embedding.

    Raises:
      ValueError: if one is no token of the vocabulary.
    """
    found = {}
    for field, key in names.items():
        other = key.replace("_token_index", "_token_id")
        at = key if config.get(other) is None or config.get(key) is not None else other
        where, found[field] = "in config.json", config.get(at)
        if found[field] is None:
            where, found[field] = "where config.json does not say", defaults[key]
        if type(found[field]) is not int or not 0 <= found[field] < vocab:
            raise ValueError(
                f"{at} is {found[field]!r} {where}, expected a token of the vocabulary, from 0 on "
                f"and below {vocab} (vocab_size): use the config.json of the checkpoint."
            )
    return found


def check_family(
    config: Mapping[str, Any], known: Sequence[str], where: str = "config.json"
) -> None:
    """Raise a ValueError if a config is not of one of the known `model_type`s."""
    if config.get("model_type") not in known:
        raise ValueError(
            f"{where} has model_type {config.get('model_type')!r}, expected one of "
            f"{', '.join(known)}."
        )


def check_layer_kinds(
    kinds: Sequence[str], known: Sequence[str], layers: int, key: str = "layer_types"
) -> None:
    """Raise a ValueError if a key names another number of layers, or an unknown kind.

    Args:
      kinds: as config.json has them.
      known: those that the family has.
      layers: how many there are.
      key: which says so.
    """
    if not isinstance(kinds, list | tuple | str):
        raise refusal(key, kinds, "a list with the kind of every layer")
    has = "kinds that this family has are" if len(known) > 1 else "kind that this family has is"
    if len(kinds) != layers:
        raise ValueError(
            f"{key} names {len(kinds)} layers in config.json, but num_hidden_layers is "
            f"{layers}: use the config.json of the checkpoint."
        )
    for at, kind in enumerate(kinds, 1):
        if kind not in known:
            raise ValueError(
                f"layer {at} of {layers} is {kind!r} in config.json ({key}); the {has} "
                f"{' and '.join(known)}: use a checkpoint of these."
            )


def check_value(key: str, found: Any, known: Any) -> None:
    """Raise a ValueError if a setting is not the one that is implemented."""
    if found != known:
        raise ValueError(
            f"{key} is {found!r} in config.json, implemented is {known!r} only: use a checkpoint "
            "with this setting."
        )
