"""Video-Ma2mba put together of transformers' CLIPVisionModel and Mamba2ForCausalLM, streamed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from cases import SURE, spread
from checkpoints import MEAN, STD, ids_of, write_ma2mba
from passes import LOGITS, close
from safetensors.numpy import load_file, save_file

import jaxmem as jm
from jaxmem.models.hf.config import read_json

FRAMES, QUESTION = 7, "what is shown now"


def parts(hf, folder, seed, tied):
    """Their models in the sizes of a tiny checkpoint's config.json, and a projector."""
    torch, raw = hf.torch, read_json(folder)
    side = hf.transformers.CLIPVisionConfig(**raw["vision_config"])
    text = raw["text_config"] | {"tie_word_embeddings": tied, "chunk_size": 8}
    text = hf.transformers.Mamba2Config(**text, bos_token_id=None, eos_token_id=None)
    wide, width = text.hidden_size, side.hidden_size
    gelu = torch.nn.Sequential(
        torch.nn.Linear(width, wide), torch.nn.GELU(), torch.nn.Linear(wide, wide)
    )
    found = hf.transformers.CLIPVisionModel(side), hf.transformers.Mamba2ForCausalLM(text), gelu
    for each in found:
        spread(torch, each.float().eval(), seed)
    return found


def assembled(folder, tower, language, gelu):
    """Put what `save_pretrained` writes of each part under the names of the page."""
    tensors = {}
    for prefix, model in (("vision_tower.", tower), ("language_model.", language)):
        model.save_pretrained(folder / prefix)
        found = load_file(folder / prefix / "model.safetensors")
        tensors |= {prefix + name: value for name, value in found.items()}
    for at, number in ((0, 1), (2, 2)):
        for name, value in gelu[at].state_dict().items():
            tensors[f"multi_modal_projector.linear_{number}.{name}"] = value.numpy()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("seed", range(2))
def test_a_stream_is_one_pass_of_theirs(hf, tmp_path, seed):
    torch, tied = hf.torch, bool(seed)
    folder = write_ma2mba(tmp_path / "tiny")
    raw = read_json(folder) | {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(raw))
    tower, language, gelu = parts(hf, folder, seed, tied)
    assembled(folder, tower, language, gelu)
    frames = np.random.default_rng(seed).integers(0, 256, (FRAMES, 1, 16, 16, 3), np.uint8)
    pixels = ((frames[:, 0] / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    words = "<|system|>You watch a video and answer questions about it.<|endoftext|><|user|>"
    front, back = ids_of(folder, words), ids_of(folder, f"{QUESTION}<|endoftext|><|assistant|>")
    with torch.no_grad():
        seen = tower(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()), output_hidden_states=True)
        grid = seen.hidden_states[-2][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        small = torch.nn.functional.interpolate(grid, (2, 2), mode="bilinear")
        video = gelu(small.flatten(2).transpose(1, 2)).flatten(0, 1)
        text = language.get_input_embeddings()
        rows = torch.cat([text(torch.tensor(front)), video, text(torch.tensor(back))])
        want = language(inputs_embeds=rows[None]).logits[0, -1].numpy()
    model = jm.load(folder, dtype="float32", max_new=1)
    session = jm.Session(model, jm.OmniMem(16), chunk_pieces=3)
    samples = np.zeros(model.media.sample_rate, np.float32)
    reply = session.watch(SimpleNamespace(frames=f, samples=samples) for f in frames).ask(QUESTION)
    close(reply.logits, want, LOGITS)
    low, high = np.sort(want)[-2:]
    assert high - low < SURE * abs(want).max() or np.argmax(reply.logits) == np.argmax(want)
