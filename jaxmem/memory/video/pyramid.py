"""A pyramid of resolutions: the older a picture, the fewer keys and values stand for it.

The idea, recent frames whole and older ones averaged in space, is that of RELIC (arXiv 2512.04040),
a generator of video; the rule is this package's own.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.kernels.select import select
from jaxmem.kv import AUDIO, EMPTY, KV, VISION
from jaxmem.memory.base import Spec, State, tupled
from jaxmem.memory.exchange import Chunk, Embeds, View
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import at_least
from jaxmem.memory.parts.positions import Reindexed, start
from jaxmem.memory.parts.scored import AUDIO_SHARE, check_budget, length
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree

TEXT_SHARE = 16
"""Of the budget, a part of this is for text, where time stamps come with the stream."""
Grid = tuple[int, int]


class Slots(NamedTuple):
    """Tokens, and where they are in their frame; 0 for what is not vision."""

    kv: KV
    frame: Int[Array, "S"]  # number of the frame
    level: Int[Array, "S"]  # how often its grid was halved
    place: Int[Array, "S"]  # in that grid, row by row


class Aux(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]
    next_pos: Num[Array, "A"]  # where the next chunk begins; reindexed: where the stream began
    quotas: Int[Array, "3"]  # vision, audio, text and the rest
    frame: Int[Array, ""]  # that the next vision token belongs to
    place: Int[Array, ""]  # of that token


@dataclass(frozen=True)
class Pyramid(Reindexed):
    """Recent frames whole, older ones averaged over 2 x 2 neighbours, again and again.

    A level holds as many frames as fit its equal part of the budget: level i those whose grid was
    halved i times, four times as many as the level before. When a level is full its oldest frame
    moves to the next: 2 x 2 neighbours become one token with the mean of their keys before
    rotation, of their values and positions, and the arrival number of the last. The last level
    drops its oldest frame. The frame that is arriving counts as one. An odd last row or column is
    averaged with itself. Sound and text travel as they are, the newest that fit parts of their own.

    Frames are counted by their vision tokens, so every frame must have the same grid, and nothing
    in front of the memory may leave rows of it out. Where vision has less room than the levels
    need, there are fewer levels; with less than a frame, its newest tokens are held.

    Attributes:
      budget: S, slots of every layer: audio, text, and the rest for the levels.
      levels: how many resolutions there are; 1 holds the last whole frames.
      audio_share: audio's part of the budget, where the stream has audio.
      text: slots of text; None: a sixteenth of the budget, where time stamps come with the stream.
      grid: rows and columns of a frame; None: those of `Spec.frame`.
      count: the logarithm of the number of tokens that a mean stands for is added to its logit, so
        that it attracts the attention of so many equal ones.
      reindex: number what is held without gaps.

    Raises:
      ValueError: if an option is out of range.
    """

    sized_by_options: ClassVar[bool] = True

    budget: int
    _: KW_ONLY
    levels: int = 3
    audio_share: float = AUDIO_SHARE
    text: int | None = None
    grid: tuple[int, int] | None = None
    count: bool = False

    def __post_init__(self):
        tupled(self, "grid")
        check_budget(self.name, self.budget, self.audio_share)
        at_least(self.name, 1, levels=self.levels)
        at_least(self.name, 0, text=self.text)
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise ValueError(f"grid is (rows, columns) of a frame, at least 1, got {self.grid}.")

    def parts(self, spec: Spec) -> tuple[int, int, int]:
        """Return the slots of vision, audio and text."""
        audio = round(self.budget * self.audio_share) if spec.audio_tokens else 0
        usual = self.budget // TEXT_SHARE if spec.timestamps else 0
        text = min(usual if self.text is None else self.text, self.budget - audio)
        return self.budget - audio - text, audio, text

    def steps(self, spec: Spec) -> list[tuple[Grid, int]]:
        """Return the grid of a frame, and how many frames there are, at every level."""
        grid: Grid = spec.needed("frame", self) if self.grid is None else self.grid
        left, size = self.parts(spec)[0], grid[0] * grid[1]
        levels = max(1, min(self.levels, left // size))
        found = []
        for level in range(levels):
            frames = max(1, left // (levels - level) // (grid[0] * grid[1]))
            found.append((grid, frames))
            left -= frames * grid[0] * grid[1]
            grid = halved(grid)
        return found

    def init(self, spec: Spec, layer: int = 0) -> State:
        self.steps(spec)  # an unknown frame is refused at once
        zero = jnp.zeros((), jnp.int32)
        quotas = jnp.asarray(self.parts(spec), jnp.int32)
        aux = Aux(jnp.asarray(self.budget, jnp.int32), start(spec), quotas, zero, zero)
        none = jnp.zeros((self.budget,), jnp.int32)
        return State(Slots(spec.empty(self.budget), none, none, none), aux)

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        view, slots = super().view(spec, state, embeds, bank), state.slots
        if not self.count:
            return view
        several = jnp.asarray(np.log(parts_of(self.steps(spec)))).at[slots.level, slots.place].get()
        vision = slots.kv.modality[:, 0] == VISION
        return view._replace(bias=jnp.where(vision, several, 0.0)[:, None])

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        aux, steps = state.aux, self.steps(spec)
        (rows, columns), _ = steps[0]
        size = rows * columns
        image = chunk.kv.modality[:, 0] == VISION
        number = aux.place + jnp.cumsum(image, dtype=jnp.int32)  # one more than in that frame
        frame = jnp.where(image, aux.frame + (number - 1) // size, 0)
        place = jnp.where(image, (number - 1) % size, 0)
        fresh = Slots(chunk.kv, frame, jnp.zeros_like(frame), place)
        pool: Slots = kvs.append(state.slots, fresh, kvs.count(state.slots.kv))
        newest, next_place = aux.frame + (number[-1] - 1) // size, number[-1] % size

        age = newest - pool.frame
        vision, edge = pool.kv.modality[:, 0] == VISION, 0
        for level, (grid, frames) in enumerate(steps[:-1]):
            edge += frames
            moving = vision & (pool.level == level) & (age >= edge)
            pool = pooled(pool, moving, age - edge, grid, image.shape[0] // size)
            vision = pool.kv.modality[:, 0] == VISION
        stays = vision & (age < edge + steps[-1][1])

        modality = pool.kv.modality[:, 0]
        other = (modality != EMPTY) & (modality != VISION) & (modality != AUDIO)
        groups = jnp.stack([stays, modality == AUDIO, other])
        ranked = scores.only(scores.newest(groups.shape[1])[None], groups)
        kept = select(ranked, aux.quotas, slots=length(state))
        aux = aux._replace(frame=aux.frame + number[-1] // size, place=next_place)
        return State(kvs.take(pool, *kept), self.moved(aux, chunk)), None


def parts_of(steps: list[tuple[Grid, int]]) -> Float[np.ndarray, "levels P"]:
    """Return how many tokens of a whole frame each token of every level stands for."""
    whole = steps[0][0]
    found = np.ones((len(steps), whole[0] * whole[1]), np.float32)
    for level, (grid, _) in enumerate(steps):
        edge = [
            np.minimum(np.arange(n + 1) << level, size) for n, size in zip(grid, whole, strict=True)
        ]
        found[level, : grid[0] * grid[1]] = np.outer(*map(np.diff, edge)).ravel()
    return found


def halved(grid: Grid) -> Grid:
    """Return rows and columns of 2 x 2 averages."""
    return -(-grid[0] // 2), -(-grid[1] // 2)


def pooled(
    pool: Slots, moving: Bool[Array, "N"], number: Int[Array, "N"], grid: Grid, frames: int
) -> Slots:
    """Return a pool whose `moving` frames of a grid are halved; parts of a mean become empty.

    A mean takes the slot of its last part, so that slots stay in the order of arrival. `number` is
    that of a moving frame among them, of which there are at most `frames` whole ones and two more.
    """
    n, (rows, columns), most = moving.shape[0], grid, frames + 2
    entry = jnp.arange(n, dtype=jnp.int32)
    spot = jnp.where(moving, number * rows * columns + pool.place, most * rows * columns)
    of = jnp.full((most * rows * columns,), n, jnp.int32).at[spot].set(entry, mode="drop")
    image = of.reshape(most, rows, columns)
    image = jnp.pad(image, ((0, 0), (0, rows % 2), (0, columns % 2)), mode="edge")
    (less, fewer) = halved(grid)
    blocks = image.reshape(most, less, 2, fewer, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)
    last = blocks[:, 3]  # n where there is no frame

    def mean(x: Array) -> Array:
        parts = x.at[blocks].get(mode="clip")
        if jnp.issubdtype(x.dtype, jnp.floating):
            found = jnp.mean(parts.astype(jnp.float32), axis=1)
        else:  # to the nearest, up where two are
            first = parts[:, 0]
            found = first + (2 * jnp.sum(parts - first[:, None], axis=1) + 4) // 8
        return x.at[last].set(found.astype(x.dtype), mode="drop")

    stays = jnp.zeros((n,), bool).at[last].set(True, mode="drop") | ~moving
    kv = pool.kv
    return pool._replace(
        kv=kv._replace(
            k=mean(kv.k),
            v=mean(kv.v),
            pos=mean(kv.pos),
            modality=jnp.where(stays[:, None], kv.modality, EMPTY).astype(kv.modality.dtype),
        ),
        level=jnp.where(moving, pool.level + 1, pool.level),
        place=pool.place.at[last].set(
            jnp.tile(jnp.arange(less * fewer, dtype=jnp.int32), most), mode="drop"
        ),
    )
