"""video-SALMONN 2+: what it hears, its two layouts, and streams as the one prompt they are."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_checkpoint
from passes import FEATURES, LOGITS, close, one_pass
from safetensors.numpy import load_file, save_file

from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.loop import ask
from jaxmem.memory.full import full
from jaxmem.models.base import for_frames
from jaxmem.models.encoders.vision_parts import patchify
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.checkpoint import read_json
from jaxmem.models.hf.preprocessor import Limits, smart_resize
from jaxmem.models.hf.prompt import Plan
from jaxmem.models.load import load
from jaxmem.models.qwen import qwen3_vl
from jaxmem.models.salmonn import salmonn
from jaxmem.models.salmonn.stream import MAX_PIXELS
from jaxmem.session import Session, asked_rows

pytest.importorskip("jinja2")

SIZE, QUESTION, SOUND = (16, 40), "what is shown", 98  # 2 x 5 tokens a frame
CELLS = (2, 5)
RATE, CLIP = 16_000, 12_800  # samples of the tiny clip: 0.8 s, 40 rows, 8 tokens
FPS = 7.5  # three frames of two pictures in a clip; 2, 3 and 3 tokens of sound
FORMER = (("layernorm.", "embeddings.LayerNorm."), (".attention.attention.", ".attention.self."),
          (".crossattention.attention.", ".crossattention.self."))  # fmt: skip


def bert_name(name):
    """A name of transformers' BLIP-2 module as BERT's."""
    for old, new in FORMER:
        name = name.replace(old, new)
    return name


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """A directory of a base's weights beside the references of Whisper and of the Q-Former."""
    root, made = tmp_path_factory.mktemp("salmonn"), {}

    def get(base):
        if base in made:
            return made[base]
        hf = golden / "hf"
        for name in ("whisper", "qformer"):
            if not (hf / name / "model.safetensors").exists():
                pytest.skip(f"no model.safetensors in {hf / name}")
        target = write_checkpoint(golden, base, root / base)
        tensors = load_file(target / "model.safetensors")
        for name, x in load_file(hf / "whisper" / "model.safetensors").items():
            if name.startswith("encoder."):
                tensors["audio_encoder." + name.removeprefix("encoder.")] = x
        for name, x in load_file(hf / "qformer" / "model.safetensors").items():
            own = "audio_query_tokens" if name == "query_tokens" else "audio_qformer."
            tensors[own if own[-1] != "." else own + bert_name(name)] = x
        rng = np.random.default_rng(0)
        tensors["audio_projector.weight"] = rng.normal(size=(48, 24)).astype("f") / 5
        tensors["audio_projector.bias"] = rng.normal(size=48).astype("f") / 5
        save_file(tensors, target / "model.safetensors")
        raw = read_json(target)
        raw["model_type"] = salmonn.PREFIX + base
        raw["audio_token_id"], raw["audio_config"] = SOUND, read_json(hf / "whisper")
        raw["qformer_config"] = read_json(hf / "qformer") | {"window": 5}
        raw["vision_config"]["tokens_per_second"] = 10  # ticks of a token of sound, as released
        (target / "config.json").write_text(json.dumps(raw))
        made[base] = target
        return target

    return get


@pytest.fixture(scope="module")
def model(folder):
    made = {}

    def get(base):
        if base not in made:
            found = load(folder(base), dtype="float32", fps=FPS, max_new=3)
            made[base] = fit(found, SIZE)
        return made[base]

    return get


def config_of(folder, base):
    return salmonn.read_config(read_json(folder(base)))


@partial(jax.jit, static_argnames="config")
def _hear(params, logmel, config):
    return salmonn.hear(params, config, logmel)


def heard_by(config, params, logmel):
    """What is heard in up to three clips, by one program."""
    clips = np.pad(logmel, ((0, 3 - len(logmel)), (0, 0), (0, 0)))
    return np.asarray(_hear(params, clips, config))[: len(logmel)]


def test_hears_as_whisper_and_the_q_former_do(golden, folder, model):
    """Both references one behind the other, then the linear map."""
    config, params = config_of(folder, "qwen3_vl"), model("qwen3_vl").params
    with np.load(golden / "hf" / "whisper" / "reference.npz") as file:
        logmel = file["input_features"].transpose(0, 2, 1)
    with np.load(golden / "hf" / "qformer" / "reference.npz") as file:
        read = file["out"]
    stored = load_file(folder("qwen3_vl") / "model.safetensors")
    expected = read @ stored["audio_projector.weight"].T + stored["audio_projector.bias"]
    found = heard_by(config, params, logmel)
    assert found.shape == (2, config.clip_tokens, 48) and config.per_second == 10
    close(found, expected, FEATURES)


