"""Read examples of the dataset `jaxmem_streams` back as what the rest of the library uses.

source = tfds.builder_from_directory(folder).as_data_source("test")
stream = example(source[0])
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmem.data.world.questions import Question


class StreamExample(NamedTuple):
    """One stored stream with its questions."""

    seed: tuple[int, ...]
    frames: np.ndarray  # uint8 [seconds, 48, 48, 3]
    samples: np.ndarray  # float32 [seconds * 16000], -1..1
    questions: list[Question]  # in order of time


def example(record: Mapping[str, Any]) -> StreamExample:
    """Convert one example of `as_data_source` (or of `tfds.as_numpy`).

    Raises:
        ValueError: the record is no example of this dataset.
    """
    missing = set(StreamExample._fields) - set(record)
    if missing:
        raise ValueError(
            f"a record of jaxmem_streams must hold {', '.join(StreamExample._fields)}; "
            f"this one lacks {', '.join(sorted(missing))}"
        )
    asked = record["questions"]
    rows = zip(*(asked[name] for name in Question._fields), strict=True)
    return StreamExample(
        seed=tuple(int(s) for s in record["seed"]),
        frames=record["frames"],
        samples=record["samples"].astype(np.float32) / 32767,
        questions=[
            Question(int(time), text.decode(), answer.decode(), kind.decode(), float(evidence))
            for time, text, answer, kind, evidence in rows
        ],
    )
