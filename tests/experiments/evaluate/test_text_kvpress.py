"""`evaluate text --against kvpress` on a small random Llama: what both keep, and their losses."""

import json

import jax
import numpy as np
import pytest
from rich.console import Console
from test_text import Letters

from jaxmem.decoder.decoder import DecoderConfig, init_decoder
from jaxmem.experiments.benchmark.step_theirs import PRESSES
from jaxmem.experiments.evaluate import text as command
from jaxmem.models.hf.gguf import Words
from jaxmem.models.text import text_model_of
from jaxmem.rope import rope_1d

pytestmark = pytest.mark.parity
CFG = DecoderConfig(2, 32, 4, 2, 8, 48, 128, rope_1d(8, 1e4), tied=True)
SAME = {"snapkv": 0.995, "knorm": 0.98, "keydiff": 0.995, "tova": 0.995, "streaming_llm": 1.0}
"""Of these both keep the same tokens; the others differ by method, see docs/evaluate.md.

Equal letters have keys of equal norm in the first layer, and ties are broken differently.
"""


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("kvpress")
    words = Words(Letters(), (0,), 4000)
    return text_model_of("letters", CFG, init_decoder(CFG, jax.random.key(0)), words)


def run(model, out, console=None, **more):
    config = command.TextConfig(
        **{
            "memories": ",".join(PRESSES), "tokens": 600, "chunk": 150, "shares": (0.5,),
            "newest": (0.0,), "keys": 1, "depths": 2, "alone": 0, "against": "kvpress", "out": out,
            "options": {"streaming_llm": {"reindex": False}}, **more,
        }
    )  # fmt: skip
    return command.run(config, model, console or Console(quiet=True))


@pytest.fixture(scope="module")
def ran(model, tmp_path_factory):
    out, console = tmp_path_factory.mktemp("against"), Console(width=250, record=True)
    found = run(model, out, console)
    return out, {one.memory: one for one in found}, console.export_text()


@pytest.mark.parametrize("name", SAME)
def test_both_keep_the_same_and_lose_the_same(ran, name):
    one = ran[1][name]
    assert one.theirs.alike.min() >= SAME[name]
    near = 2e-3 if SAME[name] > 0.99 else 2e-2
    np.testing.assert_allclose(one.theirs.loss, one.loss, atol=near)
    np.testing.assert_allclose(one.theirs.nats, one.nats, atol=5 * near)


def test_others_are_alike_as_far_as_their_methods_are(ran):
    alike = {name: float(one.theirs.alike.min()) for name, one in ran[1].items()}
    assert alike["expected_attention"] > 0.9
    assert abs(alike["random"] - 0.5) < 0.15 and 0.5 < alike["h2o"] < 1
    for one in ran[1].values():  # before anything is dropped there is no difference
        np.testing.assert_allclose(one.theirs.loss[0, 0], one.loss[0, 0], atol=1e-4)


def test_tables_and_cells_say_it(model, ran):
    out, found, shown = ran
    assert "kvpress on the same weights and texts" in shown
    document = json.loads((out / "results.json").read_text())
    assert {c["memory"]: c["kvpress"]["alike"]["share"] for c in document["cells"]} == {
        name: pytest.approx(float(one.theirs.alike[0]), abs=1e-4) for name, one in found.items()
    }
    cell = json.loads((out / "cells" / "knorm_0.5_0.json").read_text())
    assert len(cell["texts"]["several-0"]["kvpress"]["loss"]) == 4


def test_what_lacks_kvpress_is_measured_again(model, tmp_path):
    (before,) = run(model, tmp_path, memories="knorm", against=None)
    (after,) = run(model, tmp_path, memories="knorm")
    assert before.theirs is None and after.theirs.alike.shape == (1,)
    np.testing.assert_array_equal(before.loss, after.loss)


def test_memories_that_kvpress_has_not_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="none of them in omnimem"):
        run(model, tmp_path, memories="omnimem")
