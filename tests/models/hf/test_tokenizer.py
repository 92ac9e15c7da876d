"""Tokenizers as directories hold them: whole files, slow files, and tokens that others add."""

import json

import pytest

from jaxmem.models.hf.tokenizer import read_tokenizer, special_tokens

tokenizers = pytest.importorskip("tokenizers")

WORDS = ("what", "is", "shown", "[unk]")


@pytest.fixture
def folder(tmp_path):
    """A directory with a tokenizer of four words."""
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[unk]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def ids(folder, text):
    return read_tokenizer(folder).encode(text, add_special_tokens=False).ids


def test_tokens_of_the_settings_are_added_in_the_order_of_their_numbers(folder):
    added = {"5": {"content": "<|b|>", "special": True}, "4": {"content": "<|a|>", "lstrip": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert ids(folder, "what<|a|>is<|b|>shown") == [0, 4, 1, 5, 2]
    assert read_tokenizer(folder).decode([0, 4, 5], skip_special_tokens=True) == "what"
    (folder / "added_tokens.json").write_text(json.dumps({"<|c|>": 6, "<|a|>": 4}))
    assert ids(folder, "<|c|> <|a|>") == [6, 4]


def test_a_number_that_a_token_cannot_have_is_refused(folder):
    (folder / "added_tokens.json").write_text(json.dumps({"<|a|>": 9}))
    with pytest.raises(ValueError, match=r"<\|a\|> the number 9, but in the tokenizer it is 4"):
        read_tokenizer(folder)


def test_slow_files_are_a_byte_level_bpe(tmp_path):
    """As GPT-2's and Qwen2's: bytes, then merges in order; added tokens come last."""
    vocab = {c: i for i, c in enumerate("whatsĠ1")} | {"wh": 7, "at": 8, "what": 9, "Ġwhat": 10}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nw h\na t\nwh at\nĠ what\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|audio_pad|>": 11}))
    assert ids(tmp_path, "what what11 s<|audio_pad|>") == [9, 10, 6, 6, 5, 4, 11]
    assert read_tokenizer(tmp_path).decode([9, 10, 11]) == "what what"


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer.json in .*nor vocab.json with merges.txt"):
        read_tokenizer(tmp_path)


def test_special_tokens_for_templates():
    settings = {"eos_token": {"content": "</s>", "lstrip": False}, "model_max_length": 10}
    more = {"eos_token": "other", "pad_token": "<pad>"}
    assert special_tokens(settings, more) == {"eos_token": "</s>", "pad_token": "<pad>"}