def test_released_sizes(folder):
    """60 tokens of sound in 30 s, and the tokens of a frame at the released limits."""
    raw = read_json(folder("qwen3_vl"))
    config = salmonn.read_config(
        {k: v for k, v in raw.items() if "audio_c" not in k and "qf" not in k}
    )
    assert (config.clip_tokens, config.per_second, config.qformer.window) == (60, 2, 25)
    assert (config.sound.mel_bins, config.sound.rows, config.sound.stack.depth) == (128, 1500, 32)
    assert (config.qformer.width, config.qformer.heads, config.qformer.depth) == (3072, 12, 2)
    assert config.qformer.inputs == 1280
    limits = Limits(1, MAX_PIXELS["qwen3_vl"])
    for sides, tokens in (((1080, 1920), 9 * 17), ((1080, 1440), 165)):
        found = smart_resize(*sides, cell=32, limits=limits)
        assert found[0] * found[1] // 32**2 == tokens
    found = smart_resize(1080, 1920, cell=28, limits=Limits(1, MAX_PIXELS["qwen2_5_vl"]))
    assert found == (6 * 28, 11 * 28) and MAX_PIXELS["qwen2_5_vl"] // 28**2 == 78


def pieces_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        SimpleNamespace(
            frames=rng.integers(0, 256, (6, *SIZE, 3), np.uint8),
            samples=(0.1 * rng.normal(size=CLIP)).astype("f"),
        )
        for _ in range(count)
    ]


def laid_out(config, model, frames, answer):
    """(token, kind, position) of every row of one prompt, by plain loops."""
    base, timed = config.base, config.family is qwen3_vl
    rows, heard, begin = [], 0, len(model.prefix)

    def text(tokens):
        at = max((max(row[2]) for row in rows), default=-1) + 1
        rows.extend((token, TEXT, [at + i] * 3) for i, token in enumerate(tokens))

    text(model.prefix.tolist())
    for i in range(frames):
        start = np.array([begin + int(i * 2 / FPS * 10), begin, begin])
        if timed:
            words = model.tokenize(f"what <{(2 * i + 0.5) / FPS:.1f} seconds>").tolist()
            text([*words[1:-3], base.vision_start])
            start = np.array(rows[-1][2]) + 1
        for r in range(2):
            for c in range(5):
                rows.append((base.video, VISION, (start + np.array([0, r, c])).tolist()))
        for j in range(heard, int((i + 1) * 2 / FPS * 10 + 1e-6)):
            at = [max(rows[-1][2]) + 1] * 3 if timed else [begin + j, begin, begin + j]
            rows.append((config.audio, AUDIO, at))
            heard += 1
        if timed:
            text([base.vision_end])
    text([*model.tokenize(QUESTION).tolist(), *answer])
    return rows


