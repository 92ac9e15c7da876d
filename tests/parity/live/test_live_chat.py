"""Prompt ids of directories as people have them, against what transformers makes of the same files.

Each variant changes the files of one directory: where tokens and templates are kept, and what a
template uses.
"""

import json

import numpy as np
import pytest

from jaxmem.models.hf.chat import read_chat
from jaxmem.models.qwen.tiny_checkpoint import TEMPLATE, write_tiny

PAD, EXTRA = "<|video_pad|>", "<|other|>"
FLAGS = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
MAP = {"eos_token": {"content": "<|im_end|>", **FLAGS}, "additional_special_tokens": [PAD, EXTRA]}


def settings(**more):
    return {"tokenizer_class": "PreTrainedTokenizerFast", **more}


def decoder(*texts):
    """Added tokens as tokenizer_config.json lists them, ids as they would be given out."""
    return {str(98 + i): {"content": x, "special": True, **FLAGS} for i, x in enumerate(texts)}


def used(template):
    """A template that writes `template` before everything else."""
    return {"chat_template.json": {"chat_template": template + TEMPLATE}}


STRIPPED = {"98": {"content": PAD, "special": False, **FLAGS, "lstrip": True, "rstrip": True}}
VARIANTS = {
    "plain": {},
    "decoder": {"tokenizer_config.json": settings(added_tokens_decoder=decoder(PAD, EXTRA))},
    "decoder strips": {"tokenizer_config.json": settings(added_tokens_decoder=STRIPPED)},
    "decoder wins": {
        "tokenizer_config.json": settings(added_tokens_decoder=decoder(PAD)),
        "special_tokens_map.json": {"eos_token": "shown", "additional_special_tokens": [EXTRA]},
        "added_tokens.json": {EXTRA: 97},
    },
    "extra": {"tokenizer_config.json": settings(extra_special_tokens=[PAD, EXTRA])},
    "additional": {"tokenizer_config.json": settings(additional_special_tokens=[EXTRA, PAD])},
    "model's own": {
        "tokenizer_config.json": settings(extra_special_tokens={"video_token": PAD}),
        **used("{{ video_token is defined }} {{ eos_token is defined }} "),
    },
    "map": {"special_tokens_map.json": MAP, "tokenizer_config.json": settings()},
    "added": {"added_tokens.json": {EXTRA: 99, PAD: 98}, "tokenizer_config.json": settings()},
    "names": {
        "tokenizer_config.json": settings(
            bos_token="<|im_start|>", eos_token={"__type": "AddedToken", "content": "w99", **FLAGS},
            pad_token="w98", unk_token=None, mask_token="shown", cls_token="is",
        ),
        **used("{{ bos_token }} {{ eos_token }}{{ pad_token }} {{ unk_token }} {{ mask_token }}"),
    },
    "generation": used(
        "{% set n = 1 %}{% generation %}{% set n = 2 %} what {{ n }}\n{% endgeneration %}{{ n }}"
    ),
    "tools": used("{% if tools is not none %}what{% endif %}{% if documents %}is{% endif %}"),
    "undefined": used("{% if enable_thinking is defined %}what{% endif %}{{ nobody }}"),
    "date": used("{{ strftime_now('%Y') | length }} is {{ strftime_now('%d') | length }}"),
    "json": used("{{ {'b': '<what>', 'a': [1, 'is']} | tojson(indent=2, sort_keys=true) }}"),
    "separators": used("{{ {'b': 'was', 'a': 1} | tojson(separators=(',', ':')) }}"),
    "namespace": used("{% set n = namespace(x=1) %}{% for i in [1, 2, 3] %}{% if i == 3 %}"
                      "{% continue %}{% endif %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}"),
    "macro": used("{% macro f(x) %} {{ x }} {% endmacro %}{{ f('what') }}{{ dict(a='is').a }}"),
    "jinja": {"chat_template.json": None, "chat_template.jinja": "now\n" + TEMPLATE},
    "jinja and json": {"chat_template.jinja": "now " + TEMPLATE},
    "processor": {"processor_config.json": {"chat_template": "now " + TEMPLATE}},
    "named": {
        "chat_template.json": None,
        "tokenizer_config.json": settings(chat_template=[
            {"name": "tool_use", "template": "is " + TEMPLATE},
            {"name": "default", "template": "now " + TEMPLATE},
        ]),
    },
    "truncates": {"truncation": {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    }},
}  # fmt: skip
WITHOUT_PAD = ("decoder", "extra", "additional", "model's own", "map", "added")


