"""The step against transformers and kvpress: the same sizes, weights and rows. Needs both."""

import jax
import numpy as np
import pytest

from jaxmem.decoder.decoder import DecoderConfig, init_decoder, logits
from jaxmem.decoder.program import init_carry
from jaxmem.decoder.step import chunk_step
from jaxmem.experiments.benchmark.step import StepConfig
from jaxmem.experiments.benchmark.step_against import measure_against
from jaxmem.experiments.benchmark.step_model import StepModel, chunks_of, program_of
from jaxmem.experiments.benchmark.step_theirs import PRESSES, Theirs, llama
from jaxmem.memory.base import at_layer
from jaxmem.rope import rope_1d

pytestmark = pytest.mark.parity
CONFIG = DecoderConfig(2, 32, 4, 2, 8, 48, 60, rope_1d(8, 1e5), tied=True)


def model(config=CONFIG):
    return StepModel(config, init_decoder(config, jax.random.key(0)), "drawn")


def test_their_decoder_is_ours():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    mine = model()
    program = program_of(CONFIG, "full", 16, 16)
    rows = at_layer(chunks_of(program), 0)
    _, h = chunk_step(mine.params, program, init_carry(program), rows)
    with torch.no_grad():
        theirs = llama(*mine[:2])(inputs_embeds=torch.tensor(np.array(rows.x))[None]).logits[0]
    np.testing.assert_allclose(logits(mine.params, CONFIG, h), theirs.numpy(), atol=2e-5)


def test_all_that_both_have_are_timed():
    pytest.importorskip("kvpress")
    config = StepConfig(
        against="transformers,kvpress", memories=",".join(PRESSES), slots="80", chunk=40, rounds=1
    )
    rows = measure_against(config, model())
    assert [r.memory for r in rows if r.other == "kvpress"] == list(PRESSES)
    assert [r.what for r in rows if r.other == "transformers"][-2:] == ["first token", "token"]
    assert all(r.ours > 0 and r.theirs > 0 for r in rows)


def test_their_cache_is_as_full_as_ours():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    theirs = Theirs(model(), np.zeros((2, 8, 32), np.float32), slots=20)
    assert theirs.filled().get_seq_length() == 20
    assert theirs.prefill()() > 0 and theirs.answer(np.array([1, 2]), 2)() > 0


def test_other_decoders_are_refused():
    with pytest.raises(ValueError, match="Llama"):
        llama(DecoderConfig(1, 8, 2, 1, 4, 8, 9, rope_1d(4), qk_norm=True), {})