def offline(folder, model, pieces, answer):
    """The plan of one prompt over everything, and its features."""
    config, params = salmonn.read_config(read_json(folder)), model.params
    frames = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 255
    pixels = (frames - np.array([0.4, 0.5, 0.6], "f")) / np.array([0.3, 0.25, 0.2], "f")
    patches = patchify(jnp.asarray(pixels), patch=4, temporal=2, merge=2)
    grids = [(len(frames) // 2, 4, 10)]
    see = jax.jit(lambda p, x: config.family.encode(p, config.base, x, grids))
    seen, deep = see(params, patches), None
    logmel = np.stack([LogMel(16)(p.samples, None) for p in pieces])
    heard = heard_by(config, params, logmel).reshape(-1, 48)
    if config.family is qwen3_vl:
        silent = jnp.zeros((len(seen.deep), len(heard), 48))
        seen, deep = seen.tokens, jnp.concatenate([seen.deep, silent], axis=1)
    rows = laid_out(config, model, len(frames) // 2, answer)
    ids, kind, pos = (np.array(x, np.int32) for x in zip(*rows, strict=True))
    place = np.full(len(ids), -1, np.int32)
    place[kind == VISION] = np.arange(len(seen))
    place[kind == AUDIO] = len(seen) + np.arange(len(heard))
    whole = Plan(ids, place, pos, kind.astype(np.int8), pos.max(0) + 1)
    return whole, jnp.concatenate([seen, heard]), deep


@pytest.mark.parametrize("base", salmonn.BASES)
def test_stream_is_the_offline_prompt(folder, model, base):
    """One clip and padding, then two clips: logits and tokens of one pass."""
    model, pieces = model(base), pieces_of(3)
    session = Session(model, full(3 * model.tokens_per_piece), chunk_pieces=2)
    session.watch(pieces[:1]).watch(pieces[1:])
    rows = asked_rows(model, session.program, model.tokenize(QUESTION), session.pieces)
    more = {"program": session.program, "max_new": 3, "prefix": session.prefix}
    answer = ask(model.params, session.carry, rows, **more)
    whole = offline(folder(base), model, pieces, answer.ids[:-1].tolist())
    out = one_pass(model.params["decoder"], model.decoder, *whole).logits[-3:]
    close(answer.first, out[0], LOGITS)
    np.testing.assert_array_equal(answer.ids, out.argmax(-1))


def packed(model, start, samples=CLIP):
    """A chunk of one piece, behind so many."""
    piece = pieces_of(1)[0]
    frames = piece.frames[None, : round(model.media.fps * model.media.piece_seconds)]
    past = np.zeros(0, np.float32)
    return model.pack(frames, piece.samples[None, :samples], np.array([True]), past, start)


def test_rows_of_a_piece(model):
    """Frames and sound; with time stamps their longest words and the two tokens around each."""
    assert model("qwen2_5_vl").tokens_per_piece == 3 * 10 + 8
    assert [model(b).audio_tokens for b in ("qwen2_5_vl", "qwen3_vl")] == [10, 10]
    assert [model(b).stamps for b in ("qwen2_5_vl", "qwen3_vl")] == [False, True]
    timed = model("qwen3_vl")
    assert timed.tokens_per_piece == 3 * 10 + 8 + 3 * (11 + 2)
    assert timed.media.piece_seconds == 0.8 and timed.media.past_samples == 0
    plan = packed(timed, 0).plan
    assert np.bincount(plan.modality).tolist() == [3 * 5, 3 * (6 + 2), 3 * 10, 8]
    assert packed(timed, 0).mel.shape == (1, 80, 16)


def test_ten_hours(model):
    """A piece after ten hours: other words; the columns of sound alone have grown."""
    late = 45_000  # pieces of 0.8 s
    one, two = (packed(model("qwen2_5_vl"), start).plan for start in (0, late))
    np.testing.assert_array_equal(one.ids, two.ids)
    grown = np.zeros_like(one.pos)
    grown[one.modality == AUDIO, 2] = 8 * late
    np.testing.assert_array_equal(two.pos, one.pos + grown)
    assert one.advance.tolist() == two.advance.tolist() == [8, 0, 0]
    one, two = (packed(model("qwen3_vl"), start).plan for start in (0, late))
    assert two.advance.tolist() == [n + 3 * 4 for n in one.advance.tolist()]  # "36000.1", "0.1"
    assert (one.pos >= 0).all() and two.pos.max() < 100


def test_one_stamp_for_a_group(folder, model):
    timed = load(folder("qwen3_vl"), dtype=jnp.bfloat16, fps=FPS, group=3)
    inputs = packed(fit(timed, SIZE), 1)
    rows = jax.eval_shape(timed.encode, timed.params, inputs)
    assert rows.x.dtype == rows.deepstack.dtype == jnp.bfloat16
    plan = inputs.plan  # pictures 6 to 11: 8.5 / 7.5 s
    words = model("qwen3_vl").tokenize("what <1.1 seconds>")[1:-3]
    assert plan.ids[: len(words) + 1].tolist() == [*words.tolist(), 1]
    kinds = plan.modality[len(words) + 1 :]
    assert kinds[: 3 * 10 + 9].tolist() == [VISION] * 30 + [AUDIO] * 8 + [TEXT]
    begin = plan.pos[len(words) + 1]
    assert (plan.pos[len(words) + 21] - begin).tolist() == [2, 0, 0]  # the third frame
    assert (plan.pos[len(words) + 31] - begin).tolist() == [5] * 3  # sound, behind five columns


def test_short_pieces_are_heard_with_silence(folder):
    short = load(folder("qwen2_5_vl"), dtype=jnp.float32, fps=5, piece_seconds=0.4)
    short = fit(short, SIZE)
    assert short.tokens_per_piece == 10 + 4
    inputs = packed(short, 0, CLIP // 2)
    sound = np.zeros(CLIP, np.float32)
    sound[: CLIP // 2] = pieces_of(1)[0].samples[: CLIP // 2]
    np.testing.assert_array_equal(inputs.mel[0], LogMel(16)(sound, None))
    config = config_of(folder, "qwen2_5_vl")
    heard = heard_by(config, short.params, inputs.mel)[0, :4]
    rows = jax.jit(short.encode)(short.params, inputs)
    assert rows.modality.tolist() == [VISION] * 10 + [AUDIO] * 4
    close(rows.x[10:], heard, 1e-6)


def test_deep_features_are_the_frames_alone(model):
    timed = model("qwen3_vl")
    rows = jax.jit(timed.encode)(timed.params, packed(timed, 0))
    kind, deep = np.asarray(rows.modality), np.abs(np.asarray(rows.deepstack)).max((0, 2))
    assert (deep[kind == VISION] > 0).all() and not deep[kind != VISION].any()


def test_refusals(folder):
    where = folder("qwen3_vl")
    for seconds, fps in ((1.6, 2.5), (0.25, 8)):
        with pytest.raises(ValueError, match=r"multiple of 0\.1 s up to 8 of them"):
            load(where, fps=fps, piece_seconds=seconds)
    with pytest.raises(ValueError, match="which must hold a multiple of 2 pictures"):
        load(where, fps=1)
    with pytest.raises(ValueError, match="a divisor of the 3 frames of a piece"):
        load(where, fps=FPS, group=2)
    raw = read_json(where)
    for key, value, message in (
        ("model_type", "qwen3_vl", "expected one of video_salmonn_2_plus_qwen2_5_vl"),
        ("audio_token_id", None, "has no audio_token_id"),
        ("qformer_config", raw["qformer_config"] | {"window": 7}, "expected a divisor of the 40"),
        ("qformer_config", {"cross_attention_frequency": 2, "window": 5}, "is 2 in config.json"),
    ):
        with pytest.raises(ValueError, match=message):
            salmonn.read_config(raw | {key: value})
