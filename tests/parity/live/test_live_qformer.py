"""The windowed Q-Former against transformers' BLIP-2 and BERT modules given the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import spread
from passes import FEATURES, close
from qformer_cases import blip2, read, stored
from safetensors.numpy import save_file

from jaxmem.models.encoders import qformer
from jaxmem.models.hf.checkpoint import load


@pytest.mark.parametrize("seed", range(4))
def test_blip2(hf, tmp_path, seed):
    """Random sizes, one and several queries, several clips."""
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 5))
    sizes = {
        "num_attention_heads": heads,
        "hidden_size": 2 * heads * int(rng.integers(2, 6)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "intermediate_size": 8 * int(rng.integers(1, 6)),
        "encoder_hidden_size": 4 * int(rng.integers(1, 8)),
    }
    raw, model = blip2(hf.torch, hf.transformers, seed, **sizes)
    window, count = int(rng.integers(1, 9)), 1 + seed % 3
    queries = rng.normal(size=(1, count, sizes["hidden_size"])).astype(np.float32)
    shape = (int(rng.integers(1, 4)), window * int(rng.integers(1, 5)), raw.encoder_hidden_size)
    rows = rng.normal(size=shape).astype(np.float32)
    save_file(stored(model, queries), tmp_path / "model.safetensors")
    config = qformer.read_config(raw.to_dict(), window=window, queries=count)
    table = qformer.weight_table(config, "query_tokens", names=qformer.BLIP2)
    params = load(tmp_path, table)
    found = jax.jit(lambda p, x: qformer.encode(p, config, x))(params, jnp.asarray(rows))
    close(found, read(hf.torch, model, queries, rows, window), FEATURES)


@pytest.mark.parametrize("seed", range(2))
def test_bert(hf, tmp_path, seed):
    """BERT itself with cross-attention and one query, whose place and type add nothing."""
    rng, torch = np.random.default_rng(seed), hf.torch
    window, heads, width = 5, 2 + seed, 8 * (2 + seed)
    raw = hf.transformers.BertConfig(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=40,
        vocab_size=10, max_position_embeddings=4, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    model = hf.transformers.BertModel(raw, add_pooling_layer=False).float().eval()
    spread(torch, model, seed)
    with torch.no_grad():
        for name in ("position", "token_type"):
            getattr(model.embeddings, f"{name}_embeddings").weight.zero_()
    queries = rng.normal(size=(1, 1, width)).astype(np.float32)
    rows = rng.normal(size=(2, 3 * window, width)).astype(np.float32)
    cut = torch.tensor(rows.reshape(-1, window, width))
    with torch.no_grad():
        asked = torch.tensor(queries).expand(len(cut), -1, -1)
        out = model(inputs_embeds=asked, encoder_hidden_states=cut).last_hidden_state
    save_file(stored(model, queries), tmp_path / "model.safetensors")
    raw = raw.to_dict() | {"encoder_hidden_size": width}
    config = qformer.read_config(raw, window=window)
    names = qformer.BERT._replace(inner="intermediate", outer="output")
    table = qformer.weight_table(config, "query_tokens", names=names)
    params = load(tmp_path, table, ignore=("embeddings.*_embeddings.weight",))
    found = qformer.encode(params, config, jnp.asarray(rows))
    close(found, out.numpy().reshape(2, 3, width), FEATURES)
