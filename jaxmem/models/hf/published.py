"""Published config.json files by name (`qwen2.5-vl:7b`), for shapes without a checkpoint."""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

FAMILIES = (
    *("qwen2-vl", "qwen2.5-vl", "qwen2.5-omni", "qwen3-vl", "qwen3.5"),
    *("llava-onevision", "smolvlm2", "salmonn", "ma2mba"),
)
"""What stands before the colon."""


@cache
def published(family: str) -> dict[str, Any]:
    """Return what is known of a family: "source", what its sizes have in "common", and "sizes"."""
    name = family.replace(".", "_").replace("-", "_")
    file = resources.files("jaxmem") / "assets" / "shapes" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def names() -> tuple[str, ...]:
    """Return every `family:size` that is known."""
    return tuple(f"{family}:{size}" for family in FAMILIES for size in published(family)["sizes"])


def published_config(name: str) -> dict[str, Any]:
    """Return the config.json of a `family:size` in `names`."""
    family, _, size = name.partition(":")
    known = published(family)
    more = dict(known["sizes"][size])
    base = more.pop("base", None)  # a family that adds to another one
    common = known["common"] if base is None else published_config(base) | known["common"]
    return _joined(common, more)


def _joined(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        key: _joined(base[key], value) if isinstance(value, Mapping) and key in base else value
        for key, value in more.items()
    }
    return {**base, **inner}
