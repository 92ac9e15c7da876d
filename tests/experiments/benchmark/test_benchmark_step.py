"""The benchmark of the step: exact figures, and the count of what the machine must do."""

import json

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.experiments.benchmark import __main__ as benchmark
from jaxmem.experiments.benchmark.step import decoder_of, least_flops
from jaxmem.rope import rope_1d


def test_step_command(capsys):
    argv = ["step", "--model", "tiny", "--memories", "recent,knorm", "--slots", "64"]
    assert benchmark.main([*argv, "--chunk", "32", "--rounds", "2", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [s["memory"] for s in steps] == ["recent", "knorm"]
    assert steps[0]["against"] == 1.0 and all(s["milliseconds"] > 0 for s in steps)
    assert all(s["copies"] == 0 and 0 < s["share"] < 2 for s in steps)


def test_operations_are_those_of_the_products_by_hand():
    config = DecoderConfig(2, 8, 4, 2, 4, 12, 50, rope_1d(4))
    each = 8 * 16 + 2 * 8 * 8 + 16 * 8 + 3 * 8 * 12  # q, k and v, o, and the MLP
    seen = 10 + 2  # slots, and half of the chunk's own rows
    assert least_flops(config, 4, 10) == 2 * 4 * 2 * (each + 2 * 16 * seen)


def test_a_published_decoder_is_known_by_its_name():
    assert decoder_of("smollm2").layers == 30 and decoder_of("qwen3-vl:2b").layers == 28
