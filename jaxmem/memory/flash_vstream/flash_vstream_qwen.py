"""Flash-VStream, Qwen version (arXiv 2506.23825), as a memory; its parts: `synopsis`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp

from jaxmem.memory.base import Spec, State, tupled
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.features.clusters import draw
from jaxmem.memory.features.frames import (
    append_frames,
    check_frame,
    frames_of,
    halve_grid,
    rows_of,
    square,
)
from jaxmem.memory.flash_vstream.options import FromFrames
from jaxmem.memory.flash_vstream.synopsis import (
    Held,
    advance,
    am_rope,
    details,
    init_held,
    same,
)


@dataclass(frozen=True)
class QwenSizes:
    """Static sizes in frames (pairs of video frames in Qwen2-VL), and the grid of a frame.

    Attributes:
      grid: rows and columns of a frame (one number: a square's side); a centre has half as many,
        rounded up.
      synopsis: centres.
      details: frames in detail.
      bank: newest frames that details are taken from; the release keeps all.
    """

    grid: int | tuple[int, int] = 16
    synopsis: int = 60
    details: int = 30
    bank: int = 512

    def __post_init__(self):
        tupled(self, "grid")

    @property
    def high(self) -> tuple[int, int]:
        """Return rows and columns of a frame."""
        return square(self.grid)

    @property
    def low(self) -> tuple[int, int]:
        """Return rows and columns of a centre."""
        rows, columns = self.high
        return -(-rows // 2), -(-columns // 2)

    def check(self) -> None:
        """Raise ValueError if the sizes do not go together."""
        if min(*self.high, self.synopsis, self.details, self.bank) < 1:
            raise ValueError(f"sizes must be positive, got {self}.")
        if self.details > self.synopsis:
            raise ValueError(f"details must be at most synopsis, got {self}.")


@dataclass(frozen=True)
class FlashVStreamQwen(FromFrames):
    """Flash-VStream, Qwen version: a synopsis of centres, and frames in detail from a ring.

    It reads vision rows in whole frames; text and audio are not kept. A question is answered after
    [details ; synopsis]: 11,520 rows with the released sizes. With three position axes they are
    where AM-RoPE puts them; with another number of axes they are numbered like text. The
    low-resolution frames are 2 x 2 averages of the rows; the released model encodes averaged pixels
    a second time (`synopsis.pixel_pool`).

    Attributes:
      sizes: static sizes; None: the released ones, for frames of the model (`Spec.frame`).
      form: "as_released": the time of a centre is the mean place of its members in the list that
        was clustered, which drifts in a stream; "as_published": the weighted mean of their times.
      seed: of the draws of k-means.

    Raises:
      ValueError: for an unknown form, more details than centres, or, when the stream
        begins, chunks shorter than a frame.
    """

    kind: ClassVar[type] = QwenSizes

    sizes: QwenSizes | None = None

    def sizes_of(self, spec: Spec) -> QwenSizes:
        """Return the sizes for a model: as given, or as released for its frames."""
        sizes = QwenSizes(spec.needed("frame", self)) if self.sizes is None else self.sizes
        sizes.check()
        return sizes

    def resized(self, slots: int, spec: Spec) -> FlashVStreamQwen:
        """Return the released proportions: as many frames in the ring as fit so many rows."""
        sizes = self.sizes_of(spec)
        rows, columns = sizes.high
        frames = max(1, slots // (rows * columns))
        synopsis = max(1, frames * 60 // 512)
        new = replace(sizes, synopsis=synopsis, details=-(-synopsis // 2), bank=frames)
        return replace(self, sizes=new)

    def init(self, spec: Spec) -> State:
        sizes = self.sizes_of(spec)
        tokens, small = (rows * columns for rows, columns in (sizes.high, sizes.low))
        check_frame(self.name, spec, tokens)
        return self.begun(
            init_held(sizes.synopsis, sizes.bank, tokens, small, spec.width, spec.dtype)
        )

    def write(self, spec: Spec, state: State, embeds: Embeds) -> State:
        held: Held = state.slots
        aux, sizes = state.aux, self.sizes_of(spec)
        rows, columns = sizes.high
        high, n, cut = frames_of(embeds, rows * columns)
        low = halve_grid(high, sizes.high)
        points = append_frames(held.x, held.count, low)
        total = held.count + n
        _, distinct = same(points.reshape(points.shape[0], -1), total)
        draws = draw(self.key(state), total, points.shape[0], sizes.synopsis, among=distinct)
        held = advance(held, high, low, n, draws, self.form)
        return State(held, aux._replace(dropped=aux.dropped + cut))

    def read(self, spec: Spec, state: State) -> Embeds:
        held: Held = state.slots
        sizes = self.sizes_of(spec)
        place, number, real = details(held, sizes.details)
        centres = jnp.arange(sizes.synopsis, dtype=jnp.int32) < held.count
        blocks = [(held.high[place], real), (held.x, centres)]
        positions = None
        if spec.axes == 3:
            chosen = jnp.sum(real, dtype=jnp.int32)
            positions = am_rope(number, held.times, chosen, sizes.high, sizes.low)
        return rows_of(spec, blocks, place=positions)
