"""The ledger: where in a bank each clip lies, and which clip is still open.

A clip is a chunk, or short chunks in succession that together are no longer than a full clip. So
the lines of a ledger suffice for a bank however short the chunks are.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmem.typing import Array, Bool, Int

MOST = int(jnp.iinfo(jnp.int32).max) - 1
"""Where counts stop: a stream of clips that are only counted never wraps."""


class Entry(NamedTuple):
    """A chunk as the ledger notes it; all are 0 for one of padding."""

    rows: Int[Array, ""]  # valid rows
    many: Int[Array, ""]  # entries that it evicts
    stored: Int[Array, ""]  # those that the bank has room for, the first ones
    joins: Bool[Array, ""]  # it belongs to the newest clip

    @property
    def begins(self) -> Bool[Array, ""]:
        """Return whether it begins a clip."""
        return (self.rows > 0) & ~self.joins


class Ledger(NamedTuple):
    """Where in a bank each clip lies.

    N clips can be noted, the first ones. One that finds the bank full has no line: it is counted.
    """

    count: Int[Array, ""]  # clips begun
    first: Int[Array, "N"]  # entry of the bank where the clip begins
    many: Int[Array, "N"]  # its entries
    rows: Int[Array, "N"]  # rows that these were chosen from
    open_rows: Int[Array, ""]  # rows of the newest clip, noted or not
    open_many: Int[Array, ""]  # and entries that it evicted

    @property
    def capacity(self) -> int:
        """N."""
        return self.first.shape[0]

    @property
    def noted(self) -> Int[Array, ""]:
        """Return how many clips have a line, with at least one entry."""
        return jnp.sum(self.many > 0, dtype=jnp.int32)

    def entry(
        self, rows: Array, many: Array, *, clip: int, local: int, room: Int[Array, ""] | int
    ) -> Entry:
        """Return how a chunk is noted.

        It has `rows` (without padding) and evicts `many` entries; a full clip has `clip` rows and
        at most `local` entries, and the bank holds `room`.
        """
        fits = (self.open_rows + rows <= clip) & (self.open_many + many <= local)
        joins = fits & (self.count > 0)
        stored = jnp.clip(room - jnp.sum(self.many), 0, many)
        stored = jnp.where(self.count - joins < self.capacity, stored, 0)
        rows, many, stored = (jnp.asarray(x, jnp.int32) for x in (rows, many, stored))
        return Entry(rows, many, stored, joins)

    def line(self, entry: Entry) -> Int[Array, ""]:
        """Return the line of a chunk's clip; N (no line) if nothing of the chunk is stored."""
        return jnp.where(entry.stored > 0, self.count - entry.joins, self.capacity)

    def add(self, values: Array, new: Array, entry: Entry) -> Array:
        """Return values [N, ...] with a chunk's added to those of its clip."""
        return values.at[self.line(entry)].add(new.astype(values.dtype), mode="drop")

    def record(self, entry: Entry) -> Ledger:
        """Return the ledger with a chunk noted; padding changes nothing."""
        begins, line = entry.begins, jnp.where(entry.begins, self.line(entry), self.capacity)
        return Ledger(
            count=jnp.minimum(self.count + begins, MOST),
            first=self.first.at[line].set(jnp.sum(self.many), mode="drop"),
            many=self.add(self.many, entry.stored, entry),
            rows=self.add(self.rows, entry.rows, entry),
            open_rows=entry.rows + jnp.where(begins, 0, self.open_rows),
            open_many=entry.many + jnp.where(begins, 0, self.open_many),
        )


def lines(capacity: int, clip: int, ratio: int) -> int:
    """Return N, so many lines that a bank of `capacity` entries is full before they are used up.

    Two clips in succession have more rows than one clip may have, or they were one; of these
    floor(rows / ratio) each are stored, and a clip has an entry at least.
    """
    pair = max(2, (clip + 1) // ratio - 1)
    return 2 * -(-capacity // pair)


def empty(capacity: int) -> Ledger:
    """Return a ledger of so many lines without entries."""
    none, zero = jnp.zeros((capacity,), jnp.int32), jnp.zeros((), jnp.int32)
    return Ledger(zero, none, none, none, zero, zero)
