"""Nemotron-H from a directory to answers, against plain loops; sizes; what is refused."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmem as jm
from jaxmem.bound import question_rows
from jaxmem.decoder.decoder import embed, init_decoder
from jaxmem.decoder.program import make_program, spec_of
from jaxmem.models.mamba.nemotron_h import RENAMES, load, read_config, weight_table

PATTERN = "M-*M-"
TINY = {
    "model_type": "nemotron_h", "hybrid_override_pattern": PATTERN, "num_hidden_layers": 5,
    "hidden_size": 12, "vocab_size": 30, "intermediate_size": 20, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "mamba_num_heads": 4, "mamba_head_dim": 3,
    "ssm_state_size": 5, "n_groups": 2, "conv_kernel": 3, "mlp_bias": True, "time_step_min": 0.5,
}  # fmt: skip
EIGHT = {
    "model_type": "nemotron_h", "hidden_size": 4096, "vocab_size": 131072, "num_hidden_layers": 52,
    "hybrid_override_pattern": f"M-M-M-M*-{3 * 'M-M-M-M-M*-'}M-M-M-M-M-",
}  # fmt: skip
ROWS, CHUNK, QUESTION = 32, 8, 5
IDS = np.random.default_rng(1).integers(0, 30, ROWS + QUESTION)


@pytest.fixture(scope="module")
def tensors():
    rng, found = np.random.default_rng(0), {}
    for weight in weight_table(read_config(TINY)).values():
        for name in weight.names:
            x = rng.normal(size=weight.shape) / weight.shape[-1] ** 0.5
            found[name] = (x + ("norm" in name)).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("nemotron-h")
    (path / "config.json").write_text(json.dumps(TINY))
    save_file(tensors, path / "model.safetensors")
    return path


def silu(x):
    return x / (1 + np.exp(-x))


def normed(x, eps=1e-5):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps)


def attention(w, x):
    q, k, v = (
        (x @ w[f"{n}_proj.weight"].T).reshape(len(x), -1, TINY["head_dim"]) for n in ("q", "k", "v")
    )
    k, v = (np.repeat(y, q.shape[1] // y.shape[1], axis=1) for y in (k, v))
    scores = np.exp(np.einsum("qhd,khd->hqk", q, k) / TINY["head_dim"] ** 0.5)
    scores = np.tril(scores)
    out = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
    return out.reshape(len(x), -1) @ w["o_proj.weight"].T


def mlp(w, x):
    inner = np.maximum(x @ w["up_proj.weight"].T + w["up_proj.bias"], 0) ** 2
    return inner @ w["down_proj.weight"].T + w["down_proj.bias"]


def mamba(w, x):
    heads, dim, groups, size = 4, 3, 2, 5
    z, conv, dt = np.split(x @ w["in_proj.weight"].T, [12, 12 + 32], axis=1)
    taps = w["conv1d.weight"][:, 0].T
    padded = np.concatenate([np.zeros((len(taps) - 1, 32)), conv])
    conv = sum(padded[i : i + len(x)] * tap for i, tap in enumerate(taps))
    inner, b, c = np.split(silu(conv + w["conv1d.bias"]), [12, 22], axis=1)
    inner = inner.reshape(-1, heads, dim)
    b, c = (np.repeat(y.reshape(-1, groups, size), heads // groups, axis=1) for y in (b, c))
    dt = np.maximum(np.log1p(np.exp(dt + w["dt_bias"])), TINY["time_step_min"])
    state, out = np.zeros((heads, dim, size)), []
    for u, bt, ct, step in zip(inner, b, c, dt, strict=True):
        state = state * np.exp(-step * np.exp(w["A_log"]))[:, None, None]
        state = state + (step[:, None] * u)[..., None] * bt[:, None]
        out.append(np.einsum("hpn,hn->hp", state, ct) + w["D"][:, None] * u)
    y = np.reshape(out, (len(x), -1)) * silu(z)
    y = normed(y.reshape(-1, groups, heads * dim // groups)).reshape(y.shape)
    return (y * w["norm.weight"]) @ w["out_proj.weight"].T


def plain(tensors, ids):
    """The logits of a prompt, layer by layer."""
    h = tensors["backbone.embeddings.weight"][ids].astype(np.float64)
    for i, kind in enumerate(PATTERN):
        at = f"backbone.layers.{i}."
        own = {k.removeprefix(f"{at}mixer."): v for k, v in tensors.items() if k.startswith(at)}
        x = normed(h) * tensors[f"{at}norm.weight"]
        h = h + {"M": mamba, "*": attention, "-": mlp}[kind](own, x)
    return normed(h) * tensors["backbone.norm_f.weight"] @ tensors["lm_head.weight"].T


def answered(model, memory):
    """The bytes of a stream's carry after each half, and the answer to a question after it."""
    decoder, params = model
    program = make_program(decoder, memory, spec_of(decoder, chunk=CHUNK))
    rows = [
        jm.embeds(embed(params, ids), jm.Modality.TEXT) for ids in IDS[:ROWS].reshape(-1, CHUNK)
    ]
    carry, held = jm.start(program), []
    for half in (rows[:2], rows[2:]):
        chunks = jax.tree.map(lambda *x: np.stack(x), *half)
        carry = jm.stream(params, carry, chunks, program=program)
        held.append(sum(x.nbytes for x in jax.tree.leaves(carry)))
    question = question_rows(params, IDS[ROWS:], program=program)
    return held, jm.ask(params, carry, question, program=program, max_new=2)


