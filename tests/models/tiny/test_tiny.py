"""The tiny model: tokenizer, encoders, token layout, weights file."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmem import kv as tokens
from jaxmem.data.world import synthetic as sy
from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.memory import MEMORIES
from jaxmem.memory.baselines import Full
from jaxmem.memory.by_name import build
from jaxmem.memory.hermes.hermes import Hermes
from jaxmem.memory.options import options_of
from jaxmem.models.load import load
from jaxmem.models.tiny import tiny
from jaxmem.programs import compile, model_spec, probes_of

SMALL = tiny.TinyConfig(width=32, layers=2, heads=2, kv_heads=1, mlp_width=48, stem_width=24)


@pytest.fixture(scope="module")
def params():
    return tiny.init(SMALL, jax.random.key(0))


def words(text):
    return [tiny.WORDS[i] for i in tiny.tokenize(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What colour was the star?", ["colour", "star"]),
        ("what COLOR was the Star", ["colour", "star"]),
        ("Where were the circles?", ["where", "circle"]),
        ("What colour was the ring?", ["colour", "ring"]),
        ("How many times was the bell heard?", ["many", "bell", "heard"]),
        ("Which came last, the cross or the horn?", ["last", "cross", "horn"]),
        ("Which shape is there now?", ["shape", "now"]),
    ],
)
def test_tokenize(text, expected):
    ids = tiny.tokenize(text)
    assert ids.dtype == np.int32
    assert words(text) == [*expected, tiny.ASK]


def test_unknown_words_are_named_with_the_vocabulary():
    with pytest.raises(ValueError, match=r"zebra, saxophone.*colour.*rattle"):
        tiny.tokenize("What colour was the zebra with the saxophone?")
    with pytest.raises(ValueError, match="no word"):
        tiny.tokenize("What is it?")


def test_vocabulary_covers_the_world():
    world_words = sy.SHAPES + sy.DECOYS + sy.COLOURS + sy.SOUNDS + sy.QUADRANTS
    assert set(world_words) <= set(tiny.WORDS)
    assert (tiny.SHAPES, tiny.COLOURS, tiny.SOUNDS) == (sy.SHAPES, sy.COLOURS, sy.SOUNDS)
    assert len(set(tiny.WORDS)) == len(tiny.WORDS)
    assert not tiny.STOP & set(tiny.WORDS)
    for i in range(5):
        for q in sy.questions(sy.world((1, i), 64), 60):
            assert 2 <= len(tiny.tokenize(q.text)) <= 5
            assert q.answer in tiny.WORDS


def test_tokenization_keeps_questions_apart():
    """Two questions with different answers in the same second have different tokens."""
    for i in range(5):
        answers = {}
        for q in sy.questions(sy.world((1, i), 64), 200):
            key = (q.time, tuple(tiny.tokenize(q.text).tolist()))
            assert answers.setdefault(key, q.answer) == q.answer


def test_positions_and_layout(params):
    rel, kind, span = tiny.positions(SMALL)
    assert rel.dtype == np.int32 and rel.shape == (20, 3)
    np.testing.assert_array_equal(span, [4, 0, 0])
    np.testing.assert_array_equal(rel[:16, 0], 0)
    np.testing.assert_array_equal(rel[5], [0, 1, 1])
    np.testing.assert_array_equal(rel[16:], [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    assert list(kind) == [tokens.VISION] * 16 + [tokens.AUDIO] * 4
    vision = jax.random.normal(jax.random.key(1), (3, 16, 32))
    audio = jax.random.normal(jax.random.key(2), (3, 4, 32))
    x, rel2, kind2, span2 = tiny.layout(SMALL, vision, audio)
    assert x.shape == (3, 20, 32)
    np.testing.assert_array_equal(x[1, :16], vision[1])
    np.testing.assert_array_equal(x[2, 16:], audio[2])
    np.testing.assert_array_equal(rel2, rel)
    np.testing.assert_array_equal(kind2, kind)
    np.testing.assert_array_equal(span2, span)
    np.testing.assert_array_equal(tiny.question_positions(3)[:, 0], [0, 1, 2])


def test_rope_is_partial():
    config = tiny.decoder_config(tiny.TinyConfig())
    assert isinstance(config, DecoderConfig)
    rope = config.rope
    assert rope.head_dim == 32 and rope.axes == 3
    assert rope.axis[:8] == (0,) * 6 + (1, 2)
    assert all(v == 0 for v in rope.inv_freq[8:])
    assert rope.inv_freq[0] == pytest.approx(0.4)
    assert rope.inv_freq[5] == pytest.approx(1 / 1500)


def test_encoders_are_local(params):
    """A patch changes its own token only, a quarter of a second too."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
    out = np.asarray(tiny.encode_vision(params, SMALL, frames))
    assert out.shape == (2, 16, 32)
    frames[1, 12:24, 24:36] = 255 - frames[1, 12:24, 24:36]  # row 1, column 2
    changed = np.abs(np.asarray(tiny.encode_vision(params, SMALL, frames)) - out).max(-1) > 1e-6
    assert np.argwhere(changed).tolist() == [[1, 6]]
    mel = rng.normal(size=(2, 100, 24)).astype(np.float32)
    out = np.asarray(tiny.encode_audio(params, SMALL, mel))
    assert out.shape == (2, 4, 32)
    mel[0, 50:75] += 1
    changed = np.abs(np.asarray(tiny.encode_audio(params, SMALL, mel)) - out).max(-1) > 1e-6
    assert np.argwhere(changed).tolist() == [[0, 2]]


