"""Prompt and pictures of SmolVLM2 against the installed transformers' processors."""

import json
from importlib import import_module
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_smolvlm

from jaxmem.models.load import load
from jaxmem.models.smolvlm import smolvlm, words

MARKS = [words.AROUND, words.GLOBAL, words.IMAGE, "<end_of_utterance>", "<|im_start|>"]
QUESTIONS = ("What is shown?", "  Was steht dort:\n'über'? 10:30", "<b>5 > 3 & x</b> \u4f60\u597d")


@pytest.fixture(scope="module")
def side(hf, tmp_path_factory):
    """A directory with a byte-level tokenizer that cuts numbers into digits, and theirs."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = write_smolvlm(tmp_path_factory.mktemp("smol") / "tiny")
    raw, cut = tokenizers.Tokenizer(tokenizers.models.BPE()), tokenizers.pre_tokenizers
    digits, byte = cut.Digits(individual_digits=True), cut.ByteLevel(add_prefix_space=False)
    raw.pre_tokenizer, raw.decoder = cut.Sequence([digits, byte]), tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["a", "b", "c", words.IMAGE, *MARKS], show_progress=False,
        initial_alphabet=cut.ByteLevel.alphabet(),
    )  # fmt: skip
    texts = [words.intro(3, 4), words.intro(), words.stamp(61), words.USER, words.ANSWER]
    raw.train_from_iterator([*texts, *QUESTIONS, "\n\nvideo.\n\nFrame"] * 3, trainer)
    theirs = hf.transformers.PreTrainedTokenizerFast(tokenizer_object=raw)
    theirs.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = len(theirs)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, theirs


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("times", [[0, 1, 2], [0, 30, 60, 3599, 3600, 7325]])
def test_prompt(hf, side, monkeypatch, question, times):
    """The released text around frames at whole seconds, tokenised as one string."""
    folder, theirs = side
    module = import_module("transformers.models.smolvlm.processing_smolvlm")
    if module.num2words is None:  # a small package that few have
        monkeypatch.setattr(module, "num2words", words.number, raising=False)
    me = SimpleNamespace(
        image_seq_len=4, image_token=words.IMAGE, fake_image_token=words.AROUND,
        global_image_token=words.GLOBAL,
    )  # fmt: skip
    metadata = hf.transformers.video_utils.VideoMetadata(
        total_num_frames=30 * times[-1] + 45, fps=30.0, duration=times[-1] + 1.5,
        frames_indices=[30 * time for time in times],
    )  # fmt: skip
    video = {"pixel_values": np.zeros((1, len(times), 3, 2, 2)), "video_metadata": [metadata]}
    written = module.SmolVLMProcessor.replace_video_token(me, video, 0)
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = theirs.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=module.DEFAULT_CHAT_TEMPLATE,
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    expected = theirs(text.replace("<video>", written), add_special_tokens=False)["input_ids"]
    model = load(folder, abstract=True, frames=len(times), seconds=metadata.duration)
    ids = [*model.prefix, *model.encode.of.video_ids(times), *model.tokenize(question)]
    assert ids == expected


def test_sizes(hf):
    """Of frames before they are squares, for the longest edge."""
    video = import_module("transformers.models.smolvlm.video_processing_smolvlm")
    for height, width in np.random.default_rng(0).integers(1, 2200, (300, 2)).tolist():
        frames = SimpleNamespace(size=lambda h=height, w=width: (1, 3, h, w))
        expected = video.get_resize_output_image_size(frames, resolution_max_side=512)
        assert smolvlm.resized(height, width, 512) == expected


@pytest.mark.parametrize("size", [(54, 96), (96, 40), (96, 96), (2, 96)])
def test_pixels_of_a_square(hf, size):
    """Of pictures whose longest edge is right already; at most one grey level apart."""
    module = hf.transformers.models.smolvlm.image_processing_pil_smolvlm
    mean, std = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]
    processor = module.SmolVLMImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": 96}, do_image_splitting=False,
        image_mean=mean, image_std=std,
    )  # fmt: skip
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = processor(images=[picture], return_tensors="np")["pixel_values"][0, 0]
    grey = smolvlm.square(jnp.asarray(picture[None]), 96)
    found = smolvlm.Pixels(1 / 255, tuple(mean), tuple(std))(grey)[0]
    apart = np.abs(expected.transpose(1, 2, 0) - found) * np.array(std) * 255
    assert apart.max() < 1.01 and (apart > 0.01).mean() < 0.001
