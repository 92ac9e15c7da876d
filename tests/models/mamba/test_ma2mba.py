"""Video-Ma2mba through `load`, `Session` and the command line: states in place of a memory."""

import json
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import MEAN, STD, ids_of, write_ma2mba

import jaxmem as jm
from jaxmem import saves
from jaxmem.data.world.files import held_out
from jaxmem.decoder.decoder import embed, logits, rms_norm
from jaxmem.decoder.generate import came_again
from jaxmem.experiments.stream.__main__ import main
from jaxmem.models.encoders import clip
from jaxmem.models.mamba import mamba2

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

QUESTION, SIDE, LAYERS = "what is shown", 16, 3
STATE = LAYERS * 4 * (8 * 8 * 8 + 3 * (64 + 2 * 8))  # h [H, P, N] and a tail [K - 1, channels]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_ma2mba(tmp_path_factory.mktemp("ma2mba") / "tiny-ma2mba")


@pytest.fixture(scope="module")
def model(folder):
    return jm.load(folder, dtype="float32", max_new=4)


def pieces(model, count, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (count, 1, SIDE, SIDE, 3), np.uint8)
    samples = np.zeros(model.media.sample_rate, np.float32)
    return [SimpleNamespace(frames=each, samples=samples) for each in frames]


def one_pass(model, x):
    """The last layer's output of everything at once, layers written out one by one."""
    h, params, config = x, model.params["decoder"], model.decoder
    (mixer,) = config.stacks
    for number in range(config.layers):
        layer = jax.tree.map(lambda w, l=number: w[l], params["mixers"][0])
        inner = rms_norm(h, layer["norm"], config.norm_eps)
        h = h + mixer.chunk(layer["mixer"], mixer.init(32), inner, jnp.ones(len(h), bool))[0]
    return h