def write(folder, variant):
    """Write the small files of a directory; where others declare the placeholder, without it."""
    write_tiny(folder)
    (folder / "model.safetensors").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    if variant.startswith(WITHOUT_PAD):
        names = [x for x in tokenizer["model"]["vocab"] if x != PAD]
        tokenizer["model"]["vocab"] = vocab = {name: i for i, name in enumerate(names)}
        added = [x for x in tokenizer["added_tokens"] if x["content"] != PAD]
        tokenizer["added_tokens"] = [x | {"id": vocab[x["content"]]} for x in added]
    files = dict(VARIANTS[variant])
    tokenizer |= {key: files.pop(key) for key in ("truncation",) if key in files}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_ids(hf, tmp_path, variant):
    """Rendered text and token ids of a prompt with one video, and the ids around the video."""
    folder = write(tmp_path, variant)
    theirs = hf.transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    found, _ = hf.transformers.ProcessorMixin.get_processor_dict(folder)
    template = found.get("chat_template")  # a processor's comes before the tokenizer's
    for question in ("What is shown?", f"now {EXTRA} <what> w99"):
        content = [{"type": "video"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        more = {"chat_template": template, "add_generation_prompt": True}
        expected = theirs.apply_chat_template(messages, tokenize=False, **more)
        chat = read_chat(folder)
        assert chat.render(messages) == expected
        ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, **more)
        ids, video = ids["input_ids"], theirs.convert_tokens_to_ids(PAD)
        before, after = chat.around(question, video)
        np.testing.assert_array_equal([*before, video, *after], ids)
        assert chat.text(ids) == theirs.decode(ids, skip_special_tokens=True)


SENTENCES = (
    "What is shown?\nA talk, it's 12:30; they'LL see 1234 cats.",
    "  two  spaces \t\n\n  and\r\n x",
    "na\u00efve e\u0301 \u4f60\u597d\uff0c\u4e16\u754c \U0001f600 \u0645\u0631\u062d \u00b2\u00bd",
    "<|im_start|>user\n<|audio_pad|><|audio_pad|> what<|other|> <|im_end|>\n",
    "",
    " ",
    "\u2028x\u00a0y",
)


@pytest.mark.parametrize("declared", ["added_tokens.json", "tokenizer_config.json", "map"])
def test_slow_files(hf, tmp_path, declared):
    """Ids and text as Qwen2's tokenizer has them, of vocab.json and merges.txt."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = tokenizers.pre_tokenizers
    made.pre_tokenizer = cut.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=cut.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(SENTENCES[:3] * 3, trainer)
    made.model.save(str(tmp_path))
    texts = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", PAD, "<|audio_pad|>", EXTRA)
    added = {text: made.get_vocab_size() + i for i, text in enumerate(texts)}
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    config = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, **named}
    files = {"tokenizer_config.json": config, "added_tokens.json": added}
    if declared == "tokenizer_config.json":
        listed = {str(i): {"content": x, "special": x != EXTRA, **FLAGS} for x, i in added.items()}
        files["tokenizer_config.json"] = config | {"added_tokens_decoder": listed}
    if declared == "map":
        more = {"eos_token": "<|im_end|>", "additional_special_tokens": list(texts[1:5])}
        files["special_tokens_map.json"] = more
    files |= {"chat_template.json": {"chat_template": TEMPLATE}, "config.json": {}}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    theirs = hf.transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    chat = read_chat(tmp_path)
    for text in SENTENCES:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert chat.ids(text).tolist() == ids, text
        assert chat.text(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert chat.ids("".join(texts)).tolist() == list(added.values())
