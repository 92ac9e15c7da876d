"""A checkpoint of a published size, streamed as users do: memory, compilations, logits.

Minutes, 4 GB of disc and 10 GB of memory: `pytest -m full_size`.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from published_checkpoints import write_published

import jaxmem as jm
from jaxmem.data.world.files import held_out

pytestmark = [pytest.mark.full_size, pytest.mark.filterwarnings("ignore")]

NAME, SECONDS, SLOTS, ANSWER = "llava-onevision:0.5b", 6, 1024, 4
FRAME = 196  # tokens
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("tokenizers")
    pytest.importorskip("jinja2")
    return write_published(NAME, tmp_path_factory.mktemp("published"))


def run(*words):
    """Run a command as users do, with the compiler's usual flags; its output and largest memory."""
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    with subprocess.Popen(
        [sys.executable, "-m", *words], env=env, stdout=subprocess.PIPE, text=True
    ) as child:
        output = child.stdout.read()
        _, child.returncode, used = os.wait4(child.pid, 0)
    assert child.returncode == 0, output
    return output, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("memory", ["omnimem", "hermes"])
def test_a_clip_is_streamed_within_the_priced_memory(folder, memory, tmp_path):
    clip = held_out(1, SECONDS, tmp_path, count=1)[0]
    words = ["--model", str(folder), "--video", str(clip), "--memory", memory, "--budget"]
    words += [str(SLOTS), "--ask", "3: what is shown", "--ask", "end: what is shown now"]
    words += ["--max-new", str(ANSWER), "--no-prompt", "--out", str(tmp_path)]
    _, peak = run("jaxmem.experiments.stream", *words)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tokens"] == SECONDS * FRAME and report["end"]["kind"] == "end"
    assert report["compilations"]["before"] > 0 and report["compilations"]["streaming"] == 0
    (result,) = report["results"]
    assert [answer["time"] for answer in result["answers"]] == [3, SECONDS]
    assert sum(result["kept"].values()) == 24 * SLOTS

    words = ["--model", NAME, "--memory", memory, "--budget", str(SLOTS), "--json"]
    words += ["--chunk-seconds", "1", "--answer", str(ANSWER), "--question", "8"]
    cost = json.loads(run("jaxmem.experiments.benchmark", "price", *words)[0])
    assert cost["state_bytes"] == pytest.approx(result["nbytes"], rel=0.01)
    assert peak <= 1.15 * cost["weight_bytes"] + cost["state_bytes"] + GIB
    assert peak == pytest.approx(cost["resident_bytes"], rel=0.1)


def test_first_logits_are_those_of_transformers(folder):
    """Frames in chunks of one second through `full`, against one pass over the whole prompt."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    draw, side, count = np.random.default_rng(0), 384, 2
    frames = draw.integers(0, 256, (count, 1, side, side, 3), np.uint8)
    question = "what is shown now ?"
    model = jm.load(folder, dtype="float32", max_new=1)
    ids = [*model.prefix, *[151647] * (count * FRAME), *model.tokenize(question)]
    session = jm.Session(model, jm.Full(count * FRAME))
    for each in frames:
        session.feed(Piece(each, np.zeros(16_000, np.float32)))
    mine = session.ask(question).logits
    del model, session

    pixels = (frames[:, 0].astype(np.float32) / 255 - 0.5) / 0.5
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        theirs = loaded.eval()(
            input_ids=torch.tensor([ids]),
            pixel_values_videos=torch.tensor(pixels.transpose(0, 3, 1, 2).copy())[None],
            logits_to_keep=1,
        ).logits[0, -1]
    theirs = theirs.numpy()
    assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert mine.argmax() == theirs.argmax()


class Piece:
    """One second of a stream."""

    def __init__(self, frames, samples):
        self.frames, self.samples = frames, samples
