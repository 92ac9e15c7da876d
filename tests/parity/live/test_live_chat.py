"""Prompt ids of directories as people have them, against what transformers makes of the same files.

Each variant changes the files of one directory: where tokens and templates are kept, and what a
template uses.
"""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import write_qwen3_5
from passes import pieces_of

import jaxmem as jm
from jaxmem.kv import EMPTY
from jaxmem.models.hf.chat import read_chat
from jaxmem.models.qwen.tiny_checkpoint import TEMPLATE, write_tiny
from jaxmem.pieces import Preprocessor

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
MARKS = "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e17\u0e35\u0e48 q\u0303a\u0301\u0323 .\u0301"


def trained(texts, folder):
    """A byte-level BPE whose slow files lie in a folder."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = tokenizers.pre_tokenizers
    made.pre_tokenizer = cut.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=cut.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.model.save(str(folder))
    return made


def test_slow_files_of_qwen3_5(hf, tmp_path):
    """Words with combining marks; transformers takes vocabulary and merges by hand only."""
    trained([*SENTENCES[:3], MARKS, MARKS], tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    lines = (tmp_path / "merges.txt").read_text().splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines]
    theirs = hf.transformers.Qwen3_5Tokenizer(vocab=vocab, merges=merges)
    files = {"config.json": {"model_type": "qwen3_5"}}
    files["chat_template.json"] = {"chat_template": TEMPLATE}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    chat = read_chat(tmp_path)
    texts = [*SENTENCES[:3], *SENTENCES[4:], MARKS]
    ids = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [chat.ids(text).tolist() for text in texts] == ids
    (tmp_path / "config.json").write_text("{}")
    assert read_chat(tmp_path).ids(MARKS).tolist() != ids[-1]  # those of Qwen2


@pytest.mark.parametrize("declared", ["added_tokens.json", "tokenizer_config.json", "map"])
def test_slow_files(hf, tmp_path, declared):
    """Ids and text as Qwen2's tokenizer has them, of vocab.json and merges.txt."""
    made = trained([*SENTENCES[:3] * 3], tmp_path)
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


@pytest.mark.parametrize("fps", [2.0, 3.0, 0.7])
def test_a_prompt_of_qwen3_5_with_its_frames(hf, tmp_path, fps):
    """Template, words before every frame and placeholders, as the released processor joins them."""
    folder, size, question, count = write_qwen3_5(tmp_path), (16, 24), "what is shown", 7
    model = jm.for_frames(jm.load(folder, abstract=True, fps=fps), size)
    pieces, pack = pieces_of(model, size, count), Preprocessor(model, 2)
    plans = [pack(pieces[i : i + 2]).plan for i in range(0, count, 2)]
    real = np.concatenate([plan.modality != EMPTY for plan in plans])
    video = np.concatenate([plan.ids for plan in plans])[real]
    processor = hf.transformers.models.qwen3_vl.processing_qwen3_vl.Qwen3VLProcessor
    sides = {"merge_size": 2, "temporal_patch_size": 2}
    theirs = SimpleNamespace(
        video_processor=SimpleNamespace(**sides), video_token=PAD,
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>",
    )  # fmt: skip
    theirs._calculate_timestamps = partial(processor._calculate_timestamps, theirs)
    seen = {"fps": fps, "frames_indices": list(range(2 * count))}
    grid = np.array([[count, size[0] // 4, size[1] // 4]])
    inputs = {"video_grid_thw": grid, "video_metadata": [SimpleNamespace(**seen)]}
    frames = processor.replace_video_token(theirs, inputs, 0)
    tokenizer = hf.transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True,
        chat_template=template,
    )  # fmt: skip
    text = text.replace(f"<|vision_start|>{PAD}<|vision_end|>", frames)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [*model.prefix, *video, *model.tokenize(question)] == expected
    assert expected.count(4) == count * 6
