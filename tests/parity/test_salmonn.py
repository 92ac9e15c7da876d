"""video-SALMONN 2+: what it hears, its two layouts, and streams as the one prompt they are."""

import json
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import MEAN, STD, ids_of, write_checkpoint
from passes import FEATURES, answers_alike, close, one_pass, pieces_of, streamed
from safetensors.numpy import load_file, save_file

from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.models.base import for_frames
from jaxmem.models.encoders.vision_parts import patchify
from jaxmem.models.encoders.whisper_mel import LogMel
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.preprocessor import Limits, smart_resize
from jaxmem.models.hf.prompt import Plan
from jaxmem.models.load import load
from jaxmem.models.qwen import qwen3_vl
from jaxmem.models.salmonn import config as cfg
from jaxmem.models.salmonn import salmonn
from jaxmem.models.salmonn.salmonn import Salmonn, TimedSalmonn

pytest.importorskip("jinja2")

CELLS, QUESTION = (2, 5), "what is shown"  # tokens of a frame
FRAMES = 3  # of a piece
SAMPLES = 320  # of a row of Whisper's encoder
FORMER = (("layernorm.", "embeddings.LayerNorm."), (".attention.attention.", ".attention.self."),
          (".crossattention.attention.", ".crossattention.self."))  # fmt: skip

RELEASED = {
    "encoder_hidden_size": "encoder_width", "cross_attention_frequency": "cross_attention_freq",
}  # fmt: skip
"""Keys of transformers' BLIP-2 config to those of the released one."""


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
                tensors["audio." + name.removeprefix("encoder.")] = x
        for name, x in load_file(hf / "qformer" / "model.safetensors").items():
            own = "audio.qformer.bert." + bert_name(name)
            tensors["audio.q_tokens" if name == "query_tokens" else own] = x
        raw, former = read_json(target), read_json(hf / "qformer")
        with np.load(hf / "qformer" / "reference.npz") as file:
            window = int(file["window"])
        wide, width = raw["text_config"]["hidden_size"], former["hidden_size"]
        rng = np.random.default_rng(0)
        tensors["audio.audio_proj.weight"] = rng.normal(size=(wide, width)).astype("f") / 5
        tensors["audio.audio_proj.bias"] = rng.normal(size=wide).astype("f") / 5
        if base == "qwen3_vl":  # there the names of sound have a level more
            tensors = {
                "model." + name if name.startswith("audio.") else name: x
                for name, x in tensors.items()
            }
        save_file(tensors, target / "model.safetensors")
        # No word's id: the last one.
        raw["audio_token_id"] = raw["text_config"]["vocab_size"] - 1
        for old, new in RELEASED.items():
            former[new] = former.pop(old)
        seconds = window / cfg.ROWS_PER_SECOND
        raw["audio_config"] = read_json(hf / "whisper") | {
            "second_per_window": seconds, "second_stride": seconds,
            "qformer_config": former | {"query_length": 1, "out_hidden_size": wide},
        }  # fmt: skip
        raw["vision_config"]["tokens_per_second"] = 7  # not used for positions
        (target / "config.json").write_text(json.dumps(raw))
        made[base] = target
        return target

    return get


class Sizes:
    """Sizes of a directory's model and of its stream."""

    def __init__(self, config):
        vision = config.base.vision
        self.cell, self.temporal = vision.patch * vision.merge, vision.temporal
        self.frames = (CELLS[0] * self.cell, CELLS[1] * self.cell)
        self.samples = config.sound.rows * SAMPLES  # of a clip
        self.seconds = config.sound.rows / cfg.ROWS_PER_SECOND
        self.fps = FRAMES * self.temporal / self.seconds
        self.gap = self.temporal / self.fps  # from frame to frame
        self.heard = config.clip_tokens


@pytest.fixture(scope="module")
def sizes(folder):
    return lambda base: Sizes(config_of(folder, base))


