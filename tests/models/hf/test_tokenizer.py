"""Tokenizers of directories: slow files are Qwen2's byte-level BPE, and added tokens come last."""

import json

import pytest

from jaxmem.models.hf.chat import read_chat

pytest.importorskip("jinja2")
tokenizers = pytest.importorskip("tokenizers")


def slow_files(folder):
    """Bytes, then merges in order; the tokens around messages come after the vocabulary."""
    vocab = {c: i for i, c in enumerate("whatsĠ1Ċ")}
    vocab |= {"wh": 8, "at": 9, "what": 10, "Ġwhat": 11, "Ã": 12, "©": 13}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nw h\na t\nwh at\nĠ what\n")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 15, "<|audio_pad|>": 14}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "what"}))
    (folder / "config.json").write_text("{}")
    return folder


def test_slow_files_are_a_byte_level_bpe(tmp_path):
    chat = read_chat(slow_files(tmp_path))
    text = "what what11 s<|audio_pad|>\n\n  what<|im_end|>"
    assert chat.ids(text).tolist() == [10, 11, 6, 6, 5, 4, 14, 7, 7, 5, 11, 15]
    assert chat.text([10, 11, 6, 15]) == "what what1" and chat.end == (15,)
    assert chat.ids("e\u0301").tolist() == chat.ids("\u00e9").tolist() == [12, 13]  # composed first


@pytest.mark.parametrize(
    ("file", "value", "joined"),
    [
        ("config.json", {"model_type": "qwen3_5"}, True),
        ("config.json", {"model_type": "qwen3_vl"}, False),
        ("tokenizer_config.json", {"tokenizer_class": "Qwen3_5Tokenizer"}, True),
    ],
)
def test_marks_belong_to_words_in_qwen3_5(tmp_path, file, value, joined):
    """A merge over the mark on `w` is made only where letter and mark are of one word."""
    folder = slow_files(tmp_path)
    vocab = json.loads((folder / "vocab.json").read_text()) | {"Ì": 16, "ĥ": 17, "wÌ": 18}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nw Ì\n")
    (folder / file).write_text(json.dumps(value))
    assert read_chat(folder).ids("w\u0303").tolist() == ([18, 17] if joined else [0, 16, 17])


def test_tokenizer_json_wins(tmp_path):
    model = tokenizers.models.WordLevel({"what": 0, "[unk]": 1}, unk_token="[unk]")
    tokenizers.Tokenizer(model).save(str(slow_files(tmp_path) / "tokenizer.json"))
    assert read_chat(tmp_path).ids("what").tolist() == [0]


@pytest.mark.parametrize("gone", ["vocab.json", "merges.txt"])
def test_nothing_to_read_is_said(tmp_path, gone):
    (slow_files(tmp_path) / gone).unlink()
    with pytest.raises(ValueError, match="no tokenizer.json in .*nor vocab.json with merges.txt"):
        read_chat(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json"])
def test_a_file_that_is_cut_off_is_said(tmp_path, name):
    slow_files(tmp_path)
    (tmp_path / name).write_text('{"w": 0, "h' if name != "merges.txt" else "w h\nw zzz\n")
    with pytest.raises(ValueError, match=f"{name}.* cannot be read .*download them again"):
        read_chat(tmp_path)
