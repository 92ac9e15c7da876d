"""Reading config.json of Mamba-2: sizes of published models, and what is refused."""

import json

import jax
import pytest

from jaxmem.models.mamba.mamba2 import load, read_config

STATE_SPACES = {
    "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}  # fmt: skip
HF = {"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 10}
HF |= {"num_heads": 2, "n_groups": 1}


def test_the_published_model_of_2_7_billion_weights(tmp_path):
    """Its state is 162 MiB, however long the stream."""
    (tmp_path / "config.json").write_text(json.dumps(STATE_SPACES))
    decoder, params = load(tmp_path, abstract=True, dtype="bfloat16")
    count = sum(x.size for x in jax.tree.leaves(params))
    assert decoder.vocab == 50288 and decoder.tied and abs(count / 1e9 - 2.7) < 0.01
    (mixer,) = decoder.stacks
    leaves = jax.tree.leaves(jax.eval_shape(lambda: mixer.init(decoder.width)))
    held = decoder.layers * sum(x.size * x.dtype.itemsize for x in leaves)
    assert mixer.heads == 80 and round(held / 2**20, 1) == 163.9


def test_infinity_is_read_as_transformers_writes_it():
    limit = [0.0, {"__float__": "Infinity"}]
    assert read_config({**HF, "time_step_limit": limit}) == read_config(HF)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**HF, "num_heads": 3}, "3 heads of 64 but expand times hidden_size is 128"),
        ({**HF, "model_type": "mamba"}, "model_type 'mamba', expected one of mamba2"),
        ({**HF, "hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"model_type": "mamba2", "vocab_size": 9}, "no hidden_size, num_hidden_layers"),
        ({**STATE_SPACES, "ssm_cfg": {}}, "ssm_cfg.layer is 'Mamba1'"),
        ({**STATE_SPACES, "attn_layer_idx": [9]}, r"attn_layer_idx is \[9\]"),
        ({**STATE_SPACES, "d_intermediate": 5}, "d_intermediate is 5"),
    ],
)
def test_what_is_not_implemented_is_refused(config, said):
    with pytest.raises(ValueError, match=said):
        read_config(config)
