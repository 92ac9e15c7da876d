"""Prompts of checkpoint directories as people have them: tokens in four files, templates in five.

Every case changes files of one tiny directory and loads it; `tests/parity/live` compares the same
with transformers.
"""

import json
import re

import pytest

import jaxmem as jm
from jaxmem.models.hf.chat import read_chat
from jaxmem.models.qwen.tiny_checkpoint import TEMPLATE, VOCABULARY, write_tiny

QUESTION = "What is shown?"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def changed(plain, folder, **files):
    """Return a copy of the small files with others in place of some, None: left out."""
    for path in plain.glob("*.json"):
        (folder / path.name).write_text(path.read_text())
    for name, content in files.items():
        name = name.replace("__", ".")
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def prompt(folder, question=QUESTION):
    """Return the ids around the video, of the model that the directory loads as."""
    model = jm.load(folder, abstract=True)
    return model.prefix.tolist(), model.tokenize(question).tolist()


def without(plain, text):
    """Return tokenizer.json without one token; the ids after it move down by one."""
    found = json.loads((plain / "tokenizer.json").read_text())
    found["added_tokens"] = [x for x in found["added_tokens"] if x["content"] != text]
    vocab = found["model"]["vocab"]
    gone = vocab.pop(text)
    ids = {i: name for name, i in vocab.items()}
    names = [ids.get(i, f"free{i}") for i in range(VOCABULARY) if ids.get(i) or i != gone]
    found["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    for token in found["added_tokens"]:
        token["id"] = found["model"]["vocab"][token["content"]]
    return found


def renumbered(plain, tokenizer, video):
    """Return config.json with the ids of another tokenizer.json."""
    config, vocab = json.loads((plain / "config.json").read_text()), tokenizer["model"]["vocab"]
    for name, text in (("image", "image_pad"), ("vision_start",) * 2, ("vision_end",) * 2):
        config[f"{name}_token_id"] = vocab[f"<|{text}|>"]
    return config | {"video_token_id": video}


PAD = "<|video_pad|>"
FLAGS = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
TOKEN_FILES = {
    "added_tokens_decoder": {
        "tokenizer_config__json": {
            "added_tokens_decoder": {"99": {"content": PAD, "special": True, **FLAGS}}
        }
    },
    "added_tokens": {"added_tokens__json": {PAD: 99}},
    "special_tokens_map": {
        "special_tokens_map__json": {"additional_special_tokens": [{"content": PAD, **FLAGS}]}
    },
    "extra_special_tokens": {"tokenizer_config__json": {"extra_special_tokens": [PAD]}},
    "named": {"tokenizer_config__json": {"extra_special_tokens": {"video_token": PAD}}},
}


@pytest.mark.parametrize("files", TOKEN_FILES.values(), ids=TOKEN_FILES)
def test_a_token_that_is_not_in_tokenizer_json(plain, tmp_path, files):
    tokenizer = without(plain, PAD)
    config = renumbered(plain, tokenizer, 99)
    folder = changed(plain, tmp_path, tokenizer__json=tokenizer, config__json=config, **files)
    vocab = tokenizer["model"]["vocab"]
    before, after = prompt(folder)
    assert before[-1] == vocab["<|vision_start|>"] and after[0] == vocab["<|vision_end|>"]
    assert before[:2] == [vocab["<|im_start|>"], vocab["user"]]


def test_a_tokenizer_that_truncates_and_pads(plain, tmp_path):
    found = json.loads((plain / "tokenizer.json").read_text())
    found["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    found["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<unk>",
    }  # fmt: skip
    assert prompt(changed(plain, tmp_path, tokenizer__json=found)) == prompt(plain)


GENERATION = TEMPLATE.replace(
    "{% for c in m['content'] if c['type'] == 'text' %}",
    "{% if m['role'] == 'assistant' %}{%- generation -%}{{ m['content'] }}{% endgeneration %}"
    "{% endif %}{% for c in m['content'] if c['type'] == 'text' %}",
)
SAME = {
    "generation": GENERATION,
    "no tools": "{% if tools is not none or documents is not none %}now{% endif %}" + TEMPLATE,
    "the year": "{% if strftime_now('%Y') | int < 2000 %}then{% endif %}" + TEMPLATE,
    "special": "{% if eos_token != '<|im_end|>' or pad_token != 'w99' %}then{% endif %}" + TEMPLATE,
    "json": "{% if ('<a>' | tojson(indent=2)) != '\"<a>\"' %}then{% endif %}" + TEMPLATE,
    "refusal": "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}" + TEMPLATE,
    "loops": TEMPLATE.replace("{% for c", "{% if m['role'] == 'nobody' %}{% break %}{% endif %}"
                                          "{% for c", 1),
}  # fmt: skip


@pytest.mark.parametrize("template", SAME.values(), ids=SAME)
def test_what_a_template_may_use(plain, tmp_path, template):
    settings = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "w99", "bos_token": None}
    files = {"chat_template__json": {"chat_template": template}, "tokenizer_config__json": settings}
    assert prompt(changed(plain, tmp_path, **files)) == prompt(plain)


