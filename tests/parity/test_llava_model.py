"""A LLaVA-OneVision directory as a `Model`: prompts, streams, and older names of its weights."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from passes import LOGITS, Reference, close, one_pass
from safetensors.numpy import load_file, save_file

from jaxmem.loop import Sampling, ask
from jaxmem.memory.full import full
from jaxmem.models.base import said_by
from jaxmem.models.hf.chat import around, read_chat
from jaxmem.models.hf.checkpoint import load
from jaxmem.models.llava import onevision as family
from jaxmem.models.llava.onevision_stream import read_pixels
from jaxmem.models.load import load
from jaxmem.session import Session, asked_rows

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] if c['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = {2: "<unk>", 3: "<image>", 4: "<video>", 5: "<|im_start|>", 6: "<|im_end|>"}
WORDS = ("user", "assistant", "what", "is", "shown")
QUESTION = "what is shown"


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """The reference checkpoint with a word tokenizer and a template like the public ones."""
    source = golden / "hf" / "llava_onevision"
    if not (source / "config.json").exists():
        pytest.skip(f"no config.json in {source}")
    target = tmp_path_factory.mktemp("llava") / "tiny-onevision"
    shutil.copytree(source, target)
    names = {**{i: f"w{i}" for i in range(100)}, **SPECIAL}
    names |= {10 + i: word for i, word in enumerate(WORDS)}
    model = tokenizers.models.WordLevel({n: i for i, n in names.items()}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 1]}))
    return target


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, dtype=jnp.float32, fps=2, max_new=5)


def test_prompt_from_the_template(folder, model):
    np.testing.assert_array_equal(model.prefix, [5, 10])
    np.testing.assert_array_equal(model.tokenize("what is shown"), [4, 12, 13, 14, 6, 5, 11])
    said = said_by(model, model.tokenize("what is shown"), Sampling(repetition_penalty=1.1))
    assert said is not None and said.shape == (100,)
    assert np.flatnonzero(said).tolist() == [4, 5, 6, 10, 11, 12, 13, 14]
    assert said_by(model, model.tokenize("what"), Sampling(0.5, 0.5, 3)) is None
    assert model.end == (6, 1) and model.detokenize(np.array([12, 13, 6])) == "what is"
    with pytest.raises(ValueError, match="2 times, expected once"):
        model.tokenize("what is <video>")
    with pytest.raises(ValueError, match="question is empty"):
        model.tokenize("  ")


def test_stream_is_the_offline_prompt(golden, model):
    """Three seconds in chunks of two, question: logits of one pass, and the tokens it writes.

    The tokens are greedy under a penalty of repetition; positive or negative, the logit of one that
    the prompt's text or the answer holds is as far lower as transformers makes it.
    """
    ref = Reference(golden / "hf" / "llava_onevision", family)
    config, side = ref.config, ref.config.vision.side
    rng = np.random.default_rng(0)
    pieces = [
        SimpleNamespace(
            frames=rng.integers(0, 256, (2, side, side, 3), np.uint8),
            samples=np.zeros(16_000, np.float32),
        )
        for _ in range(3)
    ]
    session = Session(model, full(3 * model.tokens_per_piece), chunk_pieces=2)
    session.watch(pieces[:1]).watch(pieces[1:])
    pixels = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 127.5 - 1
    see = jax.jit(lambda p, x: family.video_features(p, config, x))
    features, asked = see(ref.params, jnp.asarray(pixels)), model.tokenize(QUESTION)
    sampling = Sampling(0, repetition_penalty=3.0)
    rows = asked_rows(model, session.program, asked, session.pieces)
    more = {"program": session.program, "max_new": 5, "prefix": session.prefix}
    more |= {"sampling": sampling, "said": said_by(model, asked, sampling)}
    answer = ask(model.params, session.carry, rows, **more)
    prompt = [*model.prefix, *[config.video] * len(features), *asked[1:]]
    plan = family.prompt_plan(config, prompt + answer.ids[:-1].tolist())
    out = one_pass(ref.params["decoder"], config.decoder, plan, features).logits[-5:]
    close(answer.first, out[0], LOGITS)
    said, plain = {*model.prefix.tolist(), *asked.tolist()}, out.argmax(-1).tolist()
    for token, scores in zip(answer.ids.tolist(), np.array(out), strict=True):
        for i in said:
            scores[i] *= 3.0 if scores[i] < 0 else 1 / 3.0
        assert token == int(np.argmax(scores))
        said.add(token)
    assert answer.ids.tolist() != plain


def test_a_tied_checkpoint_keeps_its_logits(golden, folder, model, tmp_path):
    """The newline's row in the embedding is none of the output matrix."""
    target = tmp_path / "tied"
    shutil.copytree(folder, target)
    raw = json.loads((target / "config.json").read_text())
    raw["text_config"]["tie_word_embeddings"] = True
    (target / "config.json").write_text(json.dumps(raw))
    tied = load(target, dtype=jnp.float32)  # the stored head is ignored
    stored = load_file(folder / "model.safetensors")
    table = stored["language_model.model.embed_tokens.weight"]
    np.testing.assert_array_equal(tied.params["decoder"]["head"]["kernel"], table.T)
    rows = np.asarray(tied.params["decoder"]["embedding"]["embedding"])
    np.testing.assert_array_equal(rows[4], stored["image_newline"])
    np.testing.assert_array_equal(np.delete(rows, 4, 0), np.delete(table, 4, 0))


