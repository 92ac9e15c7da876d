"""What differs between the versions of PyAV that are supported, 15 and later."""

from __future__ import annotations

from typing import Any

import av
from av.video.reformatter import Interpolation

NEW = int(av.__version__.partition(".")[0]) >= 17
"""Whether streams can be discarded, scaling knows threads, and the resampler takes options."""
ONE_THREAD: dict[str, Any] = {"threads": 1} if NEW else {}
"""Of `VideoReformatter.reformat`; older versions use one anyway."""
WITHIN_RANGE: dict[str, Any] = {"options": {"rematrix_maxval": "1.0"}} if NEW else {}
"""Of `AudioResampler`: a mix of channels stays within their range, (L + R) / 2."""


_ROUND, _WHOLE_CHROMA = 0x40000, 0x2000  # SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT
SCALING: Any = Interpolation.BICUBIC.value | _ROUND | _WHOLE_CHROMA
"""How pictures are scaled; without the last two, white comes out as 253."""


def discard(stream: Any) -> None:
    """Have the demuxer drop a stream's packets, where that can be asked for."""
    if NEW:
        from av.stream import Discard

        stream.discard = Discard.all
