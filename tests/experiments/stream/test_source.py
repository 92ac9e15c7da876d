"""What is streamed, from the command line's words to an open reader."""

import os
import threading
import time

import numpy as np
import pytest
from rich.console import Console

from jaxmem.data.media.media import open_media
from jaxmem.data.world.files import held_out
from jaxmem.experiments.stream.__main__ import configured, main
from jaxmem.experiments.stream.source import UnreadableError, find_source, open_source
from jaxmem.feeding import open_for
from jaxmem.models.tiny.embedded import embedded


@pytest.fixture(scope="module")
def model():
    return embedded()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return held_out(1, 3, tmp_path_factory.mktemp("clip"), count=1)[0]


def opened(model, *words):
    config = configured(["--video", *words])
    return open_source(find_source(config, (), Console(quiet=True)), model)


def test_a_device_with_options(model, tmp_path):
    with opened(model, "testsrc=size=32x24:rate=5:duration=2", "--format", "lavfi") as reader:
        assert reader.waits and len(list(reader)) == 2
    raw = tmp_path / "raw:video"
    raw.write_bytes(np.zeros((20, 8, 16, 3), np.uint8).tobytes())
    options = [f"--option={pair}" for pair in ("video_size=16x8", "pixel_format=rgb24")]
    words = ["--format", "rawvideo", "--option", "framerate=10", *options]
    with opened(model, str(raw), *words) as reader:
        assert reader.info.native_size == (8, 16) and len(list(reader)) == 2


def test_a_growing_file(model, clip, tmp_path):
    path = tmp_path / "grows.ts"
    frames = np.zeros(3 * 16000, np.float32) + 0.1
    whole = frames.tobytes()
    path.write_bytes(whole[: len(whole) // 2])

    def grow():
        time.sleep(0.3)
        with path.open("ab") as file:
            file.write(whole[len(whole) // 2 :])

    words = ["--format", "f32le", "--option", "sample_rate=16000", "--follow", "--timeout", "0.6"]
    threading.Thread(target=grow).start()
    with opened(model, str(path), *words) as reader:
        pieces = list(reader)
    assert len(pieces) == 3 and [e.kind for e in reader.events] == ["stalled"]


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_pipe_without_a_writer_is_said_and_ends_with_3(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    words = ["--video", str(tmp_path / "pipe"), "--timeout", "0.3", "--out", str(tmp_path / "out")]
    assert main(words) == 3
    assert "nobody writes to this pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--video", "x", "--option", "rate"], "--option is KEY=VALUE"),
        (["--video", "x", "--timeout", "0"], "--timeout must be positive"),
        (["--format", "lavfi"], "--format has no effect without --video"),
        (["--follow"], "--follow has no effect without --video"),
        (["--option", "a=b"], "--option has no effect without --video"),
    ],
)
def test_options_that_make_no_sense(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_sound_alone_needs_a_model_that_hears(model, tmp_path):
    path = tmp_path / "a.f32"
    path.write_bytes(np.full(32000, 0.1, np.float32).tobytes())
    words = {"format": "f32le", "options": {"sample_rate": "16000"}}
    with open_for(model, path, **words) as reader:
        pieces = list(reader)
    assert len(pieces) == 2 and not pieces[0].has_video and pieces[0].has_audio
    deaf = model._replace(audio_tokens=0)
    with pytest.raises(ValueError, match="sound but no pictures, and tiny does not hear"):
        open_for(deaf, path, **words)
    source = find_source(
        configured(["--video", str(path), "--format", "f32le"]), (), Console(quiet=True)
    )
    with pytest.raises(UnreadableError, match="does not hear"):
        open_source(source, deaf)
    chosen = model._replace(media=model.media.__class__(1.0, lambda h, w: (h, w), 16000, 1.0))
    with open_for(chosen, path, **words) as reader:
        assert next(reader).frames.shape[1:3] == reader.info.size == (0, 0)


def test_pictures_alone_stream_too(model):
    with open_for(model, "testsrc=size=32x24:duration=2", format="lavfi") as reader:
        pieces = list(reader)
    assert pieces[0].has_video and not pieces[0].has_audio
    with pytest.raises(ValueError, match="audio_stream=0"):
        open_media("testsrc=size=32x24:duration=2", format="lavfi", audio_stream=0)