OLDER = {
    "transformers 4.52": lambda n: (
        n.removeprefix("language_model.")
        if "lm_head" in n
        else "model." + n.replace("language_model.model.", "language_model.")
    ),
    "public -hf": lambda n: n.replace("vision_tower.", "vision_tower.vision_model."),
    "LLaVA-NeXT": lambda n: (
        n.replace("language_model.lm_head.", "lm_head.")
        .replace("language_model.model.", "model.")
        .replace("vision_tower.", "model.vision_tower.vision_tower.vision_model.")
        .replace("multi_modal_projector.linear_1.", "model.mm_projector.0.")
        .replace("multi_modal_projector.linear_2.", "model.mm_projector.2.")
        .replace("image_newline", "model.image_newline")
    ),
}


@pytest.mark.parametrize("older", OLDER.values(), ids=OLDER)
def test_older_names(golden, tmp_path, older):
    ref = Reference(golden / "hf" / "llava_onevision", family)
    tensors = load_file(ref.folder / "model.safetensors")
    renamed = {older(name): tensor for name, tensor in tensors.items()}
    assert set(renamed) != set(tensors) and len(renamed) == len(tensors)
    renamed["vision_tower.vision_model.head.probe"] = np.zeros((1, 1, 32), np.float32)
    save_file(renamed, tmp_path / "model.safetensors")
    table = family.weight_table(ref.config)
    ignore = family.ignored(ref.config)
    params = load(tmp_path, table, renames=family.RENAMES, ignore=ignore)
    jax.tree.map(np.testing.assert_array_equal, params, ref.params)


def test_template_files(folder, tmp_path):
    target = tmp_path / "x"
    shutil.copytree(folder, target)
    (target / "chat_template.json").unlink()
    (target / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="no chat template in"):
        read_chat(target)
    settings = {"eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    chat = read_chat(target)
    assert chat.end == (6,) and around(chat, "what", 4)[0].tolist() == [5, 10]
    settings["chat_template"] = [{"name": "default", "template": "{{ bos_token }}<video> is"}]
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    assert around(read_chat(target), "what", 4)[1].tolist() == [13]
    (target / "chat_template.jinja").write_text("{{ raise_exception('no videos') }}")
    with pytest.raises(ValueError, match="cannot write this prompt: no videos"):
        around(read_chat(target), "what", 4)
    (target / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json in"):
        read_chat(target)


def test_normalisation_and_frame_rate(folder, tmp_path):
    assert read_pixels(tmp_path).mean == (0.5, 0.5, 0.5)
    settings = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "rescale_factor": 0.01}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = read_pixels(tmp_path)(jnp.full((1, 2, 2, 3), 50, jnp.uint8))
    np.testing.assert_allclose(found, np.full((1, 2, 2, 3), 2.0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"whole number of frames in each second, got 0\.5"):
        load(folder, fps=0.5)
