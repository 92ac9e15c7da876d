"""Tiny directories of video-SALMONN 2+ with the released keys and names: rows and positions.

What is expected is written out from the facts about the released checkpoints; both bases are
loaded, streamed with sound through a `Session` and asked.
"""

import json
import re
import wave

import jax
import numpy as np
import pytest
from checkpoints import MEAN, STD, write_checkpoint
from passes import LOGITS, close, one_pass, pieces_of
from safetensors.numpy import load_file, save_file

import jaxmem as jm
from jaxmem.experiments.stream.__main__ import main
from jaxmem.feeding import open_for
from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.memory.baselines import Full
from jaxmem.models.base import for_frames
from jaxmem.models.encoders.vision_parts import patchify
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.prompt import Plan
from jaxmem.models.salmonn.config import read_config
from jaxmem.models.salmonn.salmonn import hear

pytest.importorskip("jinja2")

BASES = ("qwen2_5_vl", "qwen3_vl")
WHISPER = {
    "model_type": "whisper", "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
    "encoder_ffn_dim": 20, "d_model": 16, "max_source_positions": 150, "second_per_window": 0.5,
    "activation_function": "gelu", "second_stride": 0.5,
}  # fmt: skip
BERT = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 28,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "encoder_width": 16, "cross_attention_freq": 1,
    "query_length": 1, "out_hidden_size": 48,
}  # fmt: skip
SECONDS, SOUNDS = 3, 6  # of a clip, and its tokens
FRAMES, GAP = 4, 0.75  # of a clip, of two pictures each; seconds between them
CELLS, SIZE = (2, 3), (16, 24)  # tokens and pixels of a frame
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
QUESTION = "what is shown now?"
AFTER = f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
LETTERS = sorted({*SYSTEM, *AFTER, *"0123456789.<> seconds"})
ADDED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<|audio_pad|>",
)  # fmt: skip
"""After the vocabulary; that of sound is the last, and the embedding has rows to spare."""
IDS = {text: i for i, text in enumerate((*LETTERS, *ADDED))}
START, END, IMAGE, VIDEO, AUDIO_PAD = (IDS[text] for text in ADDED[3:])


def ids_of(text):
    """A token for each letter and for each added token."""
    return [IDS[part] for part in re.findall(r"<\|\w+\|>|.", text, re.DOTALL)]


def slow_tokenizer(folder):
    """The files of the slow tokenizer in place of tokenizer.json; no letters are merged."""
    (folder / "tokenizer.json").unlink()
    stored = {" ": "\u0120", "\n": "\u010a"}  # how byte-level tokenizers write them
    vocab = {stored.get(letter, letter): IDS[letter] for letter in LETTERS}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps({text: IDS[text] for text in ADDED}))
    end = {"eos_token_id": [IDS["<|im_end|>"], IDS["<|endoftext|>"]]}
    (folder / "generation_config.json").write_text(json.dumps(end))


