"""Tokenizers of directories: slow files are Qwen2's byte-level BPE, and added tokens come last."""

import json
import re

import pytest

from jaxmem.experiments.stream.__main__ import main
from jaxmem.models.hf.chat import read_chat
from jaxmem.models.load import load
from jaxmem.models.qwen.tiny_checkpoint import write_tiny

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
    vocab = json.loads((folder / "vocab.json").read_text()) | {"Ì": 14, "ĥ": 15, "wÌ": 16}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 17}))
    (folder / "merges.txt").write_text("#version: 0.2\nw Ì\n")
    (folder / file).write_text(json.dumps(value))
    assert read_chat(folder).ids("w\u0303").tolist() == ([16, 15] if joined else [0, 14, 15])


def test_tokenizer_json_wins(tmp_path):
    (slow_files(tmp_path) / "added_tokens.json").unlink()
    model = tokenizers.models.WordLevel({"what": 0, "[unk]": 1}, unk_token="[unk]")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
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


def listed(**tokens):
    """Added tokens as tokenizer_config.json has them."""
    return {"added_tokens_decoder": {str(i): {"content": text} for text, i in tokens.items()}}


def fast_files(folder):
    """Slow files with the same tokenizer in one file beside them; "[b]" is added there, id 14."""
    slow_files(folder)
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["[b]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "added_tokens.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": listed(**{"[b]": 15})}, r"'\[b\]' has two ids .*: 15 in tokenizer_c"),
        (
            {"added_tokens": {"[b]": 9}},
            r"'\[b\]' has two ids .*: 9 in added_tokens.json, but 14",
        ),
        ({"added_tokens": {"[c]": 14}}, r"'\[c\]' has two ids .*: 14 in added_tokens.json, but 15"),
        (
            {"tokenizer_config": listed(**{"[c]": 20})},
            r"'\[c\]' has two ids .*: 20 in .* but 15",
        ),
        ({"tokenizer_config": listed(what=30)}, "'what' has two ids .*: 30 in .*, but 10 by"),
        # Read by neither: as in transformers, the list in tokenizer_config.json is asked alone.
        ({"tokenizer_config": listed(**{"[b]": 14}), "added_tokens": {"[b]": 9}}, None),
        ({"tokenizer_config": listed(**{"[c]": 15, "[b]": 14, "what": 10})}, None),
    ],
)
def test_a_token_with_two_ids_is_refused_by_name(tmp_path, files, message):
    fast_files(tmp_path)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    if message is None:
        assert read_chat(tmp_path).ids("what[b]").tolist() == [10, 14]
        return
    with pytest.raises(ValueError, match=message):
        read_chat(tmp_path)


def test_two_ids_within_one_file_are_refused(tmp_path):
    slow_files(tmp_path)
    added = {"<|im_end|>": 14, "<|audio_pad|>": 19}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ValueError, match="'<|audio_pad|>' has two ids .*: 19 in added_tokens.json"):
        read_chat(tmp_path)
    found = json.loads((fast_files(tmp_path) / "tokenizer.json").read_text())
    found["added_tokens"][0]["id"] = 3
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"'\[b\]' has two ids .*: 3 in tokenizer.json"):
        read_chat(tmp_path)


def test_a_token_beyond_the_embedding_is_refused_by_name(tmp_path, capsys):
    """By `load` and by the command line, before any weight is read."""
    found = json.loads((write_tiny(tmp_path) / "config.json").read_text())
    found["text_config"]["vocab_size"] = 98
    (tmp_path / "config.json").write_text(json.dumps(found))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="'w98' of .* has id 98, beyond the 98 rows .* 1 more"):
        load(tmp_path)
    words = ["--model", str(tmp_path), "--video", "x.mp4", "--out", str(tmp_path / "out")]
    assert main(words) != 0
    assert "has id 98, beyond the 98 rows" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("added_tokens", {"<|im_end|>": "x"}, "'<|im_end|>' is 'x' in "),
        ("added_tokens", {"<|im_end|>": [15]}, "'<|im_end|>' is [15] in "),
        ("added_tokens", {"<|im_end|>": 15.5}, "'<|im_end|>' is 15.5 in "),
        ("tokenizer_config", {"added_tokens_decoder": [1]}, "added_tokens_decoder is [1] in "),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}},
         "added_tokens_decoder.x is {'content': 'a'} in "),
        ("tokenizer_config", {"added_tokens_decoder": {"15": "a"}},
         "added_tokens_decoder.15 is 'a' in "),
        ("tokenizer_config", {"added_tokens_decoder": {"15": {"special": True}}},
         "added_tokens_decoder.15 is {'special': True} in "),
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused_by_its_key_and_file(tmp_path, file, value, said):
    (slow_files(tmp_path) / f"{file}.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=f"^{re.escape(said)}{file}.json, expected ") as caught:
        read_chat(tmp_path)
    assert str(caught.value).endswith(f": use the {file}.json of the checkpoint.")
