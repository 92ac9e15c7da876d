"""The contract of a layer with a state: a token mixer beside attention with a memory.

Its state is a memory of fixed size by itself (Mamba-2, gated DeltaNet, linear attention): there is
nothing to select, evict or recall. It has weights, which a `Memory` never has.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxmem.typing import Array, Bool, Float, Params, PyTree


@dataclass(frozen=True)
class Mixer:
    """A token mixer. Subclass it: fields are options, methods are pure.

    As with `Memory`, fields are hashable and hold no arrays: layers whose mixers are equal share
    one stack of weights and one of states.
    """

    @property
    def name(self) -> str:
        """Return the name used in reports and errors: that of the class."""
        return type(self).__name__

    def weights(self, width: int, key: Array) -> Params:
        """Return the initial weights of one layer.

        Args:
          width: E.
          key: JAX key.
        """
        raise NotImplementedError(f"{self.name}.weights")

    def init(self, width: int) -> PyTree:
        """Return the empty state of one layer of one stream: a NamedTuple of float32 arrays.

        Args:
          width: E.
        """
        raise NotImplementedError(f"{self.name}.init")

    def chunk(
        self,
        weights: Params,
        state: PyTree,
        x: Float[Array, "T E"],
        real: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T E"], PyTree]:
        """Pass T rows, at least one; return their outputs, and the state after them.

        Any cut of a stream into chunks gives the same outputs; a single token is a chunk of one.

        Args:
          weights: of one layer.
          state: of one layer.
          x: the layer's input, normalised; residual and MLP are the decoder's.
          real: which rows are tokens. Padding comes last and changes no bit of the state.

        Raises:
          ValueError: if there are no rows (`parts.check_rows`).
        """
        raise NotImplementedError(f"{self.name}.chunk")


def stacked(mixer: Mixer, width: int, layers: int) -> PyTree:
    """Return the empty states of `layers` equal layers, stacked [layers, ...]."""
    one = mixer.init(width)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (layers, *x.shape)), one)
