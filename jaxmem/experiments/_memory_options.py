"""The options of every memory that a command line may set."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Full:
    """The whole stream: the exact reference. It takes what it needs, whatever the budget."""

    capacity: int | None = None
    """Tokens per layer; None: as many as the stream has, if its length is known."""


@dataclass(frozen=True)
class Recent:
    """The first tokens and the newest ones."""

    sinks: int = 4
    """Tokens held from the start of the stream."""


@dataclass(frozen=True)
class LastFrames:
    """The last whole frames with their sound, and nothing else."""

    frames: int | None = None
    """Frames held at most; None: as many as fit."""
    tokens_per_frame: int | None = None
    """Vision tokens of a frame, where kinds and times do not tell frames apart."""


@dataclass(frozen=True)
class Uniform:
    """Tokens evenly spaced over everything seen so far."""

    unit: Literal["token", "frame"] = "token"
    """What is spaced: single tokens, or whole frames with their sound."""


@dataclass(frozen=True)
class Random:
    """A uniform random sample of everything seen so far."""

    unit: Literal["token", "frame"] = "token"
    """What is drawn."""
    key: int = 0
    """Seed of the draw."""
    per_layer: bool = False
    """Draw in every layer independently."""


@dataclass(frozen=True)
class OmniMem:
    """OmniMem (arXiv 2606.07577): what is attended to and not repeated by its neighbours."""

    audio_share: float = 0.5
    """Audio's part of the budget; the released tables give it 1/6."""
    joint: bool = False
    """Audio and vision compete for one cap."""
    text: int = 0
    """Slots for text tokens; the streams of this command carry none."""
    importance: Literal["mean_logit", "exact"] = "mean_logit"
    """Softmax of head-averaged logits (as released), or mean of the exact weights."""
    lam: float = 0.02
    """Exponent of importance; 0: redundancy alone."""
    power: float = 0.5
    """Exponent of 1 - redundancy: 0.5 as released, 1 as published."""
    carry: float = 0.5
    """Weight of the stored importance when a token is seen again."""
    form: Literal["product", "sum"] = "product"
    """How importance and redundancy are joined."""
    global_factor: float = 0.0
    """Weight of the redundancy with whole blocks."""
    sketch: int | None = 128
    """Numbers per redundancy vector; None: the whole layer input."""
    table: Path | None = None
    """Budget table (JSON, per layer and kind) in place of --budget."""


@dataclass(frozen=True)
class Hermes:
    """HERMES (arXiv 2601.14724): sensory, working and long-term layers."""

    mix: Literal["qwen", "llava", "paper"] = "qwen"
    """Weight of recency in the middle layers, and how it decays."""
    summary: bool = True
    """What deep layers evict becomes a summary token."""
    reindex: Literal["lazy", "eager", "keep"] = "keep"
    """When positions are renumbered; the embedded model reads its clock from them."""


@dataclass(frozen=True)
class ReKV:
    """ReKV (arXiv 2503.00540): everything goes to a bank, a question brings blocks back."""

    bank: int | None = None
    """Tokens per layer that the bank holds; None: as many as the stream has."""
    block: int = 80
    """Tokens of a block."""
    topk: int | None = None
    """Blocks that a layer recalls; None: as many as the window holds tokens."""
    sinks: int = 4
    """Tokens held from the start of the stream."""
    positions: Literal["keep", "contiguous"] = "keep"
    """Positions of recalled tokens; published: contiguous."""


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
class FlexMem:
    """FlexMem (arXiv 2603.29252): context to watch with, and a bank of clips to answer from."""

    bank: int | None = None
    """Tokens per layer that the bank holds; None: what the stream leaves there."""
    clip: int | None = None
    """Tokens of a clip; None: one chunk."""
    context_ratio: int = 4
    """A clip of n tokens keeps n / ratio of them to watch with."""
    local_ratio: int = 2
    """And n / ratio of them in the bank."""
    topk: int = 4
    """Clips that a question recalls."""
    layers: tuple[int, ...] = (2,)
    """Layers whose keys are the index of a clip."""
    keys: int = 2
    """Index keys of a clip in each of these layers."""
    shallow: int = 1
    """First layers, which keep evenly spaced tokens."""
    per_kind: bool = True
    """Audio keeps its own part of a clip."""
    positions: Literal["keep", "contiguous"] = "keep"
    """Positions that kept tokens are read at; published: contiguous."""


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
class FlashVStream:
    """Flash-VStream (arXiv 2406.08085): spatial, temporal, abstract and retrieved features."""

    grid: int = 4
    """Rows of a frame's square of tokens."""
    form: Literal["as_released", "as_published"] = "as_released"
    """Which of the two, where they differ."""


@dataclass(frozen=True)
class MovieChat:
    """MovieChat (arXiv 2307.16449): a short-term queue, merged into a long-term memory."""

    grid: int = 4
    """Rows of a frame's square of tokens."""


@dataclass(frozen=True)
class MaLmm:
    """MA-LMM (arXiv 2404.05726): neighbouring frames are averaged."""

    grid: int = 4
    """Rows of a frame's square of tokens."""


@dataclass(frozen=True)
class Memories:
    """The options of every memory; the names of the fields are the names on the command line."""

    full: Full = Full()
    recent: Recent = Recent()
    last_frames: LastFrames = LastFrames()
    uniform: Uniform = Uniform()
    random: Random = Random()
    omnimem: OmniMem = OmniMem()
    hermes: Hermes = Hermes()
    rekv: ReKV = ReKV()
    infinipot_v: InfiniPotV = InfiniPotV()
    snapkv: SnapKV = SnapKV()
    h2o: H2O = H2O()
    tova: Tova = Tova()
    knorm: Knorm = Knorm()
    keydiff: KeyDiff = KeyDiff()
    expected_attention: ExpectedAttention = ExpectedAttention()
    criticalkv: CriticalKV = CriticalKV()
    adakv: AdaKV = AdaKV()
    streammem: StreamMem = StreamMem()
    livevlm: LiveVLM = LiveVLM()
    flexmem: FlexMem = FlexMem()
    streaming_vlm: StreamingVLM = StreamingVLM()
    streaming_llm: StreamingLLM = StreamingLLM()
    flash_vstream: FlashVStream = FlashVStream()
    moviechat: MovieChat = MovieChat()
    ma_lmm: MaLmm = MaLmm()


Name = Literal[
    "full", "recent", "last_frames", "uniform", "random", "omnimem", "hermes", "rekv",
    "infinipot_v", "snapkv", "h2o", "tova", "knorm", "keydiff", "expected_attention", "criticalkv",
    "adakv", "streammem", "livevlm", "flexmem", "streaming_vlm", "streaming_llm", "flash_vstream",
    "moviechat", "ma_lmm",
]  # fmt: skip
NAMES: tuple[str, ...] = tuple(f.name for f in fields(Memories))
