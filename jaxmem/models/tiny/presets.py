"""Options of memories that suit the embedded model.

Its audio matters as much as its pictures, and it reads its clock from positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from jaxmem.memory.flexmem.memindex import MemIndex

HALF: Mapping[str, Any] = MappingProxyType({"audio_share": 0.5})
SCORED = (
    "infinipot_v",
    "snapkv",
    "h2o",
    "tova",
    "knorm",
    "keydiff",
    "expected_attention",
    "criticalkv",
    "adakv",
    "streammem",
    "livevlm",
)

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        **dict.fromkeys(SCORED, HALF),
        "omnimem": {**HALF, "sketch": 128},
        "hermes": {**HALF, "positions": "keep"},
        "snapkv": {**HALF, "window": 20},
        "criticalkv": {**HALF, "window": 20},
        "adakv": {**HALF, "window": 20},
        "expected_attention": {**HALF, "future": 64, "sinks": 0},
        "livevlm": {**HALF, "page": 8},
        "rekv": {"block": 80, "topk": None, "reindex": False},
        "flexmem": {
            "topk": 4,
            "shallow": 1,
            "reindex": False,
            "reader": MemIndex((2,), keys=2, against="clips", query="after"),
        },
        "streaming_vlm": {"audio_share": 0.2, "reindex": False},
        "bank": {"block": 20, "topk": 4},
    }
)
"""By the names of the command line."""


def presets_of(layers: int) -> Mapping[str, Mapping[str, Any]]:
    """Return the presets for a model of its kind with so many layers: the index reads its middle.

    Args:
      layers: L of the decoder.
    """
    flexmem = PRESETS["flexmem"]
    reader = replace(flexmem["reader"], layers=(layers // 2,))
    return MappingProxyType({**PRESETS, "flexmem": {**flexmem, "reader": reader}})