@pytest.fixture(scope="module")
def model(folder, sizes):
    made = {}

    def get(base):
        if base not in made:
            its = sizes(base)
            found = load(folder(base), dtype="float32", fps=its.fps, max_new=3)
            made[base] = for_frames(found, its.frames)
        return made[base]

    return get


def config_of(folder, base):
    return cfg.read_config(read_json(folder(base)))


@partial(jax.jit, static_argnames="config")
def _hear(params, logmel, config):
    return salmonn.hear(params, config, logmel)


def heard_by(config, params, logmel):
    """What is heard in some clips; three and fewer by one program."""
    clips = np.pad(logmel, ((0, max(0, 3 - len(logmel))), (0, 0), (0, 0)))
    return np.asarray(_hear(params, clips, config))[: len(logmel)]


def test_hears_as_whisper_and_the_q_former_do(golden, folder, model):
    """Both references one after the other, then the linear map."""
    config, params = config_of(folder, "qwen3_vl"), model("qwen3_vl").params
    with np.load(golden / "hf" / "whisper" / "reference.npz") as file:
        logmel = file["input_features"].transpose(0, 2, 1)
    with np.load(golden / "hf" / "qformer" / "reference.npz") as file:
        read, window = file["out"], int(file["window"])
    stored = load_file(folder("qwen3_vl") / "model.safetensors")
    expected = read @ stored["model.audio.audio_proj.weight"].T
    expected += stored["model.audio.audio_proj.bias"]
    found = heard_by(config, params, logmel)
    assert found.shape == (*read.shape[:2], config.decoder.width)
    assert config.clip_tokens == read.shape[1]
    assert config.per_second == Fraction(50, window)  # rows of Whisper's encoder in a second
    close(found, expected, FEATURES)


def test_released_sizes(folder):
    """60 tokens of sound in 30 s, and the tokens of a frame at the released limits."""
    for base, audio in (("qwen2_5_vl", 151_665), ("qwen3_vl", 151_669)):
        raw = read_json(folder(base)) | {"audio_config": {}, "audio_token_id": None}
        config = cfg.read_config(raw)
        assert config.audio == audio
    assert (config.clip_tokens, config.per_second, config.qformer.window) == (60, 2, 25)
    assert (config.sound.mel_bins, config.sound.rows, config.sound.stack.depth) == (128, 1500, 32)
    assert (config.qformer.width, config.qformer.heads, config.qformer.depth) == (3072, 12, 2)
    assert (config.qformer.inputs, config.qformer.mlp_width) == (1280, 12_288)
    limits = Limits(1, TimedSalmonn.max_pixels)
    for sides, tokens in (((1080, 1920), 9 * 17), ((1080, 1440), 165)):
        found = smart_resize(*sides, cell=32, limits=limits)
        assert found[0] * found[1] // 32**2 == tokens
    found = smart_resize(1080, 1920, cell=28, limits=Limits(1, Salmonn.max_pixels))
    assert found == (6 * 28, 11 * 28) and Salmonn.max_pixels // 28**2 == 78


def laid_out(config, folder, model, sizes, frames, answer):
    """(token, modality, position) of every row of one prompt, by plain loops."""
    base, timed = config.base, config.family is qwen3_vl
    rows, heard, begin = [], 0, len(model.prefix)
    per_second = float(config.per_second)

    def text(tokens):
        # After the largest position on any axis, or, on one clock with sound, after the time.
        at = max((max(row[2]) if timed else row[2][0] for row in rows), default=-1) + 1
        rows.extend((token, TEXT, [at + i] * 3) for i, token in enumerate(tokens))

    text(model.prefix.tolist())
    for i in range(frames):
        start = np.array([begin + int(i * sizes.gap * 2 + 1e-6), begin, begin])
        if timed:
            middle = (sizes.temporal * i + (sizes.temporal - 1) / 2) / sizes.fps
            text([*ids_of(folder, f"<{middle:.1f} seconds>"), base.vision_start])
            start = np.array(rows[-1][2]) + 1
        for r in range(CELLS[0]):
            for c in range(CELLS[1]):
                rows.append((base.video, VISION, (start + np.array([0, r, c])).tolist()))
        for j in range(heard, int((i + 1) * sizes.gap * per_second + 1e-6)):
            at = [max(rows[-1][2]) + 1] * 3 if timed else [begin + j, begin, begin + j]
            rows.append((config.audio, AUDIO, at))
            heard += 1
        if timed:
            text([base.vision_end])
    text([*model.tokenize(QUESTION).tolist(), *answer])
    return rows