OTHER = TEMPLATE.replace("assistant '", "assistant now '")
NAMED = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": OTHER}]
PLACES = {
    "processor_config": {"processor_config__json": {"chat_template": OTHER}},
    "named": {"chat_template__json": {"chat_template": NAMED}},
    "dict": {"chat_template__json": {"chat_template": {"default": OTHER}}},
    "jinja": {"chat_template__json": None, "chat_template__jinja": OTHER},
    "null": {"chat_template__json": {"chat_template": None}, "chat_template__jinja": OTHER},
    "settings": {
        "chat_template__json": None, "tokenizer_config__json": {"chat_template": NAMED}
    },
    "json before jinja": {
        "chat_template__json": {"chat_template": OTHER}, "chat_template__jinja": "x"
    },
}  # fmt: skip


@pytest.mark.parametrize("files", PLACES.values(), ids=PLACES)
def test_where_a_template_lies(plain, tmp_path, files):
    (before, after), now = prompt(plain), prompt(plain, "now")[1][1]
    assert prompt(changed(plain, tmp_path, **files)) == (before, [*after, now])


def test_a_template_that_fails_is_named(plain, tmp_path):
    files = {"chat_template__json": {"chat_template": "{{ 'a' + messages }}"}}
    with pytest.raises(ValueError, match="the chat template cannot write this prompt: can only"):
        jm.load(changed(plain, tmp_path, **files), abstract=True)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_null_is_an_absent_key(plain, tmp_path, file):
    found = json.loads((plain / file).read_text())
    if file == "config.json":
        found["text_config"] |= {"rope_parameters": None, "head_dim": None, "hidden_act": None}
        found |= {"quantization_config": None, "audio_config": None}
        found["vision_config"]["rope_parameters"] = {"rope_theta": None}
    else:
        size = {"shortest_edge": found["min_pixels"], "longest_edge": found["max_pixels"]}
        found |= {"min_pixels": None, "max_pixels": None, "size": size, "patch_size": None}
        found |= {"rescale_factor": None, "temporal_patch_size": None}
    other = jm.load(changed(plain, tmp_path, **{file.replace(".", "__"): found}), abstract=True)
    assert other.encode == jm.load(plain, abstract=True).encode


@pytest.mark.parametrize("wrong", ["x", "3", [True], -1, 2.5, VOCABULARY, [3, [4]], {}], ids=repr)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_ends_of_an_answer_are_tokens_of_the_vocabulary(plain, tmp_path, file, wrong):
    found = json.loads((plain / file).read_text()) | {"eos_token_id": wrong}
    files = {"generation_config__json": {}, file.replace(".", "__"): found}
    said = f"{re.escape(f'eos_token_id is {wrong!r} in {file}')}, expected .* below {VOCABULARY} "
    with pytest.raises(ValueError, match=f"^{said}.*: use the {file} of the checkpoint.$"):
        read_chat(changed(plain, tmp_path, **files))


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        *(("do_sample", x) for x in ("yes", 1)),
        *(("temperature", x) for x in ("x", [1], True)),
        *(("top_k", x) for x in ("20", float("inf"), {})),
        ("top_p", "0.9"),
        ("repetition_penalty", [1]),
    ],
)
def test_settings_of_sampling_are_numbers(plain, tmp_path, key, wrong):
    settings = {"generation_config__json": {"do_sample": True, key: wrong}}
    with pytest.raises(ValueError, match=f"^{key} is .* in generation_config.json, expected"):
        jm.load(changed(plain, tmp_path, **settings))
