"""The embedded default model as a `Model`: the one that needs no download."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.data.world.features import PAST, RATE, log_mel
from jaxmem.kv import EMPTY
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.flexmem.memindex import MemIndex
from jaxmem.models.base import Encode, MediaFormat, Model
from jaxmem.models.scorer import with_scorer
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.tiny import TinyConfig
from jaxmem.typing import Bool, Float, Params, UInt

NOTE = (
    "The embedded model was trained on a synthetic world of coloured shapes and sounds and knows "
    "nothing else: its answers about other videos mean nothing."
)

PROBES = ("Which shape, which sound, where?", "Which shape, which sound, which colour?")
"""About the present scene and about the whole stream, of the length of the questions that the model
was trained with."""


_ASSETS = Path(__file__).parents[2] / "assets"
HALF: Mapping[str, Any] = MappingProxyType({"audio_share": 0.5})
SCORED = (
    "infinipot_v", "snapkv", "h2o", "tova", "knorm", "keydiff", "last_copy",
    "expected_attention", "criticalkv", "adakv", "streammem", "livevlm",
)  # fmt: skip
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        **dict.fromkeys(SCORED, HALF),
        "omnimem": {**HALF, "sketch": 128},
        "hermes": {**HALF, "positions": "keep"},
        "snapkv": {**HALF, "window": 20},
        "criticalkv": {**HALF, "window": 20},
        "adakv": {**HALF, "window": 20},
        "retention": {**HALF, "logits": False},
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
        "dscache": {"reindex": False},
        "bank": {"block": 20, "topk": 4},
    }
)
"""Options of memories that suit the model, by their names on the command line.

Its audio matters as much as its pictures, and it reads its clock from positions.
"""


def presets_of(layers: int) -> Mapping[str, Mapping[str, Any]]:
    """Return the presets for so many layers that attend: the index of FlexMem reads its middle."""
    flexmem = PRESETS["flexmem"]
    reader = replace(flexmem["reader"], layers=(layers // 2,))
    return MappingProxyType({**PRESETS, "flexmem": {**flexmem, "reader": reader}})


class Inputs(NamedTuple):
    """One chunk of C seconds, as the encoders take it."""

    frames: UInt[Any, "C 48 48 3"]  # numpy on the host, traced in the scan
    logmel: Float[Any, "C 100 24"]
    valid: Bool[Any, "C"]


@dataclass(frozen=True)
class Tiny:
    """The embedded model's functions.

    Attributes:
      config: sizes of the model.
    """

    config: TinyConfig

    def preprocess(
        self,
        frames: np.ndarray,
        samples: np.ndarray,
        valid: np.ndarray,
        past: np.ndarray,
        start: int = 0,
    ) -> Inputs:
        """Return a chunk's inputs: the first frame of each second and its log-mel frames.

        Arguments are those of `Model.preprocess`, with samples [C, 16000] and past [240].
        """
        del start  # every second is laid out alike
        mel = log_mel(samples.reshape(-1), past)
        return Inputs(frames[:, 0], mel.reshape(len(samples), -1, self.config.mel_bins), valid)

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        """Return a chunk as rows: seconds one after the other, 20 tokens each, padding last."""
        vision = tiny.encode_vision(params, self.config, inputs.frames)
        audio = tiny.encode_audio(params, self.config, inputs.logmel)
        x, pos, modality, advance = tiny.layout(self.config, vision, audio)
        seconds = jnp.arange(inputs.valid.shape[0], dtype=pos.dtype)
        shift = seconds[:, None, None] * advance[None, None]
        modality = jnp.where(inputs.valid[:, None], modality[None], EMPTY).astype(jnp.int8)
        return Embeds(
            x=x.reshape(-1, x.shape[-1]),
            pos=(pos[None] + shift).reshape(-1, pos.shape[-1]),
            modality=modality.reshape(-1),
            advance=advance * jnp.sum(inputs.valid, dtype=advance.dtype),
        )

    def words(self, ids: np.ndarray) -> str:
        """Return the words of token ids."""
        return " ".join(self.config.words[int(i)] for i in ids)


def shipped() -> tuple[str, ...]:
    """Return the names of the models of this kind that come with the package."""
    return ("tiny", *sorted(path.stem for path in _ASSETS.glob("tiny-*.safetensors")))


def is_embedded(where: str | Path) -> bool:
    """Return whether that is a name in `shipped`, or a file of weights."""
    return str(where) in shipped() or (
        str(where).endswith(".safetensors") and Path(where).is_file()
    )


def weights_of(where: str | Path | None) -> Path | None:
    """Return the file of a name in `shipped`; any other path, and None, as it is."""
    if where is None:
        return None
    return _ASSETS / f"{where}.safetensors" if str(where) in shipped() else Path(where)


def embedded(where: str | Path | None = None) -> Model:
    """Return the embedded model, or one of its kind.

    Args:
      where: a name in `shipped`, or safetensors written by `python -m jaxmem.experiments.train`;
        None: "tiny".

    Raises:
      ValueError: if the file is missing or was not written by this project.
    """
    params, config = tiny.load(weights_of(where))
    mine, decoder = Tiny(config), tiny.decoder_config(config)
    model = Model(
        name="tiny" if where is None else Path(where).name.removesuffix(".safetensors"),
        params=params,
        decoder=decoder,
        media=MediaFormat(1.0, (config.side, config.side), RATE, 1.0, past_samples=PAST),
        tokens_per_piece=config.tokens,
        preprocess=mine.preprocess,
        encode=Encode(mine),
        tokenize=partial(tiny.tokenize, words=config.words),
        detokenize=mine.words,
        text_step=(1, 0, 0),
        ticks_per_second=float(tiny.TICKS),
        probes=PROBES,
        note=NOTE,
        audio_tokens=config.pieces,
        frame=config.frame,
        presets=presets_of(decoder.attends),
    )
    ours = where is None or str(where) == "tiny"
    return with_scorer(model, _ASSETS / "tiny_scorer.safetensors") if ours else model
