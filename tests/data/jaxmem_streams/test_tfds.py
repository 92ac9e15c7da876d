"""The dataset `jaxmem_streams`: built and read without TensorFlow, fixed by its seeds."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxmem.data.jaxmem_streams import Builder
from jaxmem.data.world.questions import questions
from jaxmem.data.world.reading import example
from jaxmem.data.world.render import frames
from jaxmem.data.world.scene import Difficulty
from jaxmem.data.world.sounds import sound
from jaxmem.data.world.world import SPLITS, split_seed, world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = Builder(config="tiny", data_dir=tmp_path_factory.mktemp("data"))
    builder.download_and_prepare()
    return builder.data_path


def test_reads_back_what_the_seeds_say(folder):
    source = tfds.builder_from_directory(folder).as_data_source()
    assert {split: len(source[split]) for split in SPLITS} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    for split in SPLITS:
        for i in range(len(source[split])):
            stored, stream = example(source[split][i]), world(split_seed(split, i), 6)
            assert stored.seed == split_seed(split, i)
            np.testing.assert_array_equal(stored.frames, frames(stream))
            assert stored.samples.dtype == np.float32
            np.testing.assert_allclose(stored.samples, sound(stream).clip(-1, 1), atol=2e-5)
            assert stored.questions == questions(stream, 4)
    assert "tensorflow" not in sys.modules


def test_is_array_record_and_describes_itself(folder):
    info = tfds.builder_from_directory(folder).info
    assert info.file_format.value == "array_record"
    knobs = {
        k: tuple(v) if isinstance(v, list) else v for k, v in info.metadata["difficulty"].items()
    }
    assert Difficulty(**knobs) == Difficulty()
    assert info.metadata["seconds"] == 6 and info.features["frames"].shape == (6, 48, 48, 3)


def test_is_found_by_name_and_read_at_random(folder):
    data_dir = folder.parent.parent.parent
    source = tfds.data_source("jaxmem_streams/tiny", data_dir=data_dir, split="train")
    assert [example(source[i]).seed[1] for i in (1, 0, 1)] == [1, 0, 1]


def test_reading_needs_nothing_of_the_builder(folder):
    code = f"""
import sys
import tensorflow_datasets as tfds
from jaxmem.data.world.reading import example
print(example(tfds.builder_from_directory({str(folder)!r}).as_data_source("test")[0]).seed)
assert not {{"tensorflow", "jaxmem.data.jaxmem_streams", "jax"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "(2, 0)", done.stderr


def test_published_streams_never_change():
    """If this fails, the world or NumPy's generator changed: raise `Builder.VERSION`, then this."""
    digest = hashlib.sha256()
    for i in range(3):
        stream = world(split_seed("test", i), 64)
        e = stream.events
        for field in (e.start, e.end, e.glyph, e.colour, e.sound, e.row, e.col):
            digest.update(field.astype("<i8").tobytes())
        digest.update(repr([tuple(q) for q in questions(stream, 48)]).encode())
    assert (str(Builder.VERSION), digest.hexdigest()[:16]) == ("1.0.0", "2dd7d0386e84b917")


def test_splits_share_no_stream():
    seeds = [split_seed(split, i) for split in SPLITS for i in range(100)]
    assert len(set(seeds)) == len(seeds)
    marks = {(world(s, 20).noise_db, len(world(s, 20).events.start)) for s in seeds[::10]}
    assert len(marks) == len(seeds[::10])


def test_other_record():
    with pytest.raises(ValueError, match=r"lacks frames, questions, samples"):
        example({"seed": (0, 1)})


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["--config", "tiny"], 0, "train 2, validation 1, test 1"),
        (["--config", "9s"], 2, "128s"),
    ],
)
def test_command(tmp_path, arguments, code, shown):
    done = subprocess.run(
        [sys.executable, "-m", "jaxmem.data.jaxmem_streams", *arguments, "--data-dir", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert shown in done.stdout + done.stderr