def offline(folder, model, sizes, pieces, answer):
    """The plan of one prompt over everything, and its features."""
    config, params = cfg.read_config(read_json(folder)), model.params
    vision = config.base.vision
    frames = np.concatenate([p.frames for p in pieces]).astype(np.float32) / 255
    pixels = (frames - np.array(MEAN, "f")) / np.array(STD, "f")
    shape = {"patch": vision.patch, "temporal": vision.temporal, "merge": vision.merge}
    patches, count = patchify(jnp.asarray(pixels), **shape), len(frames) // vision.temporal
    grids = [(count, *(side // vision.patch for side in sizes.frames))]
    see = jax.jit(lambda p, x: config.family.encode(p, config.base, x, grids))
    seen, deep = see(params, patches), None
    mel = LogMel(config.sound.mel_bins)
    heard = heard_by(config, params, np.stack([mel(p.samples, None) for p in pieces]))
    heard = heard.reshape(-1, heard.shape[-1])
    if config.family is qwen3_vl:
        silent = jnp.zeros((len(seen.deep), *heard.shape))
        seen, deep = seen.tokens, jnp.concatenate([seen.deep, silent], axis=1)
    rows = laid_out(config, folder, model, sizes, count, answer)
    ids, modality, pos = (np.array(x, np.int32) for x in zip(*rows, strict=True))
    place = np.full(len(ids), -1, np.int32)
    place[modality == VISION] = np.arange(len(seen))
    place[modality == AUDIO] = len(seen) + np.arange(len(heard))
    whole = Plan(ids, place, pos, modality.astype(np.int8), pos.max(0) + 1)
    return whole, jnp.concatenate([seen, heard]), deep


@pytest.mark.parametrize("base", [pytest.param("qwen2_5_vl", marks=pytest.mark.slow), "qwen3_vl"])
def test_stream_is_the_offline_prompt(folder, model, sizes, base):
    """One clip and padding, then two clips: logits and tokens of one pass."""
    model, sizes = model(base), sizes(base)
    pieces = pieces_of(model, sizes.frames, 3)
    answer = streamed(model, pieces, QUESTION, 3)
    whole = offline(folder(base), model, sizes, pieces, answer.ids[:-1].tolist())
    answers_alike(answer, one_pass(model.params["decoder"], model.decoder, *whole))


def packed(model, sizes, start):
    """A chunk of one piece, after so many."""
    (piece,) = pieces_of(model, sizes.frames, 1)
    past, valid = np.zeros(0, np.float32), np.array([True])
    return model.preprocess(piece.frames[None], piece.samples[None], valid, past, start)


SEEN = FRAMES * CELLS[0] * CELLS[1]


def test_rows_of_a_piece(folder, model, sizes):
    """Frames and audio; with time stamps their longest words and the two tokens around each."""
    heard = sizes("qwen3_vl").heard
    assert model("qwen2_5_vl").tokens_per_piece == SEEN + heard
    per_second = config_of(folder, "qwen3_vl").per_second
    assert [model(b).audio_tokens for b in cfg.BASES] == [per_second] * 2
    assert [model(b).timestamps for b in cfg.BASES] == [False, True]
    assert [model(b).frame for b in cfg.BASES] == [CELLS] * 2
    timed, its = model("qwen3_vl"), sizes("qwen3_vl")
    assert timed.tokens_per_piece == SEEN + heard + FRAMES * (11 + 2)
    assert timed.media.piece_seconds == its.seconds and timed.media.past_samples == 0
    inputs = packed(timed, its, 0)
    words = FRAMES * (len("<0.1>") + 1 + 2)  # "seconds" is one token
    padding = FRAMES * (11 + 2) - words
    assert np.bincount(inputs.plan.modality).tolist() == [padding, words, SEEN, heard]
    config = config_of(folder, "qwen3_vl").sound
    assert inputs.mel.shape == (1, 2 * config.rows, config.mel_bins)


def test_ten_hours(folder, model, sizes):
    """A piece after ten hours: other words; what has grown is the columns of audio, and its time.

    Its time grows since the reference's tokens are shorter than a tick.
    """
    its, base = sizes("qwen2_5_vl"), model("qwen2_5_vl")
    late = int(36_000 / its.seconds)
    one, two = (packed(base, its, start).plan for start in (0, late))
    np.testing.assert_array_equal(one.ids, two.ids)
    begin, heard = late * its.seconds, one.modality == AUDIO
    ticks = [int(2 * (begin + i * its.gap) + 1e-6) for i in range(FRAMES + 1)]
    np.testing.assert_array_equal(
        two.pos[~heard, 0], np.repeat(ticks[:-1], SEEN // FRAMES) - ticks[0]
    )
    np.testing.assert_array_equal(two.pos[~heard, 1:], one.pos[~heard, 1:])
    columns = late * its.heard + np.arange(its.heard)
    expected = np.stack([columns - ticks[0], 0 * columns, columns], axis=1)
    np.testing.assert_array_equal(two.pos[heard], expected)
    assert two.advance.tolist() == [ticks[-1] - ticks[0], 0, 0]
    its, timed = sizes("qwen3_vl"), model("qwen3_vl")
    one, two = (packed(timed, its, start).plan for start in (0, late))
    longer = len("36000.1") - len("0.1")  # a token for each digit
    assert two.advance.tolist() == [n + FRAMES * longer for n in one.advance.tolist()]
    assert (one.pos >= 0).all() and two.pos.max() < len(two.ids)


def test_one_stamp_for_a_group(folder, sizes):
    its = sizes("qwen3_vl")
    where, config = folder("qwen3_vl"), config_of(folder, "qwen3_vl").base
    timed = load(where, dtype=jnp.bfloat16, fps=its.fps, group=FRAMES)
    inputs = packed(for_frames(timed, its.frames), its, 1)
    rows = jax.eval_shape(timed.encode, timed.params, inputs)
    assert rows.x.dtype == rows.deepstack.dtype == jnp.bfloat16
    plan, pictures = inputs.plan, FRAMES * its.temporal
    middle = (pictures + (its.temporal - 1) / 2) / its.fps  # of the second group's first frame
    words = ids_of(where, f"<{middle:.1f} seconds>")
    assert plan.ids[: len(words) + 1].tolist() == [*words, config.vision_start]
    modalities, one = plan.modality[len(words) + 1 :], SEEN // FRAMES
    expected = [VISION] * SEEN + [AUDIO] * its.heard + [TEXT]
    assert modalities[: len(expected)].tolist() == expected
    begin = plan.pos[len(words) + 1]
    assert (plan.pos[len(words) + 1 + 2 * one] - begin).tolist() == [2, 0, 0]  # the third frame
    after = plan.pos[len(words) + 1 + SEEN]
    assert (after - begin).tolist() == [max(FRAMES, *CELLS)] * 3  # audio, after five columns


def test_short_pieces_are_heard_with_silence(folder, sizes):
    its, config = sizes("qwen2_5_vl"), config_of(folder, "qwen2_5_vl")
    heard = its.heard // 2
    seconds = heard / float(config.per_second)
    more = {"fps": its.temporal / seconds, "piece_seconds": seconds}
    short = load(folder("qwen2_5_vl"), dtype=jnp.float32, **more)
    short, seen = for_frames(short, its.frames), CELLS[0] * CELLS[1]
    assert short.tokens_per_piece == seen + heard
    inputs = packed(short, its, 0)
    sound = np.zeros(its.samples, np.float32)
    (piece,) = pieces_of(short, its.frames, 1)
    sound[: len(piece.samples)] = piece.samples
    np.testing.assert_array_equal(inputs.mel[0], LogMel(config.sound.mel_bins)(sound, None))
    expected = heard_by(config, short.params, inputs.mel)[0, :heard]
    rows = jax.jit(short.encode)(short.params, inputs)
    assert rows.modality.tolist() == [VISION] * seen + [AUDIO] * heard
    close(rows.x[seen:], expected, 1e-6)


def test_deepstack_adds_to_the_frames_alone(model, sizes):
    timed = model("qwen3_vl")
    rows = jax.jit(timed.encode)(timed.params, packed(timed, sizes("qwen3_vl"), 0))
    modality, deep = np.asarray(rows.modality), np.abs(np.asarray(rows.deepstack)).max((0, 2))
    assert (deep[modality == VISION] > 0).all() and not deep[modality != VISION].any()


def test_equal_directories_are_one_program(folder, sizes):
    """What is static of two loads is equal: nothing compiles again."""
    for base in cfg.BASES:
        more = {"abstract": True, "fps": sizes(base).fps}
        one, two = (load(folder(base), **more).encode for _ in range(2))
        assert one == two and hash(one) == hash(two)
        assert one != load(folder(base), **more, max_pixels=sizes(base).cell ** 2).encode


def test_refusals(folder, sizes):
    where, its = folder("qwen3_vl"), sizes("qwen3_vl")
    tick = 1 / float(config_of(folder, "qwen3_vl").per_second)
    for seconds in (2 * its.seconds, 2.5 * tick):
        with pytest.raises(ValueError, match=rf"multiple of {tick:g} s up to {its.heard} of them"):
            load(where, fps=its.temporal / seconds, piece_seconds=seconds)
    with pytest.raises(ValueError, match=f"which must hold a multiple of {its.temporal} pictures"):
        load(where, fps=its.fps / FRAMES / 1.5)
    with pytest.raises(ValueError, match=f"a divisor of the {FRAMES} frames of a piece"):
        load(where, fps=its.fps, group=2)
    raw = read_json(where)
    rows = raw["audio_config"]["max_source_positions"]
    audio = raw["audio_config"]
    former = audio["qformer_config"]
    window = {"second_per_window": (rows - 1) / 50, "second_stride": (rows - 1) / 50}
    for key, value, message in (
        ("model_type", "llava", "expected one of qwen2_5_vl, qwen3_vl"),
        ("audio_config", None, "has no audio_config"),
        ("audio_config", audio | window, f"expected a divisor of the {rows}"),
        ("audio_config", audio | {"second_stride": 7.0}, "second_stride is 7.0"),
        *(
            (
                "audio_config",
                audio | {"qformer_config": former | {key: wrong}},
                f"{key}.* is {wrong}",
            )
            for key, wrong in (("encoder_width", 7), ("out_hidden_size", 7))
        ),
        (
            "audio_config",
            audio | {"qformer_config": former | {"cross_attention_freq": 2}},
            "is 2 in config.json",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            cfg.read_config(raw | {key: value})
    for base, options, message in (
        ("qwen2_5_vl", {"sharing": "odd"}, "expected ticks or even"),
        ("qwen2_5_vl", {"inference_frames": 0}, "expected the frames of the whole video"),
        ("qwen3_vl", {"inference_frames": 3}, "one rule of positions; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder(base), fps=sizes(base).fps, **options)
