"""Command lines that nobody should type: one line of refusal each, quickly, and no traceback."""

import json
import time

import pytest

from jaxmem.experiments.stream.__main__ import main

LONG = "x" * 100_000


def config(values):
    """Return the text of a config file that gives such values."""
    return (
        "from jaxmem.experiments.stream.config import StreamConfig\n"
        f"def get_config():\n    return StreamConfig({values})\n"
    )


def garbage(path):
    """Make files and folders that hold nonsense."""
    (path / "empty").write_bytes(b"")
    (path / "garbage").write_bytes(bytes(range(256)) * 64)
    (path / "file").write_text("file")
    for name, text in {
        "number.py": config("budget=96"),
        "words.py": config("questions='many'"),
        "memory.py": config("memory=['recent']"),
        "unknown.py": config("memories={'elephant': {'trunk': 1}}"),
        "flat.py": config("memories={'recent': 3}"),
        "none.py": "def get_config():\n    return None\n",
        "broken.py": "def get_config(:\n",
        "bare.py": "x = 1\n",
    }.items():
        (path / name).write_text(text)
    for name, document in {
        "bare": {},
        "half": {"model_type": "qwen2_5_vl"},
        "llava": {"model_type": "llava_onevision", "text_config": {}},
        "list": [],
    }.items():
        (path / f"model_{name}").mkdir()
        (path / f"model_{name}" / "config.json").write_text(json.dumps(document))
    (path / "taken" / "report.json").mkdir(parents=True)
    (path / "foreign").mkdir()
    (path / "foreign" / "letter.txt").write_text("mine")


HOSTILE = [
    "--budget 99999999999", "--budget 1e400", "--budget 9999999TiB", "--budget -1", "--budget nan",
    "--budget " + "9" * 5000,
    "--chunk-seconds 1e5", "--chunk-seconds 1e300", "--chunk-seconds inf", "--chunk-seconds nan",
    "--chunk-seconds 1e-9", "--seconds 1e12", "--seconds 1e300", "--seconds 1e8", "--seconds -1",
    "--seconds nan", "--questions 1000000", "--questions -3", "--questions 1e9", "--every 0",
    "--weights empty", "--weights garbage", "--weights nowhere", "--weights .", "--weights file",
    "--config number.py", "--config words.py", "--config memory.py", "--config unknown.py",
    "--config flat.py", "--config none.py", "--config broken.py", "--config bare.py",
    "--config nowhere.py", "--config .", "--config", "--memory elephant", "--memory ,",
    "--elephant.trunk 3", "--recent.sinks many",
    "--video file --model model_bare",
    "--video file --model model_half", "--video file --model model_llava",
    "--video file --model model_list", "--video file --model empty", "--video file --model .",
    "--out file", "--out file/below", "--out taken", "--out /dev/full", "--out /proc/nothing",
    "--checkpoint file", "--checkpoint foreign", "--checkpoint /proc/nothing", "--every 3",
    "--resume nowhere", "--resume foreign", "--resume file", "--ask nonsense", f"--ask {LONG}",
    f"--memory {LONG}", f"--video {LONG}", f"--{LONG}", f"--{LONG}.{LONG} 3", f"--budget {LONG}",
    f"--ask=end:{LONG}", f"--weights {LONG}", f"--out {LONG}", f"--config {LONG}",
    f"--model {LONG} --video file", "--help-memory", "--help-memory elephant", "--video file",
    "--video .", "--video empty", "--video garbage", "--seed -1", "--top-p 7", "--fps 1e9",
]  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: line[:40])
def test_a_hostile_line_is_refused_in_few_words(line, tmp_path, monkeypatch, capfd):
    garbage(tmp_path)
    monkeypatch.chdir(tmp_path)
    begin = time.process_time()
    status = main([*line.split(), "--no-prompt"])
    captured = capfd.readouterr()
    said = captured.out + captured.err
    assert status in (2, 3), said[-500:]
    assert "Traceback" not in said and 0 < len(said) < 3000
    assert time.process_time() - begin < 20


def test_names_are_shown_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--no-prompt", "--video", "at 12:a:30 [/b].mp4"]) == 3
    assert "error: at 12:a:30 [/b].mp4: cannot be opened" in capsys.readouterr().err
