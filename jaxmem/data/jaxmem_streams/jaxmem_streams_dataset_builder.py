"""Builder of the fixed train, validation and test splits, stored as ArrayRecord."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxmem.data.world.questions import questions
from jaxmem.data.world.render import SIZE, frames
from jaxmem.data.world.scene import level
from jaxmem.data.world.sounds import RATE, sound
from jaxmem.data.world.world import SPLITS, Split, split_seed, world

_DESCRIPTION = """
Streams of a small synthetic audio-visual world, with questions about any past moment.

A stream has one 48x48 picture a second (of the middle of the second) and 16 kHz mono sound.
Example i of a split is the stream of seed `split_seed(split, i)`; splits never share a seed.
Questions have a time in seconds, a one-word answer, a type, and the time at which what they are
about ended (-1: it never was). A question at time t knows the seconds 0 .. t - 1.
"""


@dataclass(kw_only=True, eq=False)
class StreamsConfig(tfds.core.BuilderConfig):
    """How long the streams are, how hard, and how many each split holds."""

    seconds: int
    train: int
    validation: int
    test: int
    questions: int = 48  # per stream
    difficulty: str = "standard"


class Builder(tfds.core.GeneratorBasedBuilder):
    """The dataset `jaxmem_streams`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [
        StreamsConfig(name="64s", seconds=64, train=256, validation=48, test=48),
        StreamsConfig(name="128s", seconds=128, train=64, validation=24, test=48),
        StreamsConfig(name="256s", seconds=256, train=32, validation=12, test=48),
        StreamsConfig(name="tiny", seconds=6, train=2, validation=1, test=1, questions=4),
    ]
    builder_config: StreamsConfig

    def __init__(self, *, file_format: Any = "array_record", **kwargs: Any) -> None:
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        question = {
            "text": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "type": tfds.features.Text(),
            "time": np.int32,
            "evidence_time": np.float32,
        }
        pictures = (config.seconds, SIZE, SIZE, 3)
        features = {
            "seed": tfds.features.Tensor(shape=(2,), dtype=np.int64),
            "frames": tfds.features.Tensor(shape=pictures, dtype=np.uint8, encoding="zlib"),
            "samples": tfds.features.Tensor(
                shape=(config.seconds * RATE,), dtype=np.int16, encoding="zlib"
            ),
            "questions": tfds.features.Sequence(question),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(
                seconds=config.seconds,
                difficulty=asdict(level(config.difficulty)),
                sample_rate=RATE,
            ),
            license="Apache-2.0",
            disable_shuffling=True,  # example i is stream i
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        config = self.builder_config
        return {split: self._generate_examples(split, getattr(config, split)) for split in SPLITS}

    def _generate_examples(self, split: Split, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        for index in range(count):
            stream = world(split_seed(split, index), config.seconds, config.difficulty)
            samples = (sound(stream).clip(-1, 1) * 32767).round().astype(np.int16)
            yield (
                index,
                {
                    "seed": np.array(stream.seed, np.int64),
                    "frames": frames(stream),
                    "samples": samples,
                    "questions": [q._asdict() for q in questions(stream, config.questions)],
                },
            )
