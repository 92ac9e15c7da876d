"""Mamba-2 and Nemotron-H of random sizes against the installed transformers.

Logits, pieces, greedy tokens.
"""

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
from jaxmem.memory.baselines import Full, Recent
from jaxmem.memory.exchange import Embeds
from jaxmem.models.mamba import mamba2, nemotron_h


def check_stream(hf, model, loaded, memory, rng, **how):
    """Compare a stream in pieces, a question's logits and greedy tokens; `how` is generate's."""
    torch = hf.torch
    decoder, params = loaded
    program = make_program(decoder, memory, spec_of(decoder, chunk=40))
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
            return_dict_in_generate=True, **how,
        )  # fmt: skip
    tokens = out.sequences[0, len(ids) :].numpy()
    best = [np.sort(x[0].numpy())[-2:] for x in out.logits]
    sure = [b[1] - b[0] > SURE * abs(b).max() for b in best]
    certain = sure.index(False) if False in sure else NEW
    assert certain
    np.testing.assert_array_equal(np.asarray(answer.ids)[:certain], tokens[:certain])


@pytest.mark.parametrize("seed", range(4))
def test_mamba2(hf, tmp_path, seed):
    rng = np.random.default_rng(seed)
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
    spread(hf.torch, model, seed)
    model.save_pretrained(tmp_path)
    check_stream(hf, model, mamba2.load(tmp_path), Recent(1, sinks=0), rng)


PATTERNS = ("M-*-", "*M-", "MM*-M-*-M", "-*M*-*")


@pytest.mark.parametrize("seed", range(len(PATTERNS)))
def test_nemotron_h(hf, tmp_path, seed):
    """transformers limits steps in prompts only, so its answers are made without a cache."""
    rng = np.random.default_rng(seed)
    groups, kv_heads = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    raw = hf.transformers.NemotronHConfig(
        hybrid_override_pattern=PATTERNS[seed], hidden_size=24, vocab_size=70,
        intermediate_size=4 * int(rng.integers(5, 12)), num_attention_heads=2 * kv_heads,
        num_key_value_heads=kv_heads, head_dim=2 * int(rng.integers(2, 8)),
        mamba_num_heads=2 * groups, mamba_head_dim=4 * int(rng.integers(1, 4)), n_groups=groups,
        ssm_state_size=int(rng.integers(3, 17)), conv_kernel=int(rng.integers(2, 6)),
        use_bias=bool(seed % 2), mlp_bias=bool(seed // 2), use_conv_bias=seed != 1, chunk_size=8,
        time_step_min=(0.001, 0.6)[seed % 2], bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    model = hf.transformers.NemotronHForCausalLM(raw).float().eval()
    spread(hf.torch, model, seed)
    model.save_pretrained(tmp_path)
    loaded = nemotron_h.load(tmp_path)
    assert loaded.decoder.attends == PATTERNS[seed].count("*")
    check_stream(hf, model, loaded, Full(120), rng, use_cache=False)
