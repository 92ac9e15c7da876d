"""Qwen2-VL through `load`, `Session`, the command line; `live` compares with transformers."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import MEAN, STD, write_qwen2_vl
from passes import answers_alike, one_pass, pieces_of, streamed

from jaxmem.data.world.files import held_out
from jaxmem.experiments.stream.__main__ import main
from jaxmem.models.base import for_frames
from jaxmem.models.encoders.vision_parts import patchify
from jaxmem.models.load import load
from jaxmem.models.qwen import qwen2_vl
from jaxmem.models.qwen.qwen2_5_vl import positions, prompt_plan

pytest.importorskip("jinja2")

CELLS, QUESTION = (2, 5), "what is shown"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_qwen2_vl(tmp_path_factory.mktemp("qwen2") / "tiny-qwen2-vl")


def test_stream_is_the_offline_prompt(folder):
    """Three frames in chunks of two, at a rate of which positions know nothing."""
    model = for_frames(load(folder, dtype="float32", fps=3, max_new=3), (16, 40))
    assert model.frame == CELLS and model.tokens_per_piece == 10 and model.decoder.tied
    config, pieces = model.encode.of.config, pieces_of(model, (16, 40), 3)
    answer = streamed(model, pieces, QUESTION, 3)
    frames = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 255
    pixels = (frames - np.array(MEAN, "f")) / np.array(STD, "f")
    patches, grid = patchify(jnp.asarray(pixels), patch=4, temporal=2, merge=2), (3, 4, 10)
    ids = [*model.prefix, *[config.video] * 30, *model.tokenize(QUESTION), *answer.ids[:-1]]
    encode = jax.jit(partial(qwen2_vl.encode, config=config, grids=[grid]))
    plan = prompt_plan(config, ids, videos=[grid])
    begin = len(model.prefix)
    assert plan.pos[begin : begin + 30 : 10].T.tolist() == [
        [begin + i for i in range(3)],
        *[[begin] * 3] * 2,
    ]
    found = one_pass(
        model.params["decoder"], config.decoder, plan, encode(model.params, patches=patches)
    )
    answers_alike(answer, found)


def test_text_after_a_video_is_after_its_largest_axis(folder):
    """Three frames of 2 x 5 tokens: columns reach furthest; seven: time does."""
    config = load(folder, abstract=True).encode.of.config
    for frames, end in ((3, 5), (7, 7)):
        ids = [config.video] * (10 * frames) + [20]
        pos, after = positions(config, ids, videos=[(frames, 4, 10)])
        assert pos[-1].tolist() == [end] * 3 and after == end + 1


@pytest.mark.slow
def test_the_command_line_streams_a_clip(folder, tmp_path, capsys):
    """At half a frame of patches a second: two a clip of four seconds."""
    clip = held_out(1, 4, tmp_path, count=1)[0]
    words = ["--model", folder, "--video", clip, "--dtype", "float32", "--memory", "omnimem"]
    words += ["--budget", 16, "--max-new", 2, "--no-prompt", "--out", tmp_path / "out"]
    status = main([*map(str, words), "--ask", "end: what is shown"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    model = load(folder, abstract=True)
    cells = np.prod(for_frames(model, model.media.size(48, 48)).frame)
    assert report["model"] == "tiny-qwen2-vl" and report["tokens"] == 2 * cells
    assert report["results"][0]["kept"]["vision"] > 0
    assert report["results"][0]["answers"][0]["answer"] in captured.out


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("vision_config", "hidden_act", "gelu"), ("text_config", "use_sliding_window", True)],
)
def test_other_settings_are_refused(folder, tmp_path, part, key, value):
    config = json.loads((folder / "config.json").read_text())
    config[part][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=key):
        load(tmp_path, abstract=True)


def test_sizes_that_are_not_written_are_those_of_transformers(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text()) | {"vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    vision = load(tmp_path, abstract=True).encode.of.config.vision
    assert (vision.depth, vision.width, vision.mlp_width, vision.out) == (32, 1280, 5120, 3584)
    assert (vision.heads, vision.patch, vision.merge, vision.temporal) == (16, 14, 2, 2)