def test_a_stream_is_plain_loops_and_a_memory_bounds_its_layer_that_attends(folder, tensors):
    model = load(folder)
    assert (model.decoder.layers, model.decoder.attends) == (5, 1)
    _, whole = answered(model, jm.Full(ROWS + QUESTION + 2))
    want = plain(tensors, IDS)[-1]
    np.testing.assert_allclose(whole.first, want, atol=1e-4 * np.abs(want).max())
    first = int(whole.ids[0])
    assert first == want.argmax()
    assert int(whole.ids[1]) == plain(tensors, [*IDS, first])[-1].argmax()
    held, bounded = answered(model, jm.OmniMem(8, text=0))
    assert held[0] == held[1]
    assert np.isfinite(bounded.first).all()
    assert np.abs(bounded.first - want).max() > 1e-3 * np.abs(want).max()


def test_names_of_transformers_modules_and_heads_of_more_tokens_load_too(folder, tensors, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    ((new, old),) = RENAMES
    renamed = {name.replace(old, new): x for name, x in tensors.items()}
    extra = {"mtp.layers.0.norm.weight": np.ones(3, np.float32)}
    save_file(renamed | extra, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, load(folder).params)


def test_the_published_model_of_8_billion_weights(tmp_path):
    """Its states are 98.8 MiB, and it holds 16 KiB of keys and values a token."""
    (tmp_path / "config.json").write_text(json.dumps(EIGHT))
    decoder, params = load(tmp_path, abstract=True, dtype="bfloat16")
    count = sum(x.size for x in jax.tree.leaves(params))
    spec = spec_of(decoder, chunk=1)
    assert abs(count / 1e9 - 8.1) < 0.01
    assert round(spec.state_bytes / 2**20, 1) == 98.8
    assert spec.layers == 4
    assert 2 * spec.layers * spec.kv_heads * spec.head_dim * 2 == 16 * 2**10


@pytest.mark.parametrize("pattern", [PATTERN, "**", "--M"])
def test_what_is_loaded_is_the_tree_of_the_decoder(tmp_path, pattern):
    config = {**TINY, "hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder, params = load(tmp_path, abstract=True)
    made = jax.eval_shape(lambda: init_decoder(decoder, jax.random.key(0)))
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, params)


def test_lists_of_words_say_the_same_as_a_pattern():
    old = {"M": "mamba", "*": "attention", "-": "mlp"}
    new = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
    for words in (old, new):
        kinds = [words[kind] for kind in PATTERN]
        wrong = {"layers_block_type": kinds, "hybrid_override_pattern": "E"}  # does not count
        assert read_config({**TINY, **wrong}) == read_config(TINY)


def test_load_names_the_function_for_models_of_text(folder):
    with pytest.raises(ValueError, match=r"sees no video: load it with .*mamba\.nemotron_h\.load"):
        jm.load(folder)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"hybrid_override_pattern": "M-E*-"},
            r"^layer 3 of 5 is 'E' in config.json \(hybrid_override_pattern\); the kinds that this "
            r"family has are M and \* and -: use",
        ),
        (
            {"layers_block_type": ["mlp", "moe"], "num_hidden_layers": 2},
            r"^layer 2 of 2 is 'moe' in config.json \(layers_block_type\)",
        ),
        ({"num_hidden_layers": 4}, "hybrid_override_pattern names 5 layers"),
        ({"hybrid_override_pattern": ""}, "expected the kind of every layer"),
        ({"hybrid_override_pattern": 5}, "expected the kind of every layer"),
        ({"hybrid_override_pattern": None}, "no hybrid_override_pattern"),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"intermediate_size": 0}, "intermediate_size is 0 in config.json, expected a whole"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0 in config.json, expected a whole"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4' in config.json"),
        ({"mamba_num_heads": "4"}, "mamba_num_heads is '4' in config.json"),
        ({"time_step_min": "a"}, "time_step_min is 'a' in config.json, expected a number from 0"),
        ({"time_step_min": -1}, "time_step_min is -1 in config.json"),
        ({"time_step_min": float("inf")}, "time_step_min is inf in config.json"),
        ({"mlp_bias": []}, r"mlp_bias is \[\] in config.json, expected true or false: use"),
        ({"use_bias": "false"}, "use_bias is 'false' in config.json, expected true or false: use"),
        ({"use_conv_bias": {}}, "use_conv_bias is {} in config.json, expected true or false: use"),
        ({"layer_norm_epsilon": True}, "layer_norm_epsilon is True in config.json"),
        ({"num_hidden_layers": "5"}, "num_hidden_layers '5', expected at most 10,000"),
        ({"hybrid_override_pattern": "M" * 20_000, "num_hidden_layers": 20_000}, "20000, expected"),
        ({"layers_block_type": 5}, "layers_block_type is 5 in config.json"),
    ],
)
def test_what_is_not_implemented_is_refused_in_a_sentence(more, said):
    with pytest.raises(ValueError, match=said):
        read_config({**TINY, **more})
