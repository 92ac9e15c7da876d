"""Memories: what a stream keeps of its past. `MEMORIES` is the one table of their names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxmem.memory.base import AnyMemory

_TABLE = {
    "full": "baselines.Full",
    "recent": "baselines.Recent",
    "last_frames": "baselines.LastFrames",
    "uniform": "baselines.Uniform",
    "random": "baselines.RandomSample",
    "omnimem": "omnimem.omnimem.OmniMem",
    "hermes": "hermes.hermes.Hermes",
    "rekv": "video.rekv.ReKV",
    "infinipot_v": "video.infinipot_v.InfiniPotV",
    "snapkv": "compression.snapkv.SnapKV",
    "h2o": "compression.h2o.H2O",
    "tova": "compression.tova.TOVA",
    "knorm": "compression.knorm.Knorm",
    "keydiff": "compression.keydiff.KeyDiff",
    "last_copy": "compression.last_copy.LastCopy",
    "expected_attention": "compression.expected_attention.ExpectedAttention",
    "retention": "compression.retention.Retention",
    "criticalkv": "compression.criticalkv.CriticalKV",
    "adakv": "compression.adakv.AdaKV",
    "streammem": "video.streammem.StreamMem",
    "livevlm": "video.livevlm.LiveVLM",
    "flexmem": "flexmem.flexmem.FlexMem",
    "pyramid": "video.pyramid.Pyramid",
    "streaming_vlm": "video.streaming_vlm.StreamingVLM",
    "streaming_llm": "baselines.StreamingLLM",
    "dscache": "video.dscache.DSCache",
    "simple_stream": "features.simple_stream.SimpleStream",
    "flash_vstream": "flash_vstream.flash_vstream.FlashVStream",
    "flash_vstream_qwen": "flash_vstream.flash_vstream_qwen.FlashVStreamQwen",
    "moviechat": "features.moviechat.MovieChat",
    "ma_lmm": "features.ma_lmm.MALMM",
    "memory_vla": "features.memory_vla.MemoryVLA",
}
"""Name on the command line -> where the class is; a new memory is one line here."""


def _find(path: str) -> type[AnyMemory]:
    module, _, name = path.rpartition(".")
    return getattr(import_module(f"jaxmem.memory.{module}"), name)


class _Memories(Mapping[str, "type[AnyMemory]"]):
    """The table, each class imported when it is first asked for."""

    def __getitem__(self, name: str) -> type[AnyMemory]:
        return _find(_TABLE[name])

    def __iter__(self):
        return iter(_TABLE)

    def __len__(self) -> int:
        return len(_TABLE)


MEMORIES: Mapping[str, type[AnyMemory]] = _Memories()
"""Name -> class."""
CLASSES: Mapping[str, str] = MappingProxyType({p.rpartition(".")[2]: p for p in _TABLE.values()})
"""Name of a class -> where it is, for `jaxmem`'s own names."""
