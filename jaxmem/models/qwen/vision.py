"""What the vision encoders of the Qwen families have alike: sizes, patches, the last merger."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from jaxmem.decoder.decoder import linear
from jaxmem.models.encoders.vision_parts import Grids, rotary
from jaxmem.models.hf.keys import check_value, number, section, sizes, whole_numbers
from jaxmem.models.hf.weights import Weight, dense
from jaxmem.typing import Array, Float, Params

KEYS = {
    "depth": "depth", "width": "hidden_size", "heads": "num_heads",
    "mlp_width": "intermediate_size", "out": "out_hidden_size", "patch": "patch_size",
    "temporal": "temporal_patch_size", "merge": "spatial_merge_size",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Static description of an encoder."""

    depth: int  # blocks
    width: int  # W, of the encoder
    heads: int  # attention heads
    mlp_width: int  # inner width of the MLP
    out: int  # E, width of the decoder
    patch: int  # side of a patch in pixels
    temporal: int  # pictures per patch
    merge: int  # side of the cell of patches that becomes one token
    channels: int = 3  # of a picture
    theta: float = 10_000.0  # base of the rotary frequencies
    norm_eps: float = 1e-6  # of every norm

    @classmethod
    def read(
        cls,
        vision: Mapping[str, Any],
        activation: str,
        blocks: Mapping[str, str] | None = None,
        **more: str,
    ) -> Self:
        """Return the encoder that `vision_config` of a config.json describes.

        Args:
          vision: the part of config.json.
          activation: the one that is implemented.
          blocks: keys of the fields that list some of the blocks.
          more: keys of the sizes that a family adds.

        Raises:
          ValueError: if a key is missing or no such size, or the encoder has another activation.
        """
        where, key = "vision_config", "rope_theta"
        found = vision.get("hidden_act", activation)
        check_value(f"hidden_act of {where}", found, activation)
        channels = "in_channels" if "in_channels" in vision else "in_chans"
        names = {**KEYS, **more, "channels": channels}
        rope = {key: 10_000.0, **section(vision, "rope_parameters", where)}
        lists = (blocks or {}).items()
        listed: Any = {name: whole_numbers(vision, at, where) for name, at in lists}
        known = sizes({channels: 3, **vision}, names, where)
        return cls(**known, **listed, theta=number(rope, key, where, above=0))

    @property
    def cell_width(self) -> int:
        """Return the width of a cell of patches."""
        return self.merge**2 * self.width

    def turn(self, grids: Grids) -> Float[Array, "N 1 D/2"]:
        """Return the rotary angles of all patches."""
        return rotary(self.width // self.heads, self.theta, grids, self.merge)

    def patch_weight(self, prefix: str) -> Weight:
        """Return where the kernel of the patches is stored."""
        window = (self.channels, self.temporal, self.patch, self.patch)
        return Weight(f"{prefix}patch_embed.proj.weight", (self.width, *window), "patch")

    def merger_table(
        self, path: str, prefix: str, maps: tuple[str, str], layers: int | None = None
    ) -> dict[str, Weight]:
        """Return the entries of a merger's two linear maps, stored under `prefix`."""
        cell, (fc1, fc2) = self.cell_width, maps
        table = dense(f"{path}.fc1", prefix + fc1, cell, cell, layers=layers)
        return table | dense(f"{path}.fc2", prefix + fc2, cell, self.out, layers=layers)


def embed_patches(params: Params, patches: Float[Array, "N I"]) -> Float[Array, "N W"]:
    """Return the embedding of patches, before positions are added."""
    return linear(patches.astype(params["patch"]["kernel"].dtype), params["patch"])
