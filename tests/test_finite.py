"""Logits that are not finite are an error, never token 0: through every door that answers."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmem as jm
from jaxmem.data.world.files import held_out
from jaxmem.experiments.stream import __main__ as cli
from jaxmem.memory.options import NAMES
from jaxmem.models.qwen.tiny_checkpoint import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose second layer makes numbers beyond float16."""
    folder = write_tiny(tmp_path_factory.mktemp("large"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 4e4
    tensors["model.layers.1.mlp.up_proj.weight"] *= 100
    save_file(tensors, folder / "model.safetensors")
    return folder


def session_of(folder, **more):
    session = jm.Session(jm.load(folder, max_new=3, **more), jm.Recent(24))
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 24, 3), np.uint8)
    samples = np.zeros(2 * session.model.media.sample_rate, np.float32)
    return session.watch(SimpleNamespace(frames=part, samples=samples) for part in frames)


SAID = r"token 1 of the answer are not finite: decoder layer 2 of 3, .* of float16 .*bfloat16"


def test_float16_that_overflows(folder):
    assert session_of(folder, dtype="float32").ask("What is shown ?").text
    session = session_of(folder, dtype="float16")
    with pytest.raises(ValueError, match=SAID):
        session.ask("What is shown ?")
    with pytest.raises(ValueError, match=SAID):
        list(session.answer("What is shown ?"))
    rows = jm.question_rows(session.model.params, [14, 17], program=session.program)
    with pytest.raises(ValueError, match=SAID):
        jm.ask(session.bound, session.carry, rows, program=session.program, max_new=3)


def test_on_the_command_line(folder, tmp_path, capsys):
    video = held_out(1, 3, tmp_path, count=1)[0]
    words = ["--video", str(video), "--ask", "2: What is shown ?", "--out", str(tmp_path / "out")]
    words += ["--model", str(folder), "--dtype", "float16", "--no-prompt"]
    assert cli.main([*words, "--memory", "recent", "--budget", "32"]) == 2
    assert "error: the logits of token 1 of the answer are not finite" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["end"]["kind"] == "broken" and report["seconds"] >= 2
    assert (report["unasked"], report["results"][0]["answers"]) == (1, [])


def test_a_later_token(tmp_path):
    """The token that is answered first has an embedding that is not finite."""
    folder = write_tiny(tmp_path)
    question = "What is shown ?"
    first = int(np.argmax(session_of(folder, dtype="float32").ask(question).logits))
    tensors = load_file(folder / "model.safetensors")
    # The word is another one, which no prompt holds.
    head = tensors["lm_head.weight"]
    head[[first, -1]] = head[[-1, first]]
    tensors["model.embed_tokens.weight"][-1] = np.inf
    save_file(tensors, folder / "model.safetensors")
    said = "token 2 of the answer are not finite: the embedding or layer 1, .* float32 .*look for"
    broken = session_of(folder, dtype="float32")
    with pytest.raises(ValueError, match=said):
        broken.ask(question)
    with pytest.raises(ValueError, match=said):
        list(broken.answer(question))


ANSWERS = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from types import SimpleNamespace
import jaxmem as jm
model = jm.load("tiny")
session = jm.Session(model, jm.OmniMem(24), chunk_pieces=2)
rng = np.random.default_rng(0)
session.watch(
    SimpleNamespace(frames=rng.integers(0, 256, (1, 48, 48, 3), np.uint8),
                    samples=rng.normal(size=16000).astype(np.float32)) for _ in range(5)
)
asked = session.ask("what was the last shape?")
written = "".join(session.answer("what was the last shape?"))
assert asked.text and written == asked.text, (asked.text, written)
print(asked.text)
"""


def test_numbers_of_64_bits():
    """In a process of its own, since the switch is for all of it."""
    done = subprocess.run([sys.executable, "-c", ANSWERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TRACES = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from functools import partial
from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.experiments.benchmark.price import PriceConfig, open_stream
from jaxmem.loop import advance
from jaxmem.memory.options import NAMES
for name in NAMES:
    found = open_stream(PriceConfig(model="tiny", memory=name, budget=64, dtype="float32"))
    more = {"program": found.program}
    jax.eval_shape(partial(advance.compiled, **more), found.bound, found.carry, found.inputs)
    rows = partial(question_rows, ids=np.zeros(8, np.int32), **more)
    rows = jax.eval_shape(rows, found.bound.params)
    jax.eval_shape(partial(ask.compiled, **more, max_new=3), found.bound, found.carry, rows)
    print(name, flush=True)
"""


@pytest.mark.slow
def test_every_memory_traces_with_numbers_of_64_bits():
    done = subprocess.run([sys.executable, "-c", TRACES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.split()) == len(NAMES)
