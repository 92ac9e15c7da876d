"""`--model`: any supported checkpoint from the command line, directory or download to answers."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import FAMILIES, STAMPED, write_checkpoint

from jaxmem.data.world.files import held_out
from jaxmem.experiments.stream.__main__ import main
from jaxmem.models.base import for_frames
from jaxmem.models.hf.config import read_json
from jaxmem.models.load import FILES, load

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

SECONDS = 7


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return held_out(1, SECONDS, tmp_path_factory.mktemp("clip"), count=1)[0]


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return lambda name: write_checkpoint(golden, name, root / name)


@pytest.fixture
def job(tmp_path, capsys):
    """Runs the command line and returns its report, standard output and error."""

    def run(*words, status=0):
        code = main(["--out", str(tmp_path / "out"), "--max-new", "3", "--no-prompt", *words])
        captured = capsys.readouterr()
        assert code == status, captured.err
        report = tmp_path / "out" / "report.json"
        return (json.loads(report.read_text()) if report.exists() else None), captured

    return run


@pytest.fixture
def frames(folder):
    """Rows and columns of tokens of the clip's frames (48 x 48 pixels), by a family."""

    def get(family, **options):
        model = load(folder(family), abstract=True, **options)
        size = model.media.size
        return for_frames(model, size if isinstance(size, tuple) else size(48, 48)).frame

    return get


STREAMED = (*STAMPED, "qwen2_5_omni", "llava_onevision")


def tokens_of(family, config, cells):
    """Tokens of the clip at one picture a second; "<0.5 seconds>" has 6."""
    if family == "llava_onevision":
        return SECONDS * cells
    if family in STAMPED:
        return -(-SECONDS // config["vision_config"]["temporal_patch_size"]) * (6 + 2 + cells)
    seconds = config["seconds_per_chunk"]
    return math.ceil(SECONDS / seconds) * (cells + round(25 * seconds))


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=pytest.mark.slow if f in ("qwen3_vl", "llava_onevision") else ())
        for f in STREAMED
    ],
)
def test_a_checkpoint_streams_a_clip_and_answers(job, folder, clip, frames, family):
    """Through OmniMem, also where nothing is heard: several tokens per answer, in the report and on
    the terminal; nothing compiles meanwhile."""
    where, dtype = folder(family), "bfloat16" if family in STAMPED else "float32"
    config = read_json(where)
    fps = 1.0
    if family == "qwen2_5_omni":  # one frame of patches in a piece
        fps = config["vision_config"]["temporal_patch_size"] / config["seconds_per_chunk"]
    words = ["--model", str(where), "--video", str(clip), "--dtype", dtype, "--memory", "omnimem"]
    words += ["--fps", str(fps)]
    asks = ["--ask", "4.5: what is shown", "--ask", "end: what is shown now"]
    report, captured = job(*words, "--budget", "40", *asks)
    assert report["model"] == family and report["end"]["kind"] == "end"
    cells = math.prod(frames(family, fps=fps))
    assert report["tokens"] == tokens_of(family, config, cells)
    assert report["compilations"]["streaming"] == 0
    (result,) = report["results"]
    assert result["kept"]["vision"] > 0
    assert ("text" in result["kept"]) == (family in STAMPED)
    assert ("audio" in result["kept"]) == (family == "qwen2_5_omni")
    assert [a["time"] for a in result["answers"]] == [4.5, report["seconds"]]
    for answer in result["answers"]:
        assert len(answer["answer"].split()) <= 3
        assert answer["answer"] in captured.out
    assert any(len(answer["answer"].split()) > 1 for answer in result["answers"])


def test_without_a_question_it_asks_the_models_own(job, folder, clip):
    vision = read_json(folder("qwen2_5_vl"))["vision_config"]
    one = (vision["patch_size"] * vision["spatial_merge_size"]) ** 2  # pixels of a token
    words = ["--model", str(folder("qwen2_5_vl")), "--video", str(clip), "--dtype", "float32"]
    words += ["--top-k", "5", "--repetition-penalty", "1.2", "--json", "--seconds", "2"]
    words += ["--fps", str(vision["temporal_patch_size"]), "--max-pixels", str(2 * one)]
    report, captured = job(*words)
    drawn = "answers are drawn: temperature 1, top-p 1, top-k 5, repetition penalty 1.2, seed 0"
    assert drawn in " ".join(captured.err.split())
    answers = report["results"][0]["answers"]
    asked = [answer["question"] for answer in answers]
    assert asked == ["What is happening in the video now?", "Describe the video in detail."]
    assert report["tokens"] == 2 * 1 and report["chunk_seconds"] == 1  # a frame is one token
    assert report["model"] == "qwen2_5_vl" and report["compilations"]["streaming"] == 0
    assert all(0 < len(answer["answer"].split()) <= 3 for answer in answers)