def released_names(wide):
    """Stored names to shapes, besides the base's."""
    bins, width, inner = (WHISPER[k] for k in ("num_mel_bins", "d_model", "encoder_ffn_dim"))
    own, mlp = BERT["hidden_size"], BERT["intermediate_size"]
    shapes = {
        "conv1.weight": (width, bins, 3), "conv1.bias": (width,),
        "conv2.weight": (width, width, 3), "conv2.bias": (width,),
        "embed_positions.weight": (150, width), "q_tokens": (1, 1, own),
        "layer_norm.weight": (width,), "layer_norm.bias": (width,),
        "audio_proj.weight": (wide, own), "audio_proj.bias": (wide,),
        "qformer.bert.embeddings.LayerNorm.weight": (own,),
        "qformer.bert.embeddings.LayerNorm.bias": (own,),
        "qformer.bert.embeddings.position_ids": (1, 8),
    }  # fmt: skip

    def dense(name, outputs, inputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes.update({f"{name}.bias": (outputs,)} if bias else {})

    def norm(name, size):
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    for n in range(WHISPER["encoder_layers"]):
        for part in ("q", "k", "v", "out"):
            dense(f"layers.{n}.self_attn.{part}_proj", width, width, bias=part != "k")
        dense(f"layers.{n}.fc1", inner, width)
        dense(f"layers.{n}.fc2", width, inner)
        norm(f"layers.{n}.self_attn_layer_norm", width)
        norm(f"layers.{n}.final_layer_norm", width)
    for n in range(BERT["num_hidden_layers"]):
        at = f"qformer.bert.encoder.layer.{n}"
        for part, source in (("attention", own), ("crossattention", width)):
            dense(f"{at}.{part}.self.query", own, own)
            dense(f"{at}.{part}.self.key", own, source)
            dense(f"{at}.{part}.self.value", own, source)
            dense(f"{at}.{part}.output.dense", own, own)
            norm(f"{at}.{part}.output.LayerNorm", own)
        dense(f"{at}.intermediate_query.dense", mlp, own)
        dense(f"{at}.output_query.dense", own, mlp)
        norm(f"{at}.output_query.LayerNorm", own)
    return shapes


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """A directory of each base as released."""
    root, made = tmp_path_factory.mktemp("released"), {}

    def get(base):
        if base in made:
            return made[base]
        target = write_checkpoint(golden, base, root / base)
        tensors, rng = load_file(target / "model.safetensors"), np.random.default_rng(3)
        prefix = "audio." if base == "qwen2_5_vl" else "model.audio."
        for name, shape in released_names(48).items():
            tensors[prefix + name] = 0.2 * rng.normal(size=shape).astype(np.float32)
        config = json.loads((target / "config.json").read_text())
        config["audio_config"] = WHISPER | {"qformer_config": BERT}
        config |= {"audio_token_id": AUDIO_PAD, "video_token_id": VIDEO, "image_token_id": IMAGE}
        config |= {"vision_start_token_id": START, "vision_end_token_id": END}
        if base == "qwen2_5_vl":  # text settings at the top level
            text = config.pop("text_config")
            rope = text.pop("rope_parameters")
            sections = {"type": "mrope", "mrope_section": rope["mrope_section"]}
            config = text | config | {"rope_theta": rope["rope_theta"], "rope_scaling": sections}
            config["architectures"] = ["video_SALMONN2_plus"]
            config["vision_config"]["tokens_per_second"] = 4  # not used
            tensors = {
                name.replace("model.visual.", "visual.").replace(
                    "model.language_model.", "model."
                ): x
                for name, x in tensors.items()
            }
        else:  # selection layers of the training, not made by default
            gone = np.zeros((3,), np.float32)
            tensors["model.language_model.layers.0.ttt_norm.weight"] = gone
        slow_tokenizer(target)
        save_file(tensors, target / "model.safetensors")
        (target / "config.json").write_text(json.dumps(config))
        made[base] = target
        return target

    return get


def shares(count, even):
    """Tokens of sound of every frame."""
    if even:
        return [SOUNDS // count + (i < SOUNDS % count) for i in range(count)]
    found = [int((i + 1) * GAP * 2) - int(i * GAP * 2) for i in range(count - 1)]
    return [*found, int(count * GAP * 2) - sum(found)]


def on_one_clock(count, even=False):
    """(token, modality, position) of a whole prompt of the Qwen2.5-VL base, as trained."""
    before = [*ids_of(SYSTEM), START]
    rows, begin, j = [(t, TEXT, [i] * 3) for i, t in enumerate(before)], len(before), 0
    for i, heard in enumerate(shares(count, even)):
        for r in range(CELLS[0]):
            for c in range(CELLS[1]):
                rows.append((VIDEO, VISION, [begin + int(i * GAP * 2), begin + r, begin + c]))
        for _ in range(heard):
            rows.append((AUDIO_PAD, AUDIO, [begin + j, begin, begin + j]))
            j += 1
    at = 1 + max(row[2][0] for row in rows)
    after = [END, *ids_of(AFTER)]
    return rows + [(t, TEXT, [at + i] * 3) for i, t in enumerate(after)]


def as_generated(count):
    """The same rows at the positions that the released `generate` computes."""
    rows = on_one_clock(count)
    begin, (h, w) = len(ids_of(SYSTEM)) + 1, CELLS
    at = begin + max(2 * (count - 1), h - 1, w - 1) + 1
    found = []
    for i, (token, kind, pos) in enumerate(rows):
        n = i - begin
        if 0 <= n < count * h * w:
            pos = [begin + 2 * (n // (h * w)), begin + n % (h * w) // w, begin + n % w]
        elif n >= 0:
            pos = [at + n - count * h * w] * 3
        found.append((token, kind, pos))
    return found


def timed(count, group=1):
    """The rows of the Qwen3-VL base: stamp, frames of a step, all their sound."""
    rows, heard = [], shares(count, even=False)

    def text(ids):
        at = max((max(row[2]) for row in rows), default=-1) + 1
        rows.extend((t, TEXT, [at + i] * 3) for i, t in enumerate(ids))

    text(ids_of(SYSTEM))
    for first in range(0, count, group):
        mean = (first + 0.25) * GAP  # of the first frame's two pictures
        text([*ids_of(f"<{mean:.1f} seconds>"), START])
        at = rows[-1][2][0] + 1
        for i in range(group):
            for r in range(CELLS[0]):
                for c in range(CELLS[1]):
                    rows.append((VIDEO, VISION, [at + i, at + r, at + c]))
        at = max(max(row[2]) for row in rows) + 1
        for j in range(sum(heard[first : first + group])):
            rows.append((AUDIO_PAD, AUDIO, [at + j] * 3))
        text([END])
    text(ids_of(AFTER))
    return rows


def features(config, params, pieces):
    """Of all frames, then of all sound; and what DeepStack adds."""
    vision = config.base.vision
    frames = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 255
    pixels = (frames - np.array(MEAN, "f")) / np.array(STD, "f")
    shape = {"patch": vision.patch, "temporal": vision.temporal, "merge": vision.merge}
    grid = (len(frames) // 2, *(side // vision.patch for side in SIZE))
    mel = np.stack([LogMel(16)(p.samples, None) for p in pieces])
    see = jax.jit(lambda p, x: config.family.encode(p, config.base, x, [grid]))
    seen = see(params, patchify(pixels, **shape))
    heard = np.asarray(jax.jit(lambda p, x: hear(p, config, x))(params, mel))
    heard, deep = heard.reshape(-1, heard.shape[-1]), None
    if config.family.__name__.endswith("qwen3_vl"):
        deep = np.pad(seen.deep, ((0, 0), (0, len(heard)), (0, 0)))
        seen = seen.tokens
    return np.concatenate([seen, heard]), deep


CASES = {
    "trained": ("qwen2_5_vl", 2, {}, on_one_clock),
    "even": pytest.param(
        *("qwen2_5_vl", 1, {"sharing": "even"}, lambda n: on_one_clock(n, even=True)),
        marks=pytest.mark.slow,
    ),
    "generated": pytest.param(
        *("qwen2_5_vl", 2, {"inference_frames": 2 * FRAMES}, as_generated), marks=pytest.mark.slow
    ),
    "timed": pytest.param("qwen3_vl", 2, {}, timed, marks=pytest.mark.slow),
    "steps": pytest.param(
        *("qwen3_vl", 2, {"group": 2}, lambda n: timed(n, group=2)), marks=pytest.mark.slow
    ),
}


def check_rows(session, kinds, pos, seen):
    """What every layer holds are the rows of a prompt, between its first text and `seen`."""
    kv, layers = session.carry.state.slots.kv, session.model.decoder.layers
    own = slice(len(session.model.prefix), seen)  # the text before the video is kept apart
    for layer in range(layers):  # rows lie in the order of their arrival
        held, kind = (
            np.asarray(x).reshape(layers, -1, x.shape[-1])[layer]
            for x in (kv.pos[:, 0], kv.modality)
        )
        np.testing.assert_array_equal(kind[kind[:, 0] != 0, 0], kinds[own])
        np.testing.assert_array_equal(held[kind[:, 0] != 0], pos[own])


@pytest.mark.parametrize("base, clips, options, expected", CASES.values(), ids=CASES)
def test_a_stream_with_sound_is_the_released_prompt(folder, base, clips, options, expected):
    where, fps = folder(base), 2 / GAP
    model = jm.load(where, dtype="float32", fps=fps, max_new=2, **options)
    model = for_frames(model, SIZE)
    pieces = pieces_of(model, SIZE, clips)
    assert len(pieces[0].samples) == 16_000 * SECONDS and len(pieces[0].frames) == 2 * FRAMES
    rows = expected(clips * FRAMES)
    ids, kinds, pos = (np.array(x, np.int32) for x in zip(*rows, strict=True))
    seen = len(rows) - len(ids_of(AFTER)) - (base == "qwen2_5_vl")

    session = jm.Session(model, Full(clips * model.tokens_per_piece + 64), chunk_pieces=1)
    session.watch(pieces)
    check_rows(session, kinds, pos, seen)
    assert model.prefix.tolist() == ids[: len(model.prefix)].tolist()
    assert model.tokenize(QUESTION).tolist() == ids[seen:].tolist()
    reply = session.ask(QUESTION)

    place = np.full(len(ids), -1, np.int32)
    place[kinds == VISION] = np.arange((kinds == VISION).sum())
    place[kinds == AUDIO] = (kinds == VISION).sum() + np.arange((kinds == AUDIO).sum())
    assert (kinds == AUDIO).sum() == clips * SOUNDS
    config = read_config(json.loads((where / "config.json").read_text()))
    whole = Plan(ids, place, pos, kinds.astype(np.int8), pos.max(0) + 1)
    passed = one_pass(
        model.params["decoder"], model.decoder, whole, *features(config, model.params, pieces)
    )
    close(reply.logits, passed.logits[-1], LOGITS)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A file of sound alone: a clip, and a third of one."""
    path = tmp_path_factory.mktemp("sound") / "talk.wav"
    samples = np.random.default_rng(5).normal(size=16_000 * (SECONDS + 1))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((3000 * samples).clip(-32768, 32767).astype(np.int16).tobytes())
    return path


def sound_alone(base):
    """Rows of the prompt: one pair of vision tokens around all sound, padded to whole clips."""
    before, after = [*ids_of(SYSTEM), START], [END, *ids_of(AFTER)]
    begin, heard = len(before), 2 * SOUNDS
    rows = [(t, TEXT, [i] * 3) for i, t in enumerate(before)]
    last = 0 if base == "qwen2_5_vl" else 1  # there it stands like text
    rows += [(AUDIO_PAD, AUDIO, [begin + j, begin + j, begin + last * j]) for j in range(heard)]
    return rows + [(t, TEXT, [begin + heard + i] * 3) for i, t in enumerate(after)]


@pytest.mark.parametrize(
    "base", [n if n == "qwen3_vl" else pytest.param(n, marks=pytest.mark.slow) for n in BASES]
)
def test_a_file_of_sound_alone_is_the_released_prompt(folder, recording, base, tmp_path):
    model = jm.load(folder(base), dtype="float32", fps=2 / GAP, max_new=2)
    with open_for(model, recording) as reader:
        pieces = list(reader)
    assert [piece.frames.shape for piece in pieces] == [(2 * FRAMES, 0, 0, 3)] * 2
    rows = sound_alone(base)
    ids, kinds, pos = (np.array(x, np.int32) for x in zip(*rows, strict=True))
    seen = len(rows) - 1 - len(ids_of(AFTER))
    session = jm.Session(model, Full(64), chunk_pieces=1).watch(recording)
    check_rows(session, kinds, pos, seen)
    assert session.model.prefix.tolist() == ids[: len(ids_of(SYSTEM)) + 1].tolist()
    assert session.model.tokenize(QUESTION).tolist() == ids[seen:].tolist()
    reply = session.ask(QUESTION)
    session.save(tmp_path / "saved")
    again = jm.Session.restore(tmp_path / "saved", model, Full(64))
    np.testing.assert_array_equal(again.ask(QUESTION).logits, reply.logits)

    config = read_config(json.loads((folder(base) / "config.json").read_text()))
    mel = np.stack([LogMel(16)(piece.samples, None) for piece in pieces])
    heard = np.asarray(jax.jit(lambda p, x: hear(p, config, x))(model.params, mel))
    place = np.where(kinds == AUDIO, np.cumsum(kinds == AUDIO) - 1, -1)
    whole = Plan(ids, place, pos, kinds.astype(np.int8), pos.max(0) + 1)
    heard = heard.reshape(-1, heard.shape[-1])
    passed = one_pass(model.params["decoder"], model.decoder, whole, heard)
    close(reply.logits, passed.logits[-1], LOGITS)


@pytest.mark.parametrize("base", [BASES[0], pytest.param(BASES[1], marks=pytest.mark.slow)])
def test_sound_alone_from_the_command_line(folder, recording, base, tmp_path):
    words = ["--model", str(folder(base)), "--video", str(recording), "--fps", f"{2 / GAP}"]
    words += ["--dtype", "float32", "--max-new", "2", "--no-prompt", "--out", str(tmp_path)]
    assert main([*words, "--memory", "omnimem", "--budget", "40", "--ask", "end: what now?"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (result,) = report["results"]
    assert report["tokens"] == 2 * SOUNDS and report["compilations"]["streaming"] == 0
    assert {kind for kind, count in result["kept"].items() if count} == {"audio"}


def test_positions_of_generate_need_pictures(folder, recording):
    more = {"dtype": "float32", "fps": 2 / GAP, "inference_frames": 4}
    session = jm.Session(jm.load(folder("qwen2_5_vl"), **more), Full(64))
    with pytest.raises(ValueError, match="inference_frames is 4, and this source has no pictures"):
        session.watch(recording)