def test_encoders_reject_other_sizes(params):
    with pytest.raises(ValueError, match="resize"):
        tiny.encode_vision(params, SMALL, np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="whole seconds"):
        tiny.encode_audio(params, SMALL, np.zeros((1, 98, 24), np.float32))


def test_save_and_load(params, tmp_path):
    path = tmp_path / "tiny.safetensors"
    tiny.save(path, params, SMALL)
    again, config = tiny.load(path)
    assert config == SMALL
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    other = dataclasses.replace(SMALL, words=tiny.WORDS[:-1])
    tiny.save(path, tiny.init(other, jax.random.key(0)), other)
    assert tiny.load(path)[1] == other


def test_load_errors(tmp_path):
    with pytest.raises(ValueError, match="jaxmem.experiments.train"):
        tiny.load(tmp_path / "missing.safetensors")


STATES = dataclasses.replace(SMALL, mixer="mamba2", attend="none")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mixer": "gated_delta"}, "mixers.0.mixer.a.kernel is absent, its config asks for .2, "),
        ({"layers": 3}, r"is \(2, 48, 32\), its config asks for \(3, 48, 32\)"),
        ({"mixer": "", "attend": "all"}, "layers.attn_norm.scale is absent, its config asks for"),
        ({"mixer": "nope"}, "mixer is one of mamba2, .*, got 'nope'"),
        ({"width": 40}, r"config asks for \(24, 40\)"),
        ({"layers": 10**9}, "asks for 1000000000 layers"),
        ({"heads": 0}, "heads"),
        ({"patch": 0}, "zero"),
        ({"words": 3}, "not iterable"),
    ],
)
def test_a_file_whose_tensors_are_not_those_of_its_config_is_refused(tmp_path, config, said):
    drawn = jax.tree.map(
        lambda x: np.zeros(x.shape), jax.eval_shape(lambda: tiny.init(STATES, jax.random.key(0)))
    )
    path = tmp_path / "other.safetensors"
    tiny.save(path, drawn, STATES)
    assert tiny.load(path)[1] == STATES
    tiny.save(path, drawn, dataclasses.replace(STATES, **config))
    with pytest.raises(ValueError, match=f"{path} is no file of weights that .* wrote: .*{said}"):
        tiny.load(path)


def test_a_file_without_its_layers_with_a_state_is_refused(tmp_path):
    bare = tiny.init(STATES, jax.random.key(0))
    del bare["decoder"]["mixers"]
    tiny.save(tmp_path / "bare.safetensors", bare, STATES)
    with pytest.raises(ValueError, match=r"decoder.mixers.0.down.kernel is absent, its config"):
        tiny.load(tmp_path / "bare.safetensors")


def test_sizes():
    total = sum(x.size for x in jax.tree.leaves(tiny.init(tiny.TinyConfig(), jax.random.key(0))))
    assert 0.7e6 < total < 1.2e6


def test_two_loads_are_one_program():
    """What is static of two loads is equal: nothing compiles again; shapes are those of values."""
    one, two, shapes = load("tiny"), load("tiny"), load("tiny", abstract=True)
    assert one.encode == two.encode == shapes.encode and hash(one.encode) == hash(two.encode)
    assert compile(one, Full(64)) == compile(two, Full(64)) == compile(shapes, Full(64))
    assert jax.tree.map(np.shape, one.params) == jax.tree.map(np.shape, shapes.params)
    assert one.frame == (4, 4) and one.audio_tokens == 4


def test_presets_are_options_of_memories_and_no_defaults():
    """Every memory takes its preset, and none of it says what the memory's default says already."""
    model = load("tiny")
    spec = model_spec(model, 1)
    for name in MEMORIES:
        assert build(name, 64, spec, model.presets.get(name)) is not None
    assert set(model.presets) <= {*MEMORIES, "bank"}
    for name, preset in model.presets.items():
        defaults = {key: option.default for key, option in options_of(name).items()}
        assert not [key for key, value in preset.items() if defaults[key] == value], name


def test_probes_are_about_the_present_then_the_whole():
    """HERMES leads its middle layers by the first and its deep layers by the second."""
    model = load("tiny")
    texts = probes_of(model, Hermes(64))
    asked = [[tiny.WORDS[i] for i in text.ids] for text in texts]
    assert ["where" in words for words in asked] == [True, False]
