"""Reading config.json of Mamba-2: sizes of published models, and what is refused."""

import json
import math

import jax
import pytest

from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.models.mamba.mamba2 import load, read_config

STATE_SPACES = {
    "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}  # fmt: skip
HF = {"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 10}
HF |= {"num_heads": 2, "n_groups": 1}


def spaces(**more):
    """A config.json of state-spaces with more in its `ssm_cfg`."""
    return {**STATE_SPACES, "ssm_cfg": {"layer": "Mamba2", **more}}


def test_the_published_model_of_2_7_billion_weights(tmp_path):
    """Its state is 163.9 MiB, however long the stream."""
    (tmp_path / "config.json").write_text(json.dumps(STATE_SPACES))
    decoder, params = load(tmp_path, abstract=True, dtype="bfloat16")
    count = sum(x.size for x in jax.tree.leaves(params))
    assert decoder.vocab == 50288 and decoder.tied and abs(count / 1e9 - 2.7) < 0.01
    (mixer,) = decoder.stacks
    leaves = jax.tree.leaves(jax.eval_shape(lambda: mixer.init(decoder.width)))
    held = decoder.layers * sum(x.size * x.dtype.itemsize for x in leaves)
    assert mixer.heads == 80 and round(held / 2**20, 1) == 163.9


def test_limits_of_a_step_are_two_numbers_the_smaller_one_first():
    for pair in ([0, 0.1], [0.1, 0.1], [0.1, math.inf]):
        (mixer,) = read_config({**HF, "time_step_limit": pair}).stacks
        assert mixer.limit == tuple(pair)
    for limit in ((0.3, 0.02), (0.1,), (0.0, float("nan"))):
        with pytest.raises(ValueError, match=r"got \(.*: set the smaller one first"):
            Mamba2(2, limit=limit)


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
        ({**HF, "num_hidden_layers": "2"}, "num_hidden_layers '2', expected at most 10,000"),
        ({**HF, "num_hidden_layers": 20_000}, "num_hidden_layers 20000, expected at most 10,000"),
        ({**HF, "num_hidden_layers": 10**8}, "num_hidden_layers 100000000, expected at most"),
        ({**HF, "num_hidden_layers": 0}, "num_hidden_layers is 0 in config.json, expected a whole"),
        ({**HF, "vocab_size": 9.5}, "vocab_size is 9.5 in config.json, expected a whole number"),
        ({**HF, "num_heads": 0}, "num_heads is 0 in config.json, expected a whole number"),
        ({**HF, "layer_norm_epsilon": "a"}, "layer_norm_epsilon is 'a' in config.json"),
        ({**HF, "layer_types": 5}, "layer_types is 5 in config.json, expected a list"),
        ({**HF, "layer_types": ["mamba2"]}, "layer_types names 1 layers"),
        ({**HF, "time_step_limit": 5}, "time_step_limit is 5 in config.json, expected the small"),
        ({**HF, "time_step_limit": [0.1]}, r"time_step_limit is \[0.1\] in config.json"),
        ({**HF, "time_step_limit": [0.3, 0.02]}, r"time_step_limit is \[0.3, 0.02\]"),
        ({**HF, "time_step_limit": [0, "a"]}, r"time_step_limit is \[0, 'a'\]"),
        ({**HF, "time_step_limit": [0, {"__float__": "NaN"}]}, "time_step_limit is .*NaN"),
        ({**STATE_SPACES, "ssm_cfg": 5}, "ssm_cfg is 5 in config.json, expected a JSON object"),
        ({**STATE_SPACES, "n_layer": 10**8}, "n_layer 100000000, expected at most 10,000"),
        ({**STATE_SPACES, "pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple is 0"),
        ({**HF, "time_step_limit": [-2, -1]}, r"time_step_limit is \[-2, -1\] .*, a number from 0"),
        ({**HF, "time_step_limit": [-1, 1]}, r"time_step_limit is \[-1, 1\] in config.json"),
        ({**HF, "time_step_limit": [True, 2]}, r"time_step_limit is \[True, 2\] in config.json"),
        ({**HF, "time_step_limit": 2 * [math.inf]}, r"time_step_limit is \[inf, inf\] in config"),
        ({**HF, "time_step_limit": 2 * [{"__float__": "Infinity"}]}, "time_step_limit is .*Inf"),
        ({**HF, "use_bias": []}, r"use_bias is \[\] in config.json, expected true or false: use"),
        ({**HF, "use_conv_bias": {}}, "use_conv_bias is {} in config.json, expected true or false"),
        ({**HF, "tie_word_embeddings": "no"}, "tie_word_embeddings is 'no' in config.json, expect"),
        (
            {**STATE_SPACES, "tie_embeddings": [1]},
            r"tie_embeddings is \[1\] in config.json, expect",
        ),
        (spaces(bias="false"), "bias is 'false' in ssm_cfg of config.json, expected true or false"),
        (spaces(conv_bias=1), "conv_bias is 1 in ssm_cfg of config.json, expected true or false"),
        (spaces(dt_limit=[-1, 1]), r"ssm_cfg.dt_limit is \[-1, 1\] in config.json"),
        (spaces(headdim=0), "headdim is 0 in ssm_cfg of config.json"),
        (spaces(dt_limit=[0.1]), r"ssm_cfg.dt_limit is \[0.1\] in config.json"),
    ],
)
def test_what_is_wrong_or_not_implemented_is_refused(config, said):
    with pytest.raises(ValueError, match=said):
        read_config(config)
