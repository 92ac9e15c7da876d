"""GGUF files: names, layout of rotary pairs, and what is refused. Needs the package gguf."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.models.hf.gguf import config_of, gguf_of, halves, read_gguf, read_words, smollm2_path

FACTS = {
    "embedding_length": 32, "block_count": 2, "feed_forward_length": 64, "vocab_size": 40,
    "attention.head_count": 4, "attention.head_count_kv": 2,
}  # fmt: skip


def written(path, *, architecture="llama", without=(), q4=False, **more):
    """Write a decoder as llama.cpp does; return its tensors by name."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in FACTS.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", 100_000.0)
    rng, width, inner = np.random.default_rng(0), 32, 64
    shapes = {"token_embd": (40, width), "output_norm": (width,)} | {
        f"blk.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "attn_norm": (width,), "ffn_norm": (width,), "attn_q": (32, width),
            "attn_k": (16, width), "attn_v": (16, width), "attn_output": (width, 32),
            "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner),
        }.items()
    }  # fmt: skip
    found = {}
    for name, shape in (shapes | more).items():
        if name in without:
            continue
        x = rng.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if q4 and len(shape) == 2 else None
        packed = x if kind is None else gguf.quantize(x, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        found[name] = x if kind is None else gguf.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


@pytest.mark.parametrize("q4", [False, True])
def test_a_file_is_read(tmp_path, q4):
    stored = written(tmp_path / "a.gguf", q4=q4)
    config, params = read_gguf(tmp_path / "a.gguf")
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (2, 4, 2, 8)
    assert config.tied and config.vocab == 40 and config.norm_eps == pytest.approx(1e-5)
    layers = params["layers"]
    for i in range(2):
        np.testing.assert_array_equal(layers["v"]["kernel"][i].T, stored[f"blk.{i}.attn_v"])
        np.testing.assert_array_equal(layers["down"]["kernel"][i].T, stored[f"blk.{i}.ffn_down"])
        pairs = stored[f"blk.{i}.attn_k"].reshape(2, 4, 2, 32)  # neighbours become halves
        mine = np.asarray(layers["k"]["kernel"][i].T).reshape(2, 2, 4, 32)
        np.testing.assert_array_equal(mine, pairs.swapaxes(1, 2))
    np.testing.assert_array_equal(params["embedding"]["embedding"], stored["token_embd"])


def test_an_output_matrix_of_its_own_is_read(tmp_path):
    stored = written(tmp_path / "a.gguf", output=(40, 32))
    config, params = read_gguf(tmp_path / "a.gguf", jnp.bfloat16)
    assert not config.tied and params["head"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(params["head"]["kernel"].T, stored["output"], rtol=1e-2)


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    for more, word in (
        ({"architecture": "qwen2"}, "architecture qwen2"),
        ({"without": ("blk.1.ffn_up",)}, "blk.1.ffn_up.weight .* is missing"),
        ({"blk.0.attn_k": (8, 32)}, r"has shape \(8, 32\); expected \(16, 32\)"),
        ({"rope_freqs": (4,)}, "rope scaling by tensor"),
    ):
        written(path, **more)
        with pytest.raises(ValueError, match=word):
            read_gguf(path)
    whole = path.read_bytes()
    for bad in (b"", b"no such file", whole[:200], whole[: len(whole) // 2]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="no whole GGUF file"):
            read_gguf(path)
    with pytest.raises(ValueError, match="no whole GGUF file"):
        read_gguf(tmp_path / "none.gguf")


def test_without_the_packages_there_is_no_path(monkeypatch):
    monkeypatch.setattr("jaxmem.models.hf.gguf.find_spec", lambda name: None)
    assert smollm2_path() is None


def test_pairs_of_neighbours_become_halves():
    x = np.arange(8.0)[:, None]
    assert halves(x, 1).ravel().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


PIECES = ["<|end|>", "a", "b", "\u0120", "1", "ab", "\u0120ab"]  # \u0120 is a space


def with_words(path, **more):
    """Write the tokenizer of a file, as llama.cpp does."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    given = {"pre": "smollm", "tokens": PIECES, "merges": ["a b", "\u0120 ab"], "end": 0} | more
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(given["pre"])
    writer.add_token_list(given["tokens"])
    writer.add_token_types([3] + [1] * (len(PIECES) - 1))
    if given["merges"]:
        writer.add_token_merges(given["merges"])
    writer.add_eos_token_id(given["end"])
    writer.add_context_length(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_words_are_read(tmp_path):
    words = read_words(with_words(tmp_path / "a.gguf"))
    ids = words.tokenizer.encode("ab ab11<|end|>", add_special_tokens=False).ids
    assert ids == [5, 6, 4, 4, 0] and (words.ends, words.context) == ((0,), 64)
    assert words.tokenizer.decode(ids) == "ab ab11"


def test_another_tokenizer_is_refused(tmp_path):
    for more in ({"pre": "llama-bpe"}, {"merges": []}):
        with pytest.raises(ValueError, match="expected that of SmolLM2"):
            read_words(with_words(tmp_path / "a.gguf", **more))


def test_names_of_files(monkeypatch):
    monkeypatch.setattr("jaxmem.models.hf.gguf.smollm2_path", lambda: None)
    assert gguf_of("smollm2") is None is gguf_of("qwen3-vl:2b")
    assert gguf_of("some/where.gguf").name == "where.gguf"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("attention.head_count_kv", x) for x in ([2, 2], 0, "2")),
        *(("attention.head_count", x) for x in (0, [4, 4])),
        ("block_count", 2.5),
        ("rope.freq_base", "x"),
        ("attention.layer_norm_rms_epsilon", [1e-5]),
    ],
)
def test_facts_are_numbers(name, wrong):
    """Some files have heads layer by layer."""
    facts = {f"llama.{key}": value for key, value in FACTS.items()}
    facts |= {"llama.attention.layer_norm_rms_epsilon": 1e-5, "general.architecture": "llama"}
    assert config_of(facts, "a.gguf", tied=True).kv_heads == 2
    with pytest.raises(ValueError, match=f"^llama.{name} is .* in a.gguf, expected a .*number"):
        config_of(facts | {f"llama.{name}": wrong}, "a.gguf", tied=True)
    del facts["llama.vocab_size"]
    with pytest.raises(ValueError, match="^a.gguf does not say 'llama.vocab_size': download"):
        config_of(facts, "a.gguf", tied=True)


def test_words_that_make_no_tokenizer(tmp_path):
    for more, said in (
        ({"merges": ["a"]}, "has a tokenizer that cannot be read"),
        ({"end": 99}, "eos_token_id is 99 in .* below 7: download it again"),
    ):
        with pytest.raises(ValueError, match=said):
            read_words(with_words(tmp_path / "a.gguf", **more))