def test_what_comes_beside_pictures(folder):
    """Audio tokens of a second, and whether time stamps come between the frames."""
    found = {}
    for family in FAMILIES:
        each = read_json(folder(family)).get("seconds_per_chunk", 2)
        found[family] = load(folder(family), abstract=True, fps=2 if each == 2 else 2 / each)
    beside = {f: (m.audio_tokens, m.timestamps) for f, m in found.items()}
    assert beside.pop("qwen2_5_omni") == (25, False)
    assert {f for f in beside if beside[f] == (0, True)} == {*STAMPED}
    assert {beside[f] for f in beside if f not in STAMPED} == {(0, False)}


def test_every_family_is_run():
    assert {*STREAMED, "qwen2_5_vl"} == set(FAMILIES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "HERE"],
            "--model HERE knows nothing of the synthetic world: give it a --video",
        ),
        (["--model", "HERE", "--video", "x", "--weights", "y"], "are two models"),
        (["--model", "nowhere/at/all", "--video", "x"], "no directory nowhere/at/all"),
        (["--model", "HERE", "--video", "x", "--max-new", "0"], "must be from 1 to 100,000"),
        (["--model", "HERE", "--video", "x", "--max-new", "100001"], "must be from 1 to 100,000"),
        (["--model", "HERE", "--video", "x", "--max-pixels", "0"], "--max-pixels must be positive"),
        (["--model", "HERE", "--video", "x", "--fps", "0.3"], "whole number of frames"),
        (["--model", "HERE", "--video", "x", "--max-pixels", "9"], "frames of one size"),
        (
            ["--model", "HERE", "--video", "x", "--piece-seconds", "2"],
            "has no option piece_seconds",
        ),
        (["--model", "HERE", "--video", "x", "--ask", "end: <video>"], "2 times, expected once"),
    ],
)
def test_refused_arguments(job, folder, words, message):
    where = str(folder("llava_onevision"))
    words = [word.replace("HERE", where) for word in words]
    _, captured = job(*words, status=2)
    assert message.replace("HERE", where) in captured.err


def test_a_source_without_pictures(job, folder, tmp_path):
    """Refused by a model that does not hear; one that does has no vision tokens in its prompt."""
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.zeros(16_000, np.int16).tobytes())
    words = ["--model", str(folder("qwen2_5_vl")), "--video", str(tmp_path / "sound.wav")]
    _, captured = job(*words, status=3)
    assert "sound but no pictures" in captured.err
    words[1], config = str(folder("qwen2_5_omni")), read_json(folder("qwen2_5_omni"))
    fps = config["vision_config"]["temporal_patch_size"] / config["seconds_per_chunk"]
    words += ["--memory", "omnimem", "--budget", "40", "--dtype", "float32", "--fps", str(fps)]
    report, _ = job(*words, "--ask", "end: what is heard")
    pieces = math.ceil(1 / config["seconds_per_chunk"])
    assert report["tokens"] == pieces * round(25 * config["seconds_per_chunk"])
    (result,) = report["results"]
    assert {kind for kind, count in result["kept"].items() if count} == {"audio"}
    model = load(words[1], dtype="float32", fps=fps)
    alone, starts = for_frames(model, (0, 0)), ("vision_start_token_id", "vision_end_token_id")
    pair = [config[key] for key in starts]
    assert np.isin(pair, [*model.prefix, *model.tokenize("what")]).all()
    assert not np.isin(pair, [*alone.prefix, *alone.tokenize("what")]).any()
    assert alone.prefix[-1] == config["audio_start_token_id"]


def test_unknown_family_and_dtype(folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type 'llama' .* supported are .*qwen3_vl"):
        load(tmp_path)
    with pytest.raises(ValueError, match="weights can be bfloat16, float16, float32, got 'int8'"):
        load(folder("qwen3_vl"), dtype="int8")
    with pytest.raises(ValueError, match="got 'half a float'"):
        load(folder("qwen3_vl"), dtype="half a float")
    bare = write_bare(folder("qwen3_vl"), tmp_path / "bare")
    with pytest.raises(ValueError, match=r"no tokenizer\.json in"):
        load(bare)


def write_bare(folder: Path, target: Path) -> Path:
    """A checkpoint without its tokenizer."""
    target.mkdir()
    for path in folder.iterdir():
        if path.name != "tokenizer.json":
            (target / path.name).symlink_to(path)
    return target


def test_a_name_is_downloaded_without_code(folder, monkeypatch):
    """Through the hub's client, which is replaced: patterns, name, and what it may refuse."""
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, tuple(allow_patterns)))
        if name == "no/such":
            raise OSError("401: not found")
        return str(folder("qwen2_5_vl"))

    client = SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    model = load("Qwen/Qwen2.5-VL-tiny", dtype=jnp.float32)
    assert model.name == "Qwen2.5-VL-tiny" and asked == [("Qwen/Qwen2.5-VL-tiny", FILES)]
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in FILES)
    load("Qwen/Qwen2.5-VL-tiny", abstract=True)
    assert set(FILES) - set(asked[1][1]) == {"*.safetensors"}
    with pytest.raises(ValueError, match="no/such is no directory and cannot be .*: 401"):
        load("no/such")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"the package huggingface_hub is needed"):
        load("Qwen/Qwen2.5-VL-tiny")
    with pytest.raises(ValueError, match="no directory ../no-such-folder-here: give"):
        load("../no-such-folder-here")
