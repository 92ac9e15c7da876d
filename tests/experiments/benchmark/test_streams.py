"""`benchmark streams`, from the command line to its figures."""

import json

import pytest

from jaxmem.experiments.benchmark.__main__ import main


@pytest.mark.slow
def test_streams_side_by_side_are_measured(capsys):
    argv = "streams --streams 2 --seconds 3 --questions 2 --rounds 1 --memory recent".split()
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chunks"] == 6 and found["dropped"] == 0 and found["answers"] == 5
    assert found["lanes_bytes"] >= 2 * found["state_bytes"] > 0
    assert found["throughput"] > 0 and found["first_token_ms"][0] > 0
    assert main(argv) == 0
    assert "2 streams side by side, recent" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option,words",
    [
        ("--streams 0", "must be positive"),
        ("--memory omnimem,recent", "of one memory"),
        ("--memory rekv", "host memory"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, option, words):
    assert main(["streams", *option.split()]) == 2
    assert words in capsys.readouterr().err
