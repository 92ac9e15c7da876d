"""A LLaVA-OneVision directory as a `Model`: prompts, streams, and older names of its weights."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import TEMPLATE, ids_of, write_checkpoint
from passes import LOGITS, Reference, close, one_pass, pieces_of, streamed
from safetensors.numpy import load_file, save_file

from jaxmem.decoder.sampling import Sampling
from jaxmem.models.base import penalised_ids
from jaxmem.models.hf import checkpoint
from jaxmem.models.hf.chat import read_chat
from jaxmem.models.hf.preprocessor import pixels_of, read_settings
from jaxmem.models.llava import onevision as family
from jaxmem.models.load import load

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

QUESTION = "what is shown"
PROMPT = TEMPLATE.replace("VIDEO", "<video>\n")


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """The reference checkpoint with a word tokenizer and a template like the public ones."""
    return write_checkpoint(
        golden, "llava_onevision", tmp_path_factory.mktemp("llava") / "tiny-onevision"
    )


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, dtype=jnp.float32, fps=2, max_new=5)


@pytest.fixture(scope="module")
def video(folder):
    """The placeholder's id."""
    return family.read_config(json.loads((folder / "config.json").read_text())).video


def test_prompt_from_the_template(folder, model, video):
    before = ids_of(folder, "<|im_start|>user")
    after = [video, *ids_of(folder, "what is shown<|im_end|><|im_start|>assistant")]
    np.testing.assert_array_equal(model.prefix, before)
    np.testing.assert_array_equal(model.tokenize(QUESTION), after)
    np.testing.assert_array_equal(model.answer_start, after[4:])
    np.testing.assert_array_equal(model.tokenize_text(QUESTION), after[1:4])
    found = penalised_ids(model, model.tokenize(QUESTION), Sampling(repetition_penalty=1.1))
    assert found is not None and found.shape == (model.decoder.vocab,)
    assert np.flatnonzero(found).tolist() == sorted({*before, *after})
    assert penalised_ids(model, model.tokenize("what"), Sampling(0.5, 0.5, 3)) is None
    (end,) = ids_of(folder, "<|im_end|>")
    assert model.end == (end, 1)
    assert model.detokenize(np.array(ids_of(folder, "what is<|im_end|>"))) == "what is"
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
    pieces = pieces_of(model, (side, side), 3)
    asked, sampling = model.tokenize(QUESTION), Sampling(0, repetition_penalty=3.0)
    plain = streamed(model, pieces, QUESTION, 5).ids.tolist()
    repeated = np.array(penalised_ids(model, asked, sampling))
    # The likeliest first token counts as one that was there: the penalty decides in any file.
    repeated[plain[0]] = True
    answer = streamed(model, pieces, QUESTION, 5, sampling=sampling, repeated=repeated)
    pixels = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 127.5 - 1
    see = jax.jit(lambda p, x: family.video_features(p, config, x))
    features = see(ref.params, jnp.asarray(pixels))
    prompt = [*model.prefix, *[config.video] * len(features), *asked[1:]]
    plan = family.prompt_plan(config, prompt + answer.ids[:-1].tolist())
    out = one_pass(ref.params["decoder"], config.decoder, plan, features).logits[-5:]
    close(answer.first, out[0], LOGITS)
    assert int(out[0].argmax()) == plain[0]
    occurred = {*model.prefix.tolist(), *asked.tolist(), plain[0]}
    for token, scores in zip(answer.ids.tolist(), np.array(out), strict=True):
        for i in occurred:
            scores[i] *= 3.0 if scores[i] < 0 else 1 / 3.0
        assert token == int(np.argmax(scores))
        occurred.add(token)
    assert answer.ids.tolist() != plain


def test_a_tied_checkpoint_keeps_its_logits(folder, video, tmp_path):
    """The newline's row in the embedding is none of the output matrix."""
    target = tmp_path / "tied"
    shutil.copytree(folder, target)
    raw = json.loads((target / "config.json").read_text())
    raw["text_config"]["tie_word_embeddings"] = True
    (target / "config.json").write_text(json.dumps(raw))
    stored = load_file(folder / "model.safetensors")
    own = load(target, dtype=jnp.float32)  # whatever the flag says, a stored matrix is used
    np.testing.assert_array_equal(own.params["decoder"]["head"]["kernel"], stored[family.HEAD].T)
    save_file({k: v for k, v in stored.items() if k != family.HEAD}, target / "model.safetensors")
    tied = load(target, dtype=jnp.float32)
    table = stored["language_model.model.embed_tokens.weight"]
    np.testing.assert_array_equal(tied.params["decoder"]["head"]["kernel"], table.T)
    rows = np.asarray(tied.params["decoder"]["embedding"]["embedding"])
    np.testing.assert_array_equal(rows[video], stored["image_newline"])
    np.testing.assert_array_equal(np.delete(rows, video, 0), np.delete(table, video, 0))
    shapes = load(target, dtype=jnp.float32, abstract=True)  # the copy is priced too
    assert shapes.decoder == tied.decoder
    assert jax.tree.map(jnp.shape, shapes.params) == jax.tree.map(jnp.shape, tied.params)


def test_equal_directories_are_one_program(folder, model):
    """What is static of two loads is equal: nothing compiles again."""
    again = load(folder, dtype=jnp.float32, fps=2, abstract=True)
    assert again.encode == model.encode and hash(again.encode) == hash(model.encode)
    assert again.encode != load(folder, fps=1, abstract=True).encode
    assert (
        model.frame
        == (family.read_config(json.loads((folder / "config.json").read_text())).frame_side,) * 2
    )


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
    probe = np.zeros((1, 1, ref.config.vision.stack.width), np.float32)
    renamed["vision_tower.vision_model.head.probe"] = probe
    save_file(renamed, tmp_path / "model.safetensors")
    table = family.weight_table(ref.config)
    ignore = family.ignored(ref.config)
    params = checkpoint.load(tmp_path, table, renames=family.RENAMES, ignore=ignore)
    jax.tree.map(np.testing.assert_array_equal, params, ref.params)


def test_template_files(folder, video, tmp_path):
    target = tmp_path / "x"
    shutil.copytree(folder, target)
    (target / "chat_template.json").unlink()
    (target / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="no chat template in"):
        read_chat(target)
    settings = {"eos_token": {"content": "<|im_end|>"}, "chat_template": PROMPT}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    chat = read_chat(target)
    assert chat.end == tuple(ids_of(folder, "<|im_end|>"))
    before = chat.around("what", video).before
    assert before.tolist() == ids_of(folder, "<|im_start|>user")
    settings["chat_template"] = [{"name": "default", "template": "{{ bos_token }}<video> is"}]
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_chat(target).around("what", video).after.tolist() == ids_of(folder, "is")
    (target / "chat_template.jinja").write_text("{{ raise_exception('no videos') }}")
    with pytest.raises(ValueError, match="cannot write this prompt: no videos"):
        read_chat(target).around("what", video)
    (target / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json in"):
        read_chat(target)


def test_normalisation_and_frame_rate(folder, tmp_path):
    assert pixels_of(read_settings(tmp_path)).mean == (0.5, 0.5, 0.5)
    settings = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "rescale_factor": 0.01}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = pixels_of(read_settings(tmp_path))(jnp.full((1, 2, 2, 3), 50, jnp.uint8))
    np.testing.assert_allclose(found, np.full((1, 2, 2, 3), 2.0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"whole number of frames in each second, got 0\.5"):
        load(folder, fps=0.5)