def features(model, watched):
    """Cells of 2 x 2 patches, averaged after the block before the last, then projected."""
    frames = np.concatenate([piece.frames for piece in watched])
    pixels = ((frames / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    x, _ = clip.encode(model.params["vision"], model.encode.of.config.vision, jnp.asarray(pixels))
    x = x[:, 1:].reshape(len(frames), 2, 2, 2, 2, -1).mean((2, 4)).reshape(len(frames) * 4, -1)
    fc1, fc2 = (model.params["projector"][name] for name in ("fc1", "fc2"))
    x = jax.nn.gelu(x @ fc1["kernel"] + fc1["bias"][None], approximate=False)
    return x @ fc2["kernel"] + fc2["bias"][None]


def test_a_stream_is_the_published_layout_in_one_pass(folder, model):
    """Five frames in chunks of two, a question, its answer: logits and greedy tokens."""
    watched = pieces(model, 5)
    session = jm.Session(model, jm.OmniMem(64), chunk_pieces=2).watch(watched)
    before = jax.tree.map(np.array, session.carry)
    reply = session.ask(QUESTION)
    assert "".join(session.answer(QUESTION)) == reply.text
    jax.tree.map(np.testing.assert_array_equal, session.carry, before)
    text = "<|system|>You watch a video and answer questions about it.<|endoftext|><|user|>"
    front, back = ids_of(folder, text), ids_of(folder, f"{QUESTION}<|endoftext|><|assistant|>")
    assert model.prefix.tolist() == front and model.tokenize(QUESTION).tolist() == back
    assert session.tokens == 5 * 4 == 5 * model.tokens_per_piece and model.frame == (2, 2)
    params, program = model.params["decoder"], session.program
    rows = jm.question_rows(model.params, back, program=program)
    made = jm.ask(session.bound, session.carry, rows, program=program, max_new=4).ids.tolist()
    text = [embed(params, jnp.asarray(ids)) for ids in (front, back + made[:-1])]
    h = one_pass(model, jnp.concatenate([text[0], features(model, watched), text[1]]))
    scores = np.asarray(logits(params, model.decoder, h[-len(made) :]))
    np.testing.assert_allclose(reply.logits, scores[0], atol=1e-4 * np.abs(scores[0]).max())
    assert scores.argmax(1).tolist() == made
    end = made.index(0) if 0 in made else len(made)
    assert reply.text == model.detokenize(made[:end]) and reply.text


def test_state_bytes_are_all_that_is_held(model):
    """Whatever the memory, which holds nothing: the bytes of minute 1 are those of hour 10."""
    for memory in (jm.OmniMem(64), jm.Recent(8), jm.WithBank(jm.Recent(8), 400), jm.Full(10)):
        session = jm.Session(model, memory)
        assert session.nbytes == session.footprint.device == STATE and session.layers() == []
        assert sum(x.nbytes for x in jax.tree.leaves(session.carry)) - STATE < 64
        assert [len(layer.time) for layer in session.kept()] == [0]
    assert jm.memory_for(model, "omnimem", "64KiB")  # slots cost nothing
    with pytest.raises(ValueError, match="no layer of the decoder attends, so memory Hermes"):
        jm.Session(model, jm.Hermes(64))


def test_saved_restored_and_branched(model, tmp_path):
    """Two futures of one past; the one that went through a disc is the same bit by bit."""
    first, second = pieces(model, 3), pieces(model, 4, seed=1)
    session = jm.Session(model, jm.Recent(8), chunk_pieces=2).watch(first)
    session.save(tmp_path / "saved")
    kept = jm.branch(session.carry)
    session.watch(second)
    other = jm.Session.restore(tmp_path / "saved", model, jm.Recent(8))
    jax.tree.map(np.testing.assert_array_equal, other.carry, kept)
    other.watch(second)
    jax.tree.map(np.testing.assert_array_equal, other.carry, session.carry)
    assert other.ask(QUESTION).text == session.ask(QUESTION).text


def test_other_layers_are_refused_before_a_saved_stream_is_read(model, tmp_path, capsys):
    session = jm.Session(model, jm.Recent(8))
    session.save(tmp_path / "saved")
    more = {"answers": {}}  # as the command line saves it
    saves.write(tmp_path / "run", {"recent": session.part()}, more=more)
    for name in ("saved", "run"):  # nothing of it is looked at
        next((tmp_path / name).glob("*/arrays.bin")).write_bytes(b"")
    shape = jm.load("tiny")
    mixer, here = model.decoder.stacks[0], shape.decoder.layers
    said = f"decoder whose layers are 3 {mixer}, this one's are {here} attention: restore it"
    with pytest.raises(ValueError, match=re.escape(said)):
        jm.Session.restore(tmp_path / "saved", shape, jm.Recent(8))
    assert main(["--memory", "recent", "--resume", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match="is damaged"):
        jm.Session.restore(tmp_path / "saved", model, jm.Recent(8))


def test_a_state_that_is_not_finite_has_a_time_and_a_layer(model):
    """From the fifth second on the second layer puts out infinity: the state after it breaks."""
    session = jm.Session(model, jm.Recent(8)).watch(pieces(model, 4))
    assert session.ask(QUESTION).text and not session.events
    mixer = model.params["decoder"]["mixers"][0]["mixer"]
    bad = mixer | {"d": mixer["d"].at[1].set(np.inf)}
    stack = model.params["decoder"]["mixers"][0] | {"mixer": bad}
    broken = model._replace(
        params=model.params | {"decoder": model.params["decoder"] | {"mixers": (stack,)}}
    )
    carry, session = session.carry, jm.Session(broken, jm.Recent(8))
    session.watch(pieces(model, 4))
    session.carry = carry
    session.watch(pieces(model, 1))
    said = "the state of decoder layer 3 of 3 is not finite from 4 s on."
    assert [(e.time, e.kind, e.message) for e in session.events] == [(4.0, "not_finite", said)]
    for ask in (session.ask, lambda words: list(session.answer(words))):
        with pytest.raises(ValueError, match=said):
            ask(QUESTION)


def test_an_answer_ends_where_five_tokens_come_again(model):
    """By a plain loop; and an answer of one token for ever is six of them long."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        ids, written = draw.integers(0, 2, 12), int(draw.integers(1, 13))
        runs = [tuple(ids[i : i + 3]) for i in range(max(written - 2, 0))]
        want = bool(runs) and runs[-1] in runs[:-1]
        assert bool(came_again(ids, np.int32(written), 3)) == want
    assert not came_again(np.zeros(12, int), np.int32(12), 0)
    decoder = model.params["decoder"]
    still = decoder | {"norm": {"scale": jnp.zeros_like(decoder["norm"]["scale"])}}
    said = lambda ids: " ".join(str(i) for i in ids)
    one = model._replace(params=model.params | {"decoder": still}, max_new=20, end=None)
    session = jm.Session(one._replace(detokenize=said), jm.Recent(8)).watch(pieces(model, 1))
    assert session.ask(QUESTION).text == "0 0 0 0 0 0"
    assert "".join(session.answer(QUESTION)) == "0 0 0 0 0 0"
    free = jm.Session(one._replace(detokenize=said, stop_run=0), jm.Recent(8))
    assert len(free.watch(pieces(model, 1)).ask(QUESTION).text.split()) == 20


def test_the_command_line_streams_a_clip(folder, tmp_path, capsys):
    """With the default memory, which holds nothing here: the report counts the states."""
    clip_ = held_out(1, 4, tmp_path, count=1)[0]
    out = ["--model", folder, "--video", clip_, "--dtype", "float32", "--max-new", 3]
    out += ["--no-prompt", "--out", tmp_path / "out", "--ask", "2: what is shown"]
    status = main([*map(str, out), "--ask", "end: what is shown now"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"] == "tiny-ma2mba" and report["tokens"] == 4 * 4
    assert report["end"]["kind"] == "end" and report["compilations"]["streaming"] == 0
    (result,) = report["results"]
    assert result["nbytes"] == result["state_nbytes"] == report["full_bytes"] == STATE
    assert (result["slots"], result["kept"]) == ([], {})
    assert [a["time"] for a in result["answers"]] == [2, 4]
    assert all(a["answer"] and a["answer"] in captured.out for a in result["answers"])
    assert "states, no slots" in captured.out and "of states, never changing" in captured.out


@pytest.mark.slow
def test_the_command_line_compares_memories_that_hold_nothing(folder, tmp_path, capsys):
    clip_ = held_out(1, 2, tmp_path, count=1)[0]
    words = f"--model {folder} --video {clip_} --dtype float32 --max-new 2 --no-prompt"
    words += f" --compare omnimem,rekv,full --budget 64KiB --out {tmp_path / 'out'}"
    assert main([*words.split(), "--ask", "end: what is shown"]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {result["nbytes"] for result in report["results"]} == {STATE}
    assert len({result["answers"][0]["answer"] for result in report["results"]}) == 1


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("vision_feature_layer",), -1, "vision_feature_layer is -1"),
        (("projector_hidden_act",), "relu", "projector_hidden_act is 'relu'"),
        (("text_config", "model_type"), "llama", "text_config has model_type 'llama'"),
        (("text_config", "layer_types"), ["mamba2", "attention", "mamba2"], "layer 2 of 3 is 'att"),
        (("text_config", "layer_types"), ["mamba2"] * 2, "layer_types names 2 layers"),
        (("vision_config", "model_type"), "siglip", "the vision encoder has model_type 'siglip'"),
        (("vision_config", "hidden_act"), "gelu", "hidden_act of the vision encoder is 'gelu'"),
        (("vision_config", "image_size"), 12, "3 patches a side"),
        (
            ("vision_config", "patch_size"),
            0,
            "^patch_size is 0 in .*, expected a whole number from",
        ),
        (("vision_config", "image_size"), True, "^image_size is True in .*, expected a whole numb"),
        (("text_config", "num_hidden_layers"), 4, "missing"),
        (
            ("text_config", "tie_word_embeddings"),
            [],
            r"^tie_word_embeddings is \[\] in config.json",
        ),
        (
            ("video_token_id",),
            100,
            "^video_token_id is 100 in config.json, expected a token of the",
        ),
        (("video_token_id",), 7, "the chat template wrote the placeholder 7"),
    ],
)
def test_other_settings_are_refused(folder, tmp_path, where, value, message):
    target = shutil.copytree(folder, tmp_path / "x")
    raw = json.loads((target / "config.json").read_text())
    *parents, key = where
    part = raw
    for name in parents:
        part = part[name]
    part[key] = value
    (target / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        jm.load(target)


def test_a_model_of_text_says_what_loads_it(tmp_path):
    config = {"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 10}
    for one in (config, {"ssm_cfg": {"layer": "Mamba2"}}):
        (tmp_path / "config.json").write_text(json.dumps(one))
        with pytest.raises(
            ValueError, match=r"sees no video: .*jaxmem\.models\.mamba\.mamba2\.load"
        ):
            jm.load(tmp_path)
    assert mamba2.load
