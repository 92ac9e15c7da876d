"""Mamba-2 of random sizes against the installed transformers: logits, pieces, greedy tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NEW, SURE, spread
from passes import LOGITS, close

from jaxmem.asking import ask
from jaxmem.bound import Bound, question_rows
from jaxmem.decoder.decoder import embed, logits
from jaxmem.decoder.program import make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.kv import TEXT
from jaxmem.loop import start
from jaxmem.memory.base import Embeds
from jaxmem.memory.baselines import Recent
from jaxmem.models.mamba.mamba2 import load


@pytest.mark.parametrize("seed", range(4))
def test_mamba2(hf, tmp_path, seed):
    rng, torch = np.random.default_rng(seed), hf.torch
    groups, dim = int(rng.integers(1, 4)), 4 * int(rng.integers(1, 4))
    heads = 2 * groups * int(rng.integers(1, 4))
    raw = hf.transformers.Mamba2Config(
        num_heads=heads, head_dim=dim, hidden_size=heads * dim // 2, vocab_size=70,
        state_size=int(rng.integers(3, 17)), n_groups=groups, num_hidden_layers=3,
        conv_kernel=int(rng.integers(2, 6)), use_bias=bool(seed % 2), use_conv_bias=seed != 1,
        tie_word_embeddings=bool(seed // 2), chunk_size=8, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    model = hf.transformers.Mamba2ForCausalLM(raw).float().eval()
    spread(torch, model, seed)
    model.save_pretrained(tmp_path)
    decoder, params = load(tmp_path)
    size = 40
    program = make_program(decoder, Recent(1, sinks=0), spec_of(decoder, chunk=size))
    bound, carry = Bound(params), start(program)
    step = jax.jit(lambda carry, rows: chunk_step(params, program, carry, rows))
    ids, seen = rng.integers(0, 70, 100), []
    with torch.no_grad():
        want = model(torch.tensor(ids[None])).logits[0].numpy()
    for cut in np.split(ids[:90], [40, 41, 43, 70]):
        rows, x = len(cut), embed(params, jnp.asarray(cut))
        pos, end = jnp.arange(rows, dtype=jnp.int32)[:, None], jnp.full((1,), rows, jnp.int32)
        carry, h = step(carry, Embeds(x, pos, jnp.full(rows, TEXT, jnp.int8), end))
        seen.append(logits(params, decoder, h))
    close(jnp.concatenate(seen), want[:90], LOGITS)
    question = question_rows(params, ids[90:], program=program)
    answer = ask(bound, carry, question, program=program, max_new=NEW)
    close(answer.first, want[-1], LOGITS)
    with torch.no_grad():
        out = model.generate(
            torch.tensor(ids[None]), max_new_tokens=NEW, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    tokens = out.sequences[0, len(ids) :].numpy()
    best = [np.sort(x[0].numpy())[-2:] for x in out.logits]
    sure = [b[1] - b[0] > SURE * abs(b).max() for b in best]
    certain = sure.index(False) if False in sure else NEW
    assert certain
    np.testing.assert_array_equal(np.asarray(answer.ids)[:certain], tokens[:certain])
