"""A stream that saves itself goes on, in another run, to the answers of an uninterrupted one."""

import json

import pytest

from jaxmem.experiments.stream.__main__ import main


def answers(out):
    report = json.loads((out / "report.json").read_text())
    return [[(a["time"], a["answer"]) for a in one["answers"]] for one in report["results"]]


@pytest.mark.parametrize("more", [[], ["--bank.capacity", "200"]])
def test_resumed_is_uninterrupted(more, tmp_path, capsys):
    names = ["--compare", "recent,uniform", *more]
    words = ["--seconds", "30", "--chunk-seconds", "3", "--no-prompt", "--budget", "32", *names]
    for time in ("0:05", "0:22", "end"):
        words += ["--ask", f"{time}: Which shape is there now?"]
    saved = ["--checkpoint", str(tmp_path / "live"), "--every", "5"]
    assert main([*words, "--out", str(tmp_path / "a"), *saved]) == 0
    first, last = sorted((tmp_path / "live").iterdir())
    for number, save in enumerate((first, last)):
        out = tmp_path / f"b{number}"
        assert main([*words, "--out", str(out), "--resume", str(save)]) == 0
        assert answers(out) == answers(tmp_path / "a")
    assert main([*words, "--out", str(tmp_path / "c"), *saved]) == 2  # would replace another one
    assert "replace" in capsys.readouterr().err
