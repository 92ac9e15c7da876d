"""A whole stream through the decoder step: OmniMem's released model, chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import decoder_config, decoder_params, read

from jaxmem.decoder.answer import decode, prefill
from jaxmem.decoder.decoder import embed, logits
from jaxmem.decoder.step import chunk_step, init_carry, make_program, spec_of
from jaxmem.memory import layout as pool
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.omnimem.omnimem import OmniMem


@pytest.fixture(scope="module")
def file(golden):
    path = golden / "omnimem" / "stream_decoder.npz"
    if not path.exists():
        pytest.skip(f"no {path.name} in the golden folder")
    return read(path)


def all_rows(file):
    """The whole prompt as rows with absolute positions, kinds and DeepStack vectors."""
    x = file["inputs_embeds"]
    kind = 1 + file["visual_mask"].reshape(-1) + 2 * file["audio_mask"].reshape(-1)
    layers = sum(name.startswith("deepstack") for name in file)
    deep = np.zeros((layers, *x.shape), np.float32)
    for l in range(layers):
        deep[l, file["visual_mask"].reshape(-1) == 1] = file[f"deepstack{l}"]
    pos = file["position_ids"].reshape(3, -1).T
    return x, pos.astype(np.int32), kind.astype(np.int8), deep


def rows_of(parts, start, stop, size, span=(0, 0, 0)):
    """Rows start..stop padded to `size`; the stream never moves its base, so rel is absolute."""
    x, pos, kind, deep = parts
    pad = size - (stop - start)
    cut = lambda a: np.pad(a[start:stop], [(0, pad)] + [(0, 0)] * (a.ndim - 1))
    deep = np.stack([cut(d) for d in deep])
    fields = (cut(x), cut(pos), cut(kind), np.asarray(span, np.int32), deep)
    return Embeds(*(jnp.asarray(field) for field in fields))


def test_stream_question_and_decoding(file):
    config = decoder_config(file)
    weights = decoder_params(file, head="lm_head")
    size, end = int(file["chunk_size"]), int(file["query_start"])
    memory = OmniMem(file["caps"], lam=float(file["lam"]), text=len(file["inputs_embeds"]))
    program = make_program(config, memory, spec_of(config, chunk=size))
    step = jax.jit(lambda carry, rows: chunk_step(weights, program, carry, rows)[0])

    parts, carry = all_rows(file), init_carry(program)
    for i, start in enumerate(range(0, end, size)):
        carry = step(carry, rows_of(parts, start, min(start + size, end), size))
        for l, state in enumerate(pool.layers(program.layout, carry.state)):
            tokens = state.slots.kv
            held = np.asarray(tokens.modality[:, 0]) != 0
            # `order` skips one number per chunk, which the clock keeps free.
            order = np.asarray(tokens.index[held, 0])
            arrived = order - order // (size + 1)
            np.testing.assert_array_equal(arrived, file[f"kept_global_c{i}_l{l}"])
            kept = file[f"importance_c{i}_l{l}"][file[f"kept_c{i}_l{l}"]]
            np.testing.assert_allclose(state.slots.importance[held], kept, rtol=2e-5, atol=1e-6)

    total = len(parts[0])
    follow = np.asarray(file["decode_positions"]).reshape(-1)
    question = rows_of(parts, end, total, total - end + 3, span=[follow[0]] * 3)
    question = question._replace(deepstack=None)
    dialogue, h = prefill(weights, program, carry, question, room=len(follow))
    out = logits(weights, config, h[: total - end])
    np.testing.assert_allclose(out, file["logits"], rtol=1e-4, atol=2e-5)
    for token, expected in zip(file["decode_tokens"], file["decode_logits"], strict=True):
        x = embed(weights, jnp.asarray(int(token)))
        dialogue, out = decode(weights, program, dialogue, x)
        np.testing.assert_allclose(logits(weights, config, out), expected, rtol=1e-4, atol=2e-5)
