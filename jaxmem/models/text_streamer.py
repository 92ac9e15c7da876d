"""Text of an answer that is still being written."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxmem.typing import Int

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer of bytes writes for a character of which bytes are missing."""


class TextStreamer:
    """Turns token ids that grow into text that only grows.

    All ids are decoded each time: a token's text may depend on what comes before it.
    """

    def __init__(self, detokenize: Callable[[np.ndarray], str]):
        self._detokenize, self.text = detokenize, ""

    def push(self, ids: Int[np.ndarray, "m"], done: bool) -> Iterator[str]:
        """Yield the text that is new, given all ids so far.

        A character whose last bytes have not come is held back until they have, or the answer is
        `done`. Emits nothing while re-decoding changes text already emitted.
        """
        text = self._detokenize(ids)
        stable = text if done else text.rstrip(UNFINISHED)
        if stable.startswith(self.text) and stable != self.text:
            new, self.text = stable[len(self.text) :], stable
            yield new
