"""What config.json files leave out, or write as null."""

import json

import pytest

from jaxmem.models.hf.config import read_json, rope_theta
from jaxmem.models.qwen.config import BLOCKS, INTERLEAVED, read_decoder

TEXT = {
    "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128,
    "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 100,
}  # fmt: skip


def test_a_null_is_a_key_that_is_not_there(tmp_path):
    value = {"a": None, "b": {"c": None, "d": [1, {"e": None}]}}
    (tmp_path / "config.json").write_text(json.dumps(value))
    assert read_json(tmp_path) == {"b": {"d": [1, {}]}}


@pytest.mark.parametrize(
    ("turning", "theta", "sections"),
    [(BLOCKS, 1e6, (16, 24, 24)), (INTERLEAVED, 5e5, (24, 20, 20))],
    ids=["qwen2.5-vl", "qwen3-vl"],
)
def test_what_a_file_leaves_out_is_the_familys(turning, theta, sections):
    """Converted copies drop keys; the layout of the sections is never the file's choice."""
    rope = lambda **more: read_decoder({**TEXT, **more}, turning, qkv_bias=True, qk_norm=False).rope
    whole = {"rope_theta": theta, "mrope_section": list(sections), "rope_type": "default"}
    assert rope() == rope(rope_parameters={}) == rope(rope_parameters=whole)
    assert rope(rope_scaling={"type": "mrope", "mrope_section": list(sections)}) == rope()
    assert rope(rope_parameters={**whole, "mrope_interleaved": True}) == rope()
    assert rope(rope_theta=5.0) != rope()
    assert rope(rope_parameters={"rope_theta": 5.0}) == rope(rope_theta=5.0)


def test_sections_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\[16, 24, 24\] do not add up to half of the head width"):
        read_decoder({**TEXT, "head_dim": 64}, BLOCKS, qkv_bias=True, qk_norm=False)


def test_without_a_family_the_base_is_that_of_qwen2():
    assert rope_theta({}) == 10_000 and rope_theta({"rope_theta": 3}) == 3
