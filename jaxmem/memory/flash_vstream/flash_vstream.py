"""Flash-VStream (arXiv 2406.08085) as a memory before the decoder; its parts: `star`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.features.clusters import draw
from jaxmem.memory.features.frames import area, check_frame, frames_of, rows_of
from jaxmem.memory.flash_vstream.options import FromFrames
from jaxmem.memory.flash_vstream.semantic import Maps
from jaxmem.memory.flash_vstream.star import Held, Sizes, advance, blocks_of, init_held


@dataclass(frozen=True)
class FlashVStream(FromFrames):
    """Flash-VStream's STAR memory: spatial, temporal, abstract and retrieved features.

    It reads vision rows in whole frames; text and audio are not kept. A question is answered after
    [abstract ; temporal ; retrieved ; newest], numbered like text: 681 rows with the published
    sizes. Learned maps of the semantic attention are weights: `init(spec, maps)` takes them.

    Attributes:
      sizes: static sizes; None: those of the paper, for frames of the model (`Spec.frame`).
      form: "as_released" or "as_published", see `star`.
      seed: of the draws of k-means.

    Raises:
      ValueError: for an unknown form, sizes that do not divide each other, or, when the stream
        begins, chunks shorter than a frame.
    """

    kind: ClassVar[type] = Sizes

    sizes: Sizes | None = None

    def sizes_of(self, spec: Spec) -> Sizes:
        """Return the sizes for a model: as given, or as published for its frames."""
        return Sizes.of_frame(spec.needed("frame", self)) if self.sizes is None else self.sizes

    def resized(self, slots: int, spec: Spec) -> FlashVStream:
        """Return the memory with centres in so many rows.

        There are as many abstract entries as centres, as published; the buffer has twice the rows.
        """
        sizes = self.sizes_of(spec)
        centres = max(1, slots // area(sizes.temporal_side))
        buffer = max(sizes.retrieved, 2 * slots // area(sizes.side))
        sizes = replace(sizes, temporal=centres, abstract=centres, buffer=buffer)
        return replace(self, sizes=sizes)

    def init(self, spec: Spec, maps: Maps | None = None) -> State:
        """Return the empty state.

        `maps` are the learned maps of the semantic attention, over features of the rows' width;
        None: the features attend to each other without maps.
        """
        sizes = self.sizes_of(spec)
        check_frame(self.name, spec, sizes.tokens)
        chunk = spec.chunk // sizes.tokens
        held = init_held(sizes, spec.width, chunk, self.form, spec.dtype)
        return self.begun(held, None if maps is None else jax.tree.map(jnp.asarray, maps))

    def write(self, spec: Spec, state: State, embeds: Embeds) -> State:
        held: Held = state.slots
        aux, sizes = state.aux, self.sizes_of(spec)
        frames, n, cut = frames_of(embeds, sizes.tokens)
        points = held.temporal.shape[0] + frames.shape[0]
        draws = draw(self.key(state), held.temporal_count + n, points, sizes.temporal)
        held = advance(held, frames, n, draws, aux.maps, sizes, self.form)
        return State(held, aux._replace(dropped=aux.dropped + cut))

    def read(self, spec: Spec, state: State) -> Embeds:
        return rows_of(spec, blocks_of(state.slots))
