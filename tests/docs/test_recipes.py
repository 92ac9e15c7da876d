"""The recipes of docs/new_memory.md and docs/new_model.md, followed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from pages import ROOT, blocks
from safetensors.numpy import save_file
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import jaxmem as jm
from jaxmem.memory import MEMORIES
from jaxmem.models import load as loading
from jaxmem.models.hf.config import decoder_config
from jaxmem.models.qwen.tiny_checkpoint import random_tensors, write_tiny
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import embedded
from jaxmem.pieces import Preprocessor

QUESTION = "what is the last shape?"


def namespace_of(name: str) -> dict:
    """Run the blocks of a page and return what they define."""
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(ROOT)).parse(ROOT / "docs" / name)
    for example in document.examples():
        example.evaluate()
    return document.namespace


def pieces(count, side=48, seed=0):
    rng = np.random.default_rng(seed)
    return [
        SimpleNamespace(
            frames=rng.integers(0, 255, (1, side, side, 3), dtype=np.uint8),
            samples=0.1 * rng.normal(size=16000).astype(np.float32),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def page():
    return namespace_of("new_memory.md")


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize("name", ["Knorm", "Window"])
def test_the_page_s_memories_obey_the_laws(page, name, law):
    laws.LAWS[law](page[name](laws.BUDGET))


def test_a_memory_from_outside_runs_in_a_session(page, tmp_path):
    """And it is the library's Knorm: the same slots, bit by bit."""
    config = tiny.TinyConfig(
        width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, stem_width=16
    )
    tiny.save(tmp_path / "small.safetensors", tiny.init(config, jax.random.key(0)), config)
    model = embedded(tmp_path / "small.safetensors")
    kinds = (page["Knorm"], jm.Knorm)
    mine, ours = (jm.Session(model, kind(40)).watch(pieces(3)) for kind in kinds)
    for a, b in zip(mine.layers(), ours.layers(), strict=True):
        np.testing.assert_array_equal(a.slots.kv.index, b.slots.kv.index)
    np.testing.assert_array_equal(mine.ask(QUESTION).logits, ours.ask(QUESTION).logits)


def test_one_class_and_one_line_are_a_memory_of_the_library(tmp_path):
    """In a copy of the package: the class is public and is taken by the command line."""
    shutil.copytree(ROOT / "jaxmem", tmp_path / "jaxmem")
    text = next(b.text for b in blocks(ROOT / "docs" / "new_memory.md") if "class Knorm" in b.text)
    file = tmp_path / "jaxmem" / "memory" / "compression" / "mine.py"
    file.write_text(text.replace("class Knorm", "class Mine"))
    table = tmp_path / "jaxmem" / "memory" / "__init__.py"
    line = '    "knorm": "compression.knorm.Knorm",\n'
    assert table.read_text().count(line) == 1
    more = line + line.replace("knorm", "mine").replace("Knorm", "Mine")
    table.write_text(table.read_text().replace(line, more))
    program = """
import jaxmem as jm
from jaxmem.memory.by_name import build
from jaxmem.experiments.stream.__main__ import configured
assert jm.Mine is jm.MEMORIES["mine"] and "Mine" in dir(jm)
config = configured(["--memory", "mine", "--mine.newest", "8", "--mine.reindex"])
spec = jm.Spec(layers=2, kv_heads=1, head_dim=8, width=8)
print(jm.__file__, build("mine", 16, spec, config.memories["mine"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    where, _, memory = done.stdout.partition(" ")
    assert where.startswith(str(tmp_path))
    assert memory.startswith("Mine(")
    assert all(field in memory for field in ("budget=16", "reindex=True", "newest=8"))


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/new_memory.md"])
def test_the_line_of_the_table_is_printed_as_it_is(page):
    source = (ROOT / "jaxmem" / "memory" / "__init__.py").read_text()
    (line,) = [b.text.strip() for b in blocks(ROOT / page) if b.text.strip().startswith('"knorm"')]
    assert line in source and "knorm" in MEMORIES


@dataclass(frozen=True)
class Config:
    """What `read_config` of a family returns."""

    decoder: object
    vision: object
    video: int
    vision_width: int = 12 * 12 * 3
    frame_tokens: int = 4


@dataclass(frozen=True)
class Vision:
    side: int = 24


def read_config(config):
    text = config["text_config"]
    rope = jm.rope_1d(text["hidden_size"] // text["num_attention_heads"])
    decoder = decoder_config(text, rope, qkv_bias=True, qk_norm=False, tied=False)
    return Config(decoder, Vision(), config["video_token_id"])


def features(params, config, frames):
    """Patches of 12 x 12 pixels, projected: [n, 24, 24, 3] to [n * 4, E]."""
    cut = frames.reshape(len(frames), 2, 12, 2, 12, 3).transpose(0, 1, 3, 2, 4, 5)
    flat = cut.reshape(-1, config.vision_width)
    return flat @ params["projector"]["kernel"] + params["projector"]["bias"][None]


def test_one_class_and_one_line_are_a_family(tmp_path, monkeypatch):
    """The page's class, with a `read_config` and an encoder, loads, streams and answers."""
    page = namespace_of("new_model.md")
    page |= {"read_config": read_config, "features": features}
    write_tiny(tmp_path)  # its tokenizer, template and settings
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "mine"
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(page["weight_table"](read_config(config)))
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setitem(loading.FAMILIES, "mine", page["Mine"])

    model = jm.load(tmp_path, dtype="float32", max_new=4)
    # Chunks through `Full`, as one pass over the whole prompt.
    whole = jm.Session(model, jm.Full(32), chunk_pieces=5).watch(pieces(5, side=24))
    parts = jm.Session(model, jm.Full(32)).watch(pieces(5, side=24))
    assert whole.tokens == parts.tokens == 5 * 4
    one, many = (s.ask("what is shown now").logits for s in (whole, parts))
    np.testing.assert_allclose(one, many, atol=1e-4 * np.abs(one).max())
    # Equal files, equal programs.
    again = jm.load(tmp_path, dtype="float32", max_new=4)
    assert jm.compile(again, jm.Recent(12)) == jm.compile(model, jm.Recent(12))
    rows = model.encode(model.params, Preprocessor(model, 1)(pieces(1, side=24)))
    assert rows.x.shape == (4, 48) and bool(jnp.isfinite(rows.x).all())
