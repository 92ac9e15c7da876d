"""The embedded audio-visual model: config, word tokenizer, encoders, token layout, weights file.

One second of a stream is 20 tokens: 16 patches of a 48x48 picture, then 4 quarters of a second of
sound. Positions are int32 ticks of a quarter second with a row and a column for patches. The
transformer is the generic `jaxmem.decoder.decoder`.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxmem.data.world.scene import COLOURS, DECOYS, QUADRANTS, SHAPES, SOUNDS
from jaxmem.decoder.checks import arrays_of
from jaxmem.decoder.decoder import DecoderConfig, init_decoder, linear, rms_norm
from jaxmem.decoder.scorer import add_scorer, init_scorer
from jaxmem.kv import AUDIO, VISION
from jaxmem.models.hf.keys import MOST_LAYERS
from jaxmem.models.hf.tensors import write_tensors
from jaxmem.models.hf.weights import nest
from jaxmem.models.tiny.mixers import mixers_of
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float, Int, Params

PAD, ASK = "<pad>", "<ask>"
WORDS = (
    PAD, ASK,
    "colour", "where", "sound", "shape", "heard", "with", "during", "last", "first", "now",
    "none", "yes", "no", "one", "two", "many",
    *COLOURS, *SHAPES, *DECOYS, *SOUNDS, *QUADRANTS,
)  # fmt: skip
STOP = frozenset(
    "a an and are at by came can come could did do does for from had has have how i in is it me "
    "most of on or please recent recently seen show shown shows so tell that the "
    "there this time times to was were what when which while who you".split()
)
SAME = {"color": "colour", "hear": "heard", "noise": "sound", "dot": "dots", "stripe": "stripes"}
TICKS = 4  # positions per second


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """Sizes of the model."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp_width: int = 384
    stem_width: int = 160
    side: int = 48
    patch: int = 12
    mel_bins: int = 24
    mel_frames: int = 25  # per audio token
    temporal_pairs: int = 6
    fastest: float = 1.6  # rad/s of the first temporal pair
    slowest: float = 1 / 375  # rad/s of the last one
    spatial_pairs: int = 1  # each for row and column
    words: tuple[str, ...] = WORDS
    mixer: str = ""  # of the layers that do not attend, see `jaxmem.models.tiny.mixers`
    attend: str = "all"  # which layers attend: "all", "none", or the last of four: "one_in_four"

    @property
    def frame(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens of a picture."""
        return self.side // self.patch, self.side // self.patch

    @property
    def patches(self) -> int:
        """Visual tokens per second."""
        return self.frame[0] * self.frame[1]

    @property
    def pieces(self) -> int:
        """Audio tokens per second."""
        return 100 // self.mel_frames

    @property
    def tokens(self) -> int:
        """Tokens per second."""
        return self.patches + self.pieces


def name_of(config: TinyConfig) -> str:
    """What a model is called that training writes: "tiny", "tiny-mamba2", "tiny-mamba2-hybrid"."""
    hybrid = ("hybrid",) if config.attend == "one_in_four" else ()
    return "-".join(("tiny", *filter(None, (config.mixer,)), *hybrid))


def decoder_config(config: TinyConfig) -> DecoderConfig:
    """The generic decoder's config: partial M-RoPE, pairs that are left over do not rotate."""
    time = np.geomspace(config.fastest, config.slowest, config.temporal_pairs) / TICKS
    space = np.geomspace(1.0, 0.5, config.spatial_pairs)
    still = config.head_dim // 2 - config.temporal_pairs - 2 * config.spatial_pairs
    counts = (config.temporal_pairs, config.spatial_pairs, config.spatial_pairs, still)
    return DecoderConfig(
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        mlp_width=config.mlp_width,
        vocab=len(config.words),
        rope=Rope(
            inv_freq=tuple(float(f) for f in (*time, *space, *space)) + (0.0,) * still,
            axis=tuple(np.repeat([0, 1, 2, 0], counts).tolist()),
        ),
        activation="relu2",
        qk_norm=True,
        qk_norm_init=1.5,
        mixers=mixers_of(config),
    )


def sized(mixer: str, attend: str, like: TinyConfig | None = None) -> TinyConfig:
    """The config of a model with a mixer, with about as many weights as where all layers attend.

    Its MLPs take what the layers' mixers leave or need; the difference is below 0.5 %.

    Raises:
        ValueError: see `mixers_of`; or the mixers leave no weights for MLPs.
    """
    like = like or TinyConfig()

    def count(config: TinyConfig) -> int:
        made = jax.eval_shape(lambda: init(config, jax.random.key(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(made))

    made = dataclasses.replace(like, mixer=mixer, attend=attend)
    room = (count(like) - count(made)) / (2 * like.width * like.layers)
    found = 8 * round((like.mlp_width + room) / 8)
    if found < 8:
        raise ValueError(
            f"mixer {mixer} leaves no weights for MLPs beside it: give a larger mlp_width than "
            f"{like.mlp_width}, or a smaller head_dim than {like.head_dim}."
        )
    return dataclasses.replace(made, mlp_width=found)


def init(config: TinyConfig, key: Array) -> Params:
    """Random weights {"vision", "audio", "decoder"} as nested dicts of float32."""
    keys = jax.random.split(key, 8)

    def dense(k: Array, fan_in: int, fan_out: int) -> Params:
        return {"kernel": jax.random.normal(k, (fan_in, fan_out)) / np.sqrt(fan_in)}

    def stem(k: Array, inputs: int, slots: int) -> Params:
        a, b, c = jax.random.split(k, 3)
        return {
            "up": dense(a, inputs, config.stem_width),
            "down": dense(b, config.stem_width, config.width),
            "slot": 0.5 * jax.random.normal(c, (slots, config.width)),
            "norm": {"scale": jnp.ones((config.width,))},
        }

    decoder = init_decoder(decoder_config(config), keys[2])
    words = 0.7 * jax.random.normal(keys[3], (len(config.words), config.width))
    return {
        "vision": stem(keys[0], 3 * config.patch**2, config.patches),
        "audio": stem(keys[1], config.mel_frames * config.mel_bins, config.pieces),
        "decoder": {**decoder, "embedding": {"embedding": words}},
    }


def _stem(params: Params, x: Float[Array, "n T I"]) -> tuple[Array, Array]:
    """Features before and after the learned embedding of the slot is added."""
    flat = x.reshape(-1, x.shape[-1])
    h = jnp.square(jax.nn.relu(linear(flat, params["up"])))
    h = rms_norm(linear(h, params["down"]), params["norm"], 1e-6).reshape(*x.shape[:2], -1)
    return h, h + params["slot"][None]


def vision_stem(params: Params, config: TinyConfig, frames: Array) -> tuple[Array, Array]:
    """`encode_vision` with the features before the slot embedding in front ([F, 16, E] twice)."""
    n, p = config.side // config.patch, config.patch
    x = (frames.astype(jnp.float32) - 127.5) / 64
    x = x.reshape(-1, n, p, n, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, n * n, p * p * 3)
    return _stem(params["vision"], x)


def audio_stem(params: Params, config: TinyConfig, logmel: Array) -> tuple[Array, Array]:
    """`encode_audio` with the features before the slot embedding in front ([n, 4, E] twice)."""
    x = logmel.reshape(-1, config.pieces, config.mel_frames * config.mel_bins)
    return _stem(params["audio"], x)


def encode_vision(params: Params, config: TinyConfig, frames: Array) -> Float[Array, "F 16 E"]:
    """Pictures (uint8 or float 0..255) [F, 48, 48, 3] to tokens, row by row of patches."""
    if frames.shape[1:] != (config.side, config.side, 3):
        raise ValueError(
            f"frames must be [F, {config.side}, {config.side}, 3], got {frames.shape}: resize them"
        )
    return vision_stem(params, config, frames)[1]


def encode_audio(params: Params, config: TinyConfig, logmel: Array) -> Float[Array, "n 4 E"]:
    """Seconds of log-mel frames [n, 100, 24] (`jaxmem.data.world.features`) to tokens."""
    if logmel.shape[1:] != (config.pieces * config.mel_frames, config.mel_bins):
        raise ValueError(
            f"logmel must be [n, {config.pieces * config.mel_frames}, {config.mel_bins}], got "
            f"{logmel.shape}: cut the frames into whole seconds"
        )
    return audio_stem(params, config, logmel)[1]


def positions(config: TinyConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One second's positions int32 [20, 3], (tick, row, column) from its beginning.

    With them the modality of each token, int8 [20], and how far the next second is, int32 [3].
    """
    n = config.side // config.patch
    row, col = np.divmod(np.arange(n * n), n)
    vision = np.stack([np.zeros_like(row), row, col], -1)
    tick = np.arange(config.pieces) * TICKS // config.pieces
    audio = np.stack([tick, np.zeros_like(tick), np.zeros_like(tick)], -1)
    modality = np.array([VISION] * config.patches + [AUDIO] * config.pieces, np.int8)
    pos = np.concatenate([vision, audio]).astype(np.int32)
    return pos, modality, np.array([TICKS, 0, 0], np.int32)


def layout(
    config: TinyConfig, vision: Float[Array, "F 16 E"], audio: Float[Array, "F 4 E"]
) -> tuple[Float[Array, "F T E"], Int[Array, "T A"], Int[Array, "T"], Int[Array, "A"]]:
    """Encoded seconds to rows of 20 tokens, pictures first; with `positions` of every second."""
    pos, modality, advance = (jnp.asarray(x) for x in positions(config))
    return jnp.concatenate([vision, audio], 1), pos, modality, advance


def question_positions(length: int) -> np.ndarray:
    """int32 [length, 3]: words follow one another tick by tick, beginning where the stream ends."""
    return np.stack([np.arange(length), np.zeros(length), np.zeros(length)], -1).astype(np.int32)


@functools.cache
def _index(words: tuple[str, ...]) -> Mapping[str, int]:
    return {w: i for i, w in enumerate(words)}


def tokenize(text: str, words: tuple[str, ...] = WORDS) -> Int[np.ndarray, "Q"]:
    """Word ids of a question: lower case, no punctuation, no filler words, `<ask>` at the end.

    Raises:
        ValueError: nothing is left of the text, or it has words outside the vocabulary.
    """
    index = _index(words)
    found = re.findall(r"[a-z]+", text.lower())
    ids, unknown = [], []
    for word in found:
        if word in STOP:
            continue
        forms = (word, SAME.get(word, ""), word.removesuffix("s"), word.removesuffix("es"))
        known = next((f for f in forms if f in index), None)
        if known is None:
            unknown.append(word)
        else:
            ids.append(index[known])
    if unknown or not ids:
        problem = f"does not know {', '.join(unknown)}" if unknown else f"found no word in {text!r}"
        raise ValueError(
            f"the tiny model {problem}. It knows: {', '.join(w for w in words if w[0] != '<')}"
        )
    return np.array([*ids, index[ASK]], np.int32)


def save(path: str | Path, params: Params, config: TinyConfig) -> None:
    """Write weights as float16 safetensors with the config in the metadata."""
    flat = {name: np.asarray(leaf, np.float16) for name, leaf in arrays_of(params).items()}
    write_tensors(path, flat, {"config": json.dumps(dataclasses.asdict(config))})


def load(path: str | Path | None = None) -> tuple[Params, TinyConfig]:
    """Read weights (float32) and config; default is the model that comes with the package.

    Raises:
        ValueError: the file is missing, is no file of `save`, or has other tensors than its config
            asks for.
    """
    if path is None:
        with resources.as_file(resources.files("jaxmem") / "assets" / "tiny.safetensors") as p:
            return load(p)
    if not Path(path).is_file():
        raise ValueError(
            f"no weights at {path}: train them with `python -m jaxmem.experiments.train`"
        )
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get("config")
            if text is None:
                raise ValueError("it has no config in its metadata")
            names = file.keys()
            leaves = {name: jnp.asarray(file.get_tensor(name), jnp.float32) for name in names}
        values = json.loads(text)
        config = TinyConfig(**{**values, "words": tuple(values["words"])})
        _check_tensors(leaves, config)
    except (
        SafetensorError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path} is no file of weights that `python -m jaxmem.experiments.train` wrote: {error}"
        ) from error
    params = nest(leaves)
    if "mixers" in (decoder := params.get("decoder", {})):  # a stack for each that differs
        decoder["mixers"] = tuple(decoder["mixers"].values())
    return params, config


def _check_tensors(leaves: Mapping[str, Array], config: TinyConfig) -> None:
    """Refuse tensors of another model than a config's; it may have a scorer or not."""
    if not isinstance(config.layers, int) or config.layers > MOST_LAYERS:
        raise ValueError(
            f"its config asks for {config.layers} layers, at most {MOST_LAYERS} are read"
        )
    scored = any(".retention." in name for name in leaves)
    wanted, found = _shapes(config, scored), {name: str(x.shape) for name, x in leaves.items()}
    if found != wanted:
        name = min(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise ValueError(
            f"its tensor {name} is {found.get(name, 'absent')}, its config asks for "
            f"{wanted.get(name, 'none')}"
        )


@functools.cache
def _shapes(config: TinyConfig, scored: bool) -> Mapping[str, str]:
    """Return the shapes of a model's weights by name, in words."""

    def made() -> Params:
        params, key = init(config, jax.random.key(0)), jax.random.key(0)
        if not scored:
            return params
        scorer = init_scorer(decoder_config(config), key)
        return params | {"decoder": add_scorer(params["decoder"], scorer)}

    return {name: str(x.shape) for name, x in arrays_of(jax.eval_shape(made)).items()}
