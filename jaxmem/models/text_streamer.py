"""Text of an answer that is still being written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxmem.typing import Int

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer of bytes writes for a character of which bytes are missing."""


class Growing:
    """Turns token ids that grow into text that only grows.

    All ids are decoded each time: a token's text may depend on what stands before it.
    """

    def __init__(self, detokenize: Callable[[np.ndarray], str], told: Callable[[str], None]):
        """Start with no text.

        Args:
          detokenize: ids to text.
          told: called with each new part of the text.
        """
        self._detokenize, self._told, self.text = detokenize, told, ""

    def __call__(self, ids: Int[np.ndarray, "m"], done: bool) -> None:
        """Tell the text that is new, given all ids so far.

        A character whose last bytes have not come is held back until they have, or the answer is
        `done`. Nothing is told while the tokenizer writes differently what was told before.
        """
        text = self._detokenize(ids)
        stable = text if done else text.rstrip(UNFINISHED)
        if stable.startswith(self.text) and stable != self.text:
            new, self.text = stable[len(self.text) :], stable
            self._told(new)
