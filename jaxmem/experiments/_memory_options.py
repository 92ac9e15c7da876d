"""The options of every memory that a command line may set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from jaxmem.experiments._peer_options import (
    H2O,
    AdaKV,
    CriticalKV,
    ExpectedAttention,
    Features,
    InfiniPotV,
    KeyDiff,
    Knorm,
    LiveVLM,
    MaLmm,
    MovieChat,
    SnapKV,
    StreamingLLM,
    StreamingVLM,
    StreamMem,
    Tova,
)


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
    text: int | None = None
    """Slots for text tokens; None: a third of the budget where time stamps come, else none."""
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
    positions: Literal["lazy", "eager", "keep"] = "keep"
    """When positions are renumbered; the embedded model reads its clock from them."""
    per_kind: bool = True
    """Audio has a part of the budget of its own."""
    audio_share: float = 0.5
    """Audio's part of the budget."""


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
class FlashVStream(Features):
    """Flash-VStream (arXiv 2406.08085): spatial, temporal, abstract and retrieved features."""

    grid: int = 4
    """Rows of a frame's square of tokens."""
    form: Literal["as_released", "as_published"] = "as_released"
    """Which of the two, where they differ."""


@dataclass(frozen=True)
class FlashVStreamQwen(Features):
    """Flash-VStream, Qwen version: a synopsis of centres, and frames in detail from a ring."""

    grid: int = 4
    """Rows of a frame's square of tokens, even."""
    form: Literal["as_released", "as_published"] = "as_released"
    """Which of the two, where they differ."""


@dataclass(frozen=True)
class Bank:
    """A bank behind every memory that has none of its own (`full` has no need of one)."""

    capacity: int = 0
    """Tokens per layer that it holds; 0: no bank."""
    block: int = 20
    """Tokens of a block; its mean key stays on the device."""
    topk: int = 4
    """Blocks that a layer recalls for a question."""
    recall: Literal["mean", "attention", "parts"] = "mean"
    """What a question scores: mean keys, attention to mean keys, or the best of four parts."""
    evict: Literal["oldest", "newest", "uniform"] = "oldest"
    """What goes when the bank is full; uniform: all but evenly spaced blocks."""
    positions: Literal["keep", "contiguous"] = "keep"
    """Positions that recalled tokens are read at."""
    space: Literal["host", "device"] = "host"
    """Memory of every bank, also of rekv and flexmem; on the device it counts in the budget."""


@dataclass(frozen=True)
class Memories:
    """The options of every memory; the names of the fields are the names on the command line.

    `bank` and `bits` are no memories: they are put around the others.
    """

    full: Full = field(default_factory=Full)
    recent: Recent = field(default_factory=Recent)
    last_frames: LastFrames = field(default_factory=LastFrames)
    uniform: Uniform = field(default_factory=Uniform)
    random: Random = field(default_factory=Random)
    omnimem: OmniMem = field(default_factory=OmniMem)
    hermes: Hermes = field(default_factory=Hermes)
    rekv: ReKV = field(default_factory=ReKV)
    infinipot_v: InfiniPotV = field(default_factory=InfiniPotV)
    snapkv: SnapKV = field(default_factory=SnapKV)
    h2o: H2O = field(default_factory=H2O)
    tova: Tova = field(default_factory=Tova)
    knorm: Knorm = field(default_factory=Knorm)
    keydiff: KeyDiff = field(default_factory=KeyDiff)
    expected_attention: ExpectedAttention = field(default_factory=ExpectedAttention)
    criticalkv: CriticalKV = field(default_factory=CriticalKV)
    adakv: AdaKV = field(default_factory=AdaKV)
    streammem: StreamMem = field(default_factory=StreamMem)
    livevlm: LiveVLM = field(default_factory=LiveVLM)
    flexmem: FlexMem = field(default_factory=FlexMem)
    streaming_vlm: StreamingVLM = field(default_factory=StreamingVLM)
    streaming_llm: StreamingLLM = field(default_factory=StreamingLLM)
    flash_vstream: FlashVStream = field(default_factory=FlashVStream)
    flash_vstream_qwen: FlashVStreamQwen = field(default_factory=FlashVStreamQwen)
    moviechat: MovieChat = field(default_factory=MovieChat)
    ma_lmm: MaLmm = field(default_factory=MaLmm)
    bank: Bank = field(default_factory=Bank)
    bits: Literal[4, 8] | None = None
    """Store keys and values of every memory but `full` in so many bits."""


Name = Literal[
    "full", "recent", "last_frames", "uniform", "random", "omnimem", "hermes", "rekv",
    "infinipot_v", "snapkv", "h2o", "tova", "knorm", "keydiff", "expected_attention", "criticalkv",
    "adakv", "streammem", "livevlm", "flexmem", "streaming_vlm", "streaming_llm", "flash_vstream",
    "flash_vstream_qwen", "moviechat", "ma_lmm",
]  # fmt: skip
NAMES: tuple[str, ...] = get_args(Name)
