"""SmolVLM2 through `load`, `Session`, the command line; `live` compares with transformers."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import MEAN, STD, ids_of, write_smolvlm
from passes import answers_alike, one_pass, pieces_of, streamed

import jaxmem as jm
from jaxmem.data.world.files import held_out
from jaxmem.experiments.stream.__main__ import main
from jaxmem.models.base import for_frames
from jaxmem.models.load import load
from jaxmem.models.smolvlm import smolvlm, words

pytest.importorskip("jinja2")

QUESTION, MARKS = "what is shown", ("<fake_token_around_image><global-img>", "<image>" * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_smolvlm(tmp_path_factory.mktemp("smol") / "tiny-smolvlm2")


def test_stream_is_the_offline_prompt(folder):
    """Three frames, two a second, in chunks of two; square already, so that pixels are known."""
    model = for_frames(load(folder, dtype="float32", fps=2, max_new=3), (24, 24))
    assert model.frame == (2, 2) and model.timestamps and model.decoder.tied
    pieces = pieces_of(model, (24, 24), 3)
    answer = streamed(model, pieces, QUESTION, 3)
    text = words.USER + words.intro()
    for time in ("00:00", "00:00", "00:01"):
        text += f"\nFrame from {time}:{''.join(MARKS)}<fake_token_around_image>"
    text += f"\n\n{QUESTION}<end_of_utterance>\nAssistant:"
    config, ids = model.encode.of.config, [*ids_of(folder, text), *answer.ids[:-1]]
    assert ids.count(config.image) == 12
    assert model.prefix.tolist() == ids_of(folder, text.partition("\nFrame")[0])
    frames = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 255
    pixels = jnp.asarray((frames - np.array(MEAN, "f")) / np.array(STD, "f"))
    features = jax.jit(partial(smolvlm.encode, config=config))(model.params, pixels=pixels)
    plan = smolvlm.prompt_plan(config, ids)
    answers_alike(answer, one_pass(model.params["decoder"], config.decoder, plan, features))


def test_a_session_writes_stamps_and_stretches_frames(folder):
    """A wide frame is seen as its square; one after 20 hours has minutes beyond 59."""
    model = for_frames(load(folder, dtype="float32"), model_size(folder))
    assert model.media.size == (12, 24)
    wide = pieces_of(model, (12, 24), 1)[0].frames
    tall = np.asarray(smolvlm.square(jnp.asarray(wide), 24)).astype(np.uint8)
    seen = []
    for frames, start in ((wide, 0), (tall, 0), (wide, 72_061)):
        inputs = model.preprocess(frames[None], np.zeros((1, 1)), np.array([True]), None, start)
        seen.append((inputs.plan, model.encode(model.params, inputs)))
    np.testing.assert_array_equal(seen[0][1].x, seen[1][1].x)
    for (plan, rows), time in zip((seen[0], seen[2]), ("00:00", "1201:01"), strict=True):
        expected = ids_of(folder, f"\nFrame from {time}:{''.join(MARKS)}<fake_token_around_image>")
        count = len(expected)
        assert plan.ids.tolist() == expected + [0] * (model.tokens_per_piece - count)
        assert rows.advance.tolist() == [count] and plan.pos[:count, 0].tolist() == [*range(count)]
        assert np.bincount(plan.modality, minlength=3)[2] == 4


def model_size(folder):
    return load(folder, abstract=True).media.size(540, 1080)


@pytest.mark.slow
def test_the_command_line_streams_a_clip(folder, tmp_path, capsys):
    clip = held_out(1, 4, tmp_path, count=1)[0]
    out = ["--model", folder, "--video", clip, "--dtype", "float32", "--memory", "omnimem"]
    out += ["--budget", 60, "--max-new", 2, "--no-prompt", "--out", tmp_path / "out"]
    status = main([*map(str, out), "--ask", "end: what is shown"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    one = len(ids_of(folder, f"\nFrame from 00:00:{''.join(MARKS)}<fake_token_around_image>"))
    assert report["model"] == "tiny-smolvlm2" and report["tokens"] == 4 * one
    assert report["compilations"]["streaming"] == 0
    assert {"vision", "text"} <= set(report["results"][0]["kept"])
    assert report["results"][0]["answers"][0]["answer"] in captured.out


def test_text_before_a_video(folder):
    """Numbers of a whole video are written where they are known."""
    found = load(folder, abstract=True, frames=42, seconds=3725.9).prefix.tolist()
    text = words.USER + "You are provided the following series of forty-two frames from a 1:02:05 "
    assert found == ids_of(folder, text + "[H:MM:SS] video.\n")
    numbers = {0: "zero", 13: "thirteen", 20: "twenty", 101: "one hundred and one"}
    numbers |= {64: "sixty-four", 1234: "one thousand, two hundred and thirty-four"}
    assert {n: words.number(n) for n in numbers} == numbers
    for options in ({"frames": 3}, {"seconds": 3.0}, {"frames": 0, "seconds": 1.0}):
        with pytest.raises(ValueError, match="together, or neither"):
            load(folder, abstract=True, **options)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("config.json", "image_token_id"), 7, "the tokenizer knows <image> not as one token"),
        (("config.json", "scale_factor"), 3, "does not divide the 4 patches"),
        (("config.json", "text_config", "mlp_bias"), True, "mlp_bias"),
        (("config.json", "text_config", "model_type"), "mistral", "model_type of text_config"),
        (("preprocessor_config.json", "max_image_size", "longest_edge"), 48, "image_size is 24"),
        (("preprocessor_config.json", "max_image_size"), [24], "^max_image_size is .24. in pre"),
        (("preprocessor_config.json", "video_sampling"), "x", "^video_sampling is 'x' in preproc"),
        (
            ("preprocessor_config.json", "video_sampling", "video_size", "longest_edge"),
            "24",
            "^longest_edge is '24' in video_size of preprocessor_config.json, expected a whole",
        ),
    ],
)
def test_other_settings_are_refused(folder, tmp_path, where, value, message):
    target = shutil.copytree(folder, tmp_path / "x")
    file, *parents, key = where
    raw = json.loads((target / file).read_text())
    part = raw
    for name in parents:
        part = part[name]
    part[key] = value
    (target / file).write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        jm.load(target)


def test_other_options_are_refused(folder):
    with pytest.raises(ValueError, match="takes frames of one size"):
        jm.load(folder, max_pixels=100)
    with pytest.raises(ValueError, match="fps must be between"):
        jm.load(folder, fps=0)


@pytest.mark.parametrize(
    ("native", "expected"),
    [((1080, 1920), (288, 512)), ((1920, 1080), (512, 288)), ((7, 7), (512, 512)),
     ((541, 1000), (276, 512)), ((1, 2000), (1, 512))],
)  # fmt: skip
def test_sizes(native, expected):
    """The shorter side is rounded down, then up to an even number."""
    assert smolvlm.resized(*native, 512) == expected


def test_where_the_longest_edge_is_written():
    video = {"video_sampling": {"video_size": {"longest_edge": 384}}, "size": {"longest_edge": 9}}
    assert smolvlm.longest_edge(video, 512) == 384
    assert smolvlm.longest_edge({"size": {"longest_edge": 2048}}, 512) == 512  # of pictures
    assert smolvlm.longest_edge({"size": {"longest_edge": 364}, "of videos": True}, 512) == 364
