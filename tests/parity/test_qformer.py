"""The windowed Q-Former against transformers' BLIP-2 module, from a small reference directory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from passes import FEATURES, close

from jaxmem.models.encoders import qformer
from jaxmem.models.hf.checkpoint import load
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.weights import abstract


@pytest.fixture(scope="module")
def reference(golden):
    """Config, weights and arrays; tests/parity/live/qformer_cases.py writes them."""
    folder = golden / "hf" / "qformer"
    if not (folder / "reference.npz").exists():
        pytest.skip(f"no reference.npz in {folder}")
    with np.load(folder / "reference.npz") as file:
        arrays = {name: file[name] for name in file.files}
    config = qformer.read_config(read_json(folder), window=int(arrays["window"]))
    table = qformer.weight_table(config, "query_tokens", names=qformer.BLIP2)
    return config, load(folder, table), arrays


def test_one_query_for_each_window(reference):
    config, params, file = reference
    run = jax.jit(lambda p, x: qformer.encode(p, config, x))
    found = run(params, jnp.asarray(file["rows"]))
    clips, rows, _ = file["rows"].shape
    assert found.shape == (clips, rows // config.window, config.width)
    close(found, file["out"], FEATURES)


def test_queries_of_a_window_see_each_other(reference):
    config, params, file = reference
    three = qformer.read_config(
        {
            "hidden_size": config.width, "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads, "intermediate_size": config.mlp_width,
            "encoder_hidden_size": config.inputs,
        },
        window=config.window, queries=file["three"].shape[1],
    )  # fmt: skip
    params = {**params, "queries": jnp.asarray(file["three"]).reshape(-1)}
    close(qformer.encode(params, three, jnp.asarray(file["rows"])), file["out_three"], FEATURES)


def test_windows_are_independent(reference):
    config, params, file = reference
    rows = jnp.asarray(file["rows"])
    whole = qformer.encode(params, config, rows)
    part = qformer.encode(params, config, rows[1:, config.window : 3 * config.window])
    close(part[0], whole[1, 1:3], 1e-6)


def test_names_of_bert(reference):
    """The same tree under the names of BERT's own attention and norm."""
    config, params, _ = reference
    table = qformer.weight_table(config, "q", "former.bert.")
    assert table["queries"].name == "q"
    assert table["norm.scale"].name == "former.bert.embeddings.LayerNorm.weight"
    name = "former.bert.encoder.layer.{}.crossattention.self.key.weight"
    assert table["blocks.cross.k.kernel"].name == name
    shapes = jax.tree.map(lambda x: x.shape, abstract(table))
    assert shapes == jax.tree.map(lambda x: x.shape, params)


def test_errors(reference):
    config, params, file = reference
    rows = jnp.asarray(file["rows"])
    clips, count, width = rows.shape
    message = rf"a multiple of {config.window}, {width}\], got \({clips}, {count - 1}, {width}\)"
    with pytest.raises(ValueError, match=message):
        qformer.encode(params, config, rows[:, 1:])
    with pytest.raises(ValueError, match="pad the sound"):
        qformer.encode(params, config, rows[..., 1:])
    raw = {
        "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
        "intermediate_size": 8, "encoder_hidden_size": 32,
    }  # fmt: skip
    with pytest.raises(ValueError, match="cross_attention_frequency of the Q-Former is 2"):
        qformer.read_config({**raw, "cross_attention_frequency": 2}, window=5)
    with pytest.raises(ValueError, match="the config of the Q-Former has no hidden_size"):
        qformer.read_config({**raw, "hidden_size": None}, window=5)
    with pytest.raises(ValueError, match="cannot be cut into 5 heads"):
        qformer.read_config({**raw, "num_attention_heads": 5}, window=5)
