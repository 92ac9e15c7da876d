"""Video-Ma2mba (0.7B, 1.8B, 3.1B; arXiv 2411.19460): config, weights, tokens of a frame, prompt.

A Mamba-2 language model that sees every frame, one a second: its memory is the state of its
layers. A frame is one picture of the CLIP encoder (the blocks' output before the last, without the
class token), pooled to half the side (24 x 24 to 12 x 12: 144 tokens) and projected. Frames follow
each other with nothing between them.

No weights were released. The checkpoint that is read here is put together of what others publish:
`vision_tower.*` with the names of transformers' CLIPVisionModel, `language_model.*` with those of
Mamba2ForCausalLM, `multi_modal_projector.linear_1` and `linear_2`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.models.encoders import clip
from jaxmem.models.encoders.clip import ClipConfig
from jaxmem.models.encoders.resize import resize_grid
from jaxmem.models.encoders.vision_parts import gelu_mlp
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.family import Files, Names
from jaxmem.models.hf.keys import check_family, check_value, is_tied, sections, token_ids
from jaxmem.models.hf.preprocessor import CLIP, pixels_of
from jaxmem.models.hf.weights import Weight, dense, under
from jaxmem.models.llava.onevision import LlavaFamily
from jaxmem.models.mamba import mamba2
from jaxmem.typing import Array, Float, Params

MODEL_TYPES = ("video_ma2mba",)
RENAMES = (
    ("vision_tower.vision_model.", "vision_tower."),
    ("language_model.backbone.embedding.", "language_model.backbone.embeddings."),
)
IGNORE = tuple(f"vision_tower.{name}" for name in clip.IGNORE)
HEAD = "language_model.lm_head.weight"
VIDEO = 50_277
"""Placeholder of the video in a prompt: the first row of the embedding that no text has."""
SETTINGS = {
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu", "spatial_pool_stride": 2, "spatial_pool_mode": "bilinear",
}  # fmt: skip
"""What is implemented, which is also what a config.json means that does not say."""
TEMPLATE = (
    "<|system|>You watch a video and answer questions about it.<|endoftext|>"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% for c in m['content'] if c['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{{ '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The published layout of tokens; of its system text nothing is known."""
RUN = 5
"""An answer ends where so many tokens come again, as published."""


@dataclass(frozen=True)
class Ma2mbaConfig:
    """Static description of the model."""

    decoder: DecoderConfig  # its language model
    vision: ClipConfig  # its encoder, up to the block that is read
    video: int = VIDEO  # placeholder token of the video

    @property
    def frame_side(self) -> int:
        """Return the side of a frame in tokens."""
        return self.vision.grid // 2

    @property
    def frame_tokens(self) -> int:
        """Return the tokens of a frame."""
        return self.frame_side**2


def read_config(config: Mapping[str, Any]) -> Ma2mbaConfig:
    """Return the model that a config.json describes; ValueError if it is not implemented."""
    check_family(config, MODEL_TYPES)
    for key, known in SETTINGS.items():
        check_value(key, config.get(key, known), known)
    text, encoder = sections(config, ("text_config", "vision_config"))
    vision = clip.read_config(encoder)
    tied, key = is_tied(config, text), "video_token_id"
    read = replace(vision.stack, depth=vision.stack.depth - 1)
    if not read.depth or vision.grid % 2:
        raise ValueError(
            f"the encoder has {vision.stack.depth} blocks and {vision.grid} patches a side, but "
            "the output before the last block is pooled in cells of 2 x 2: at least two blocks and "
            "an even number of patches are needed."
        )
    check_family(text, mamba2.MODEL_TYPES, "text_config")
    decoder = mamba2.read_config({**text, "tie_word_embeddings": tied})
    video = token_ids(config, {"video": key}, {key: VIDEO}, decoder.vocab)
    return Ma2mbaConfig(decoder, replace(vision, stack=read), **video)


def weight_table(config: Ma2mbaConfig) -> dict[str, Weight]:
    """Return the weight table of {"decoder", "vision", "projector"} after `RENAMES`."""
    wide, width, at = config.decoder.width, config.vision.stack.width, "multi_modal_projector"
    return {
        **under("decoder", mamba2.weight_table(config.decoder, "language_model.")),
        **under("vision", clip.weight_table(config.vision, "vision_tower.")),
        **dense("projector.fc1", f"{at}.linear_1", width, wide),
        **dense("projector.fc2", f"{at}.linear_2", wide, wide),
    }


def encode(
    params: Params, config: Ma2mbaConfig, pixels: Float[Array, "F Y X C"]
) -> Float[Array, "m E"]:
    """Return the tokens of normalised frames, `frame_tokens` for each."""
    x, _ = clip.encode(params["vision"], config.vision, pixels)
    side, grid = config.frame_side, config.vision.grid
    x = resize_grid(x[:, 1:].reshape(len(x), grid, grid, -1), (side, side), "linear")
    return gelu_mlp(params["projector"], x.reshape(-1, x.shape[-1]))


@dataclass(frozen=True)
class VideoMa2mba(LlavaFamily):
    """Video-Ma2mba as a `Family`."""

    stop_run = RUN
    config: Ma2mbaConfig
    read_config = staticmethod(read_config)
    frame_features = staticmethod(encode)

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0) -> Self:
        found = super().read(files, fps=fps)
        return replace(found, pixels=pixels_of(files.settings, CLIP))

    @property
    def names(self) -> Names:
        last = f"vision_tower.encoder.layers.{self.config.vision.stack.depth}.*"
        ignore = (*IGNORE, last, HEAD) if self.config.decoder.tied else (*IGNORE, last)
        return Names(weight_table(self.config), RENAMES, ignore)

    def turn(self, question: str) -> Turn:
        return self.chat.around(question, self.config.video)

    def finalise(self, params: Params) -> Params:
        return {**params, "decoder": mamba2.finalise(params["decoder"])}
