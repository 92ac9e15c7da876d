"""The options of streaming peers and of KV compression that a command line may set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Shared:
    """What the options of the methods that rank tokens have in common."""

    per_kind: bool = True
    """Audio competes in a budget of its own; published: with everything else."""
    audio_share: float = 0.5
    """Audio's part of the budget."""
    positions: Literal["keep", "contiguous"] = "keep"
    """Positions that kept tokens are read at."""


@dataclass(frozen=True)
class InfiniPotV(Shared):
    """InfiniPot-V (arXiv 2506.15745): new against recent frames, and large values."""

    grid: tuple[int, int] = (4, 4)
    """Rows and columns of a frame's tokens."""
    tar_ratio: float = 0.5
    """Part of the budget that goes to what is new."""


@dataclass(frozen=True)
class SnapKV(Shared):
    """SnapKV (arXiv 2404.14469): what the newest rows look at, pooled over neighbours."""

    window: int = 20
    """Newest rows that look, and that are kept."""
    kernel: int = 5
    """Neighbours that are pooled."""


@dataclass(frozen=True)
class H2O(Shared):
    """H2O (arXiv 2306.14048): what has received most attention, and the newest."""

    recent: float = 0.5
    """Part of the budget for the newest tokens."""


@dataclass(frozen=True)
class Tova(Shared):
    """TOVA (arXiv 2401.06104): what the newest row looks at."""


@dataclass(frozen=True)
class Knorm(Shared):
    """Knorm (arXiv 2406.11430): keys of small norm."""


@dataclass(frozen=True)
class KeyDiff(Shared):
    """KeyDiff (arXiv 2504.15364): keys unlike the mean key."""


@dataclass(frozen=True)
class ExpectedAttention(Shared):
    """Expected Attention (arXiv 2510.00636): what coming queries are expected to look at."""

    future: int = 64
    """Coming positions over which the expectation is taken."""


@dataclass(frozen=True)
class CriticalKV(SnapKV):
    """CriticalKV (arXiv 2502.03805) over SnapKV's score: weighed by what values add."""

    first: float = 0.5
    """Part of the budget that the score fills alone."""


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """Ada-KV (arXiv 2407.11550) over SnapKV's score: heads share a layer's slots."""

    alpha: float = 0.2
    """Part of an even share that no head goes below."""


@dataclass(frozen=True)
class StreamMem(Shared):
    """StreamMem (arXiv 2508.15717): what a generic probe looks at, and a prototype per frame."""

    frame: int = 16
    """Vision tokens of a frame."""


@dataclass(frozen=True)
class LiveVLM(Shared):
    """LiveVLM v2 (arXiv 2505.15269): position buckets, and pages that a question recalls."""

    short: float = 0.25
    """Part of the budget that is held whole, newest first."""
    page: int = 8
    """Slots of a page."""
    ratio: float = 0.4
    """Part of the pages that a question reads."""


@dataclass(frozen=True)
class StreamingVLM:
    """StreamingVLM (arXiv 2510.09608): a window of vision, by structure alone."""

    window: int = 16
    """Chunks whose vision and sound are held."""
    text: int = 0
    """Newest text tokens that are held; the streams of this command carry none."""
    sinks: int = 0
    """First text tokens that are held."""
    per_kind: bool = True
    """Sound has slots of its own."""
    audio_share: float = 0.2
    """Its part of them."""
    positions: Literal["keep", "contiguous"] = "keep"
    """Positions that kept tokens are read at; published: contiguous."""


@dataclass(frozen=True)
class StreamingLLM:
    """StreamingLLM (arXiv 2309.17453): sinks and a window."""

    sinks: int = 4
    """Tokens held from the start of the stream."""
    positions: Literal["keep", "contiguous"] = "contiguous"
    """Published: numbered inside the cache."""


@dataclass(frozen=True)
class Features:
    """What the options of the memories before the decoder have in common."""

    per_kind: bool = True
    """Sound has half of the slots, if the model hears; published (False): frames alone."""
    audio_tokens: int | None = None
    """Rows of sound in a piece, which are kept together; None: a second of it."""


@dataclass(frozen=True)
class MovieChat(Features):
    """MovieChat (arXiv 2307.16449): a short-term queue, merged into a long-term memory."""

    grid: int = 4
    """Rows of a frame's square of tokens."""


@dataclass(frozen=True)
class MaLmm(Features):
    """MA-LMM (arXiv 2404.05726): neighbouring frames are averaged."""

    grid: int = 4
    """Rows of a frame's square of tokens."""
