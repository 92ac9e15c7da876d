"""A layer that mixes no tokens: an MLP by itself, for decoders of layers with one block each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kernels.dense import linear
from jaxmem.mixers.base import Mixer
from jaxmem.mixers.parts import check_rows, check_sizes, dense
from jaxmem.typing import Array, Bool, Float, Params


class NoState(NamedTuple):
    """What such a layer knows of its stream: nothing."""


@dataclass(frozen=True)
class FeedForward(Mixer):
    """An MLP with a squared ReLU, y = down(relu(up(x))^2): a mixer without a state (Nemotron-H).

    Attributes:
      inner: width between the two projections.
      bias: on both.

    Raises:
      ValueError: if `inner` is no positive whole number.
    """

    inner: int
    bias: bool = False

    def __post_init__(self):
        check_sizes(self.name, inner=self.inner)
        if self.inner < 1:
            raise ValueError(f"FeedForward needs an inner width of at least 1, got {self.inner}.")

    def weights(self, width: int, key: Array) -> Params:
        """See `Mixer.weights`."""
        up, down = jax.random.split(key)
        return {
            "up": dense(up, width, self.inner, self.bias),
            "down": dense(down, self.inner, width, self.bias),
        }

    def init(self, width: int) -> NoState:
        """See `Mixer.init`."""
        del width
        return NoState()

    def chunk(
        self, weights: Params, state: NoState, x: Float[Array, "T E"], real: Bool[Array, "T"]
    ) -> tuple[Float[Array, "T E"], NoState]:
        """See `Mixer.chunk`."""
        check_rows(x)
        del real
        inner = jnp.square(jax.nn.relu(linear(x, weights["up"])))
        return linear(inner, weights["down"]), state
