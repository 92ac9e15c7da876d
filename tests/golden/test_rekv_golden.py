"""ReKV against the released code: a stream in pieces, recall, question, prompt and decoding.

The files hold one attention layer's queries, keys and values, so the memory's view, write and
recall run with the loop's own attention and bank, without projections.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import weights
from golden_files import found

from jaxmem import kv as tk
from jaxmem.decoder import answer
from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.decoder.program import Program
from jaxmem.memory.attention import attend_view
from jaxmem.memory.bank import retrieval
from jaxmem.memory.bank.bank import append, init_bank
from jaxmem.memory.base import Spec, at_layer
from jaxmem.memory.exchange import Embeds, Question
from jaxmem.memory.parts.positions import numbered, start
from jaxmem.memory.video.rekv import ReKV
from jaxmem.rope import angles, rope_1d, rotate

CLOSE = {"rtol": 0, "atol": 1e-5}
LAYER, WIDTH = np.zeros((), np.int32), 8


def pytest_generate_tests(metafunc):
    if "file" in metafunc.fixturenames:
        files = found(metafunc.config, "rekv/*.npz")
        cases = [(f, b) for f in files for b in range(int(weights.read(f)["batch"]))]
        metafunc.parametrize("file,entry", cases, ids=[f"{f.stem}-{b}" for f, b in cases])


def split(z, x, size: int):
    """Return the queries [T, H, d], keys and values [T, G, d] of fused rows, padded to `size`."""
    x = np.concatenate([x, np.full((size - len(x), x.shape[1]), 5, x.dtype)])
    h, g, d = (int(z[name]) for name in ("num_heads", "num_kv_heads", "head_dim"))
    q, k, v = np.split(x.reshape(size, h + 2 * g, d), [h, h + g], axis=1)
    return tuple(jnp.asarray(a) for a in (q, k, v))


SETTINGS = ("n_local", "block_size", "topk", "chunk_size", "n_init", "num_heads", "num_kv_heads")
SETTINGS += ("head_dim", "rope_theta", "exc_block_size")


@cache
def make_program(window, block, topk, chunk, sinks, h, g, d, theta, piece, capacity) -> Program:
    """Return the static part of a file's stream; files of equal settings share compilations."""
    memory = ReKV(
        window,
        block=block,
        topk=topk,
        chunk_blocks=chunk,
        sinks=sinks,
        capacity=capacity,
        space="device",
        open_block=False,
    )
    config = DecoderConfig(1, WIDTH, h, g, d, WIDTH, WIDTH, rope_1d(d, theta))
    return Program(config, memory, Spec(1, g, d, WIDTH, chunk=piece), None)


@partial(jax.jit, static_argnames="program")
def write_piece(program, carry, q, k, v, kind, clock):
    """Pass one piece: view, attention as in the loop, write, and what is evicted to the bank."""
    (state, bank), memory, spec = carry, program.memory, program.spec
    row = jnp.arange(kind.shape[0], dtype=jnp.int32)
    n = jnp.sum(kind != tk.EMPTY, dtype=jnp.int32)
    rows = Embeds(jnp.zeros((kind.shape[0], WIDTH)), row[:, None], kind, n[None])
    view = memory.view(spec, state, rows)
    rope = program.config.rope
    out, chunk, _ = attend_view(memory.requires, rope, view, q, k, v, rows, clock)
    state, evicted = memory.write(spec, state, chunk)
    return (state, append(bank, LAYER, evicted)), out


def encode(z, program, x):
    """Return the attention output of every row, and state and bank after the stream."""
    spec, size = program.spec, program.spec.chunk
    carry, outs, begin = (program.memory.init(spec), init_bank(program.memory, spec)), [], 0
    for length in z["append_lengths"].tolist():
        for at in range(begin, begin + length, size):
            n = min(size, begin + length - at)
            kind = np.where(np.arange(size) < n, tk.VISION, tk.EMPTY).astype(np.int8)
            rows = split(z, x[at : at + n], size)
            carry, out = write_piece(program, carry, *rows, kind, np.int32(at))
            outs.append(np.asarray(out)[:n].reshape(n, -1))
        begin += length
    return carry, np.concatenate(outs)


def program_of(z) -> Program:
    """Return the program of a file, with a bank that holds its whole stream."""
    return make_program(*(z[name].item() for name in SETTINGS), capacity=z["x"].shape[1])


@partial(jax.jit, static_argnames=("program", "first"))
def asked(program, view, tail, q, first: int):
    """Return the attention of a tail's rows from `first` on over a recalled view."""
    context, rows = answer._context(view, None, program, None), jnp.int32(len(tail.k))
    at = first + jnp.arange(q.shape[0], dtype=jnp.int32)
    turn = angles(program.config.rope, at[:, None])[:, None]
    out = answer._attend(program, q, turn, context, tail, jnp.asarray(first, jnp.int32), rows)
    return out.reshape(q.shape[0], -1)


def turned(program, k, v) -> answer.Tail:
    at = jnp.arange(k.shape[0], dtype=jnp.int32)
    return answer.Tail(rotate(k, angles(program.config.rope, at[:, None])[:, None]), v)


def test_stream_and_question(file, entry):
    z = weights.read(file)
    program = program_of(z)
    memory = program.memory
    (state, bank), out = encode(z, program, z["x"][entry])
    np.testing.assert_allclose(out, z["attn_out"][entry], **CLOSE)
    n = z["local_k"].shape[2]
    for ours, theirs in ((state.slots.k, "local_k"), (state.slots.v, "local_v")):
        np.testing.assert_array_equal(np.asarray(ours)[:n].transpose(1, 0, 2), z[theirs][entry])
    assert not np.asarray(state.slots.modality)[n:].any()

    q, k, v = split(z, z["x_question"][entry], z["x_question"].shape[1])
    query = Question(q, jnp.ones((q.shape[0],), bool), None)
    mine = at_layer(bank, LAYER)
    many = (len(z["x"][entry]) - int(z["n_init"])) // int(z["block_size"])
    if "block_repr" in z:
        theirs = z["block_repr"][entry].reshape(many, -1, int(z["head_dim"]))
        ours = np.repeat(state.aux.means[:many], theirs.shape[1] // k.shape[1], axis=1)
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    score = retrieval.scores(state.aux.means, query)
    if "block_scores" in z:  # the released code computes none if all blocks are read
        np.testing.assert_allclose(score[:many], z["block_scores"][entry], **CLOSE)
        mean, _ = retrieval.pooled(score, jnp.asarray(many), int(z["chunk_size"]))
        theirs = z["chunked_scores"][entry]
        np.testing.assert_allclose(mean[: len(theirs)], theirs, **CLOSE)
    index, keep = retrieval.best(score, jnp.asarray(many), int(z["topk"]), int(z["chunk_size"]))
    chosen = z["retrieved_blocks"][entry]
    chosen = chosen[chosen >= 0]
    np.testing.assert_array_equal(np.asarray(index)[np.asarray(keep)], chosen)

    view = memory.recall(program.spec, state, query, mine)
    n = int(z["n_init"]) + len(chosen) * int(z["block_size"])
    assert int(tk.count(view.kv)) == n
    for ours, theirs in ((view.kv.k, "retrieved_k"), (view.kv.v, "retrieved_v")):
        ours = np.asarray(ours)[:n].transpose(1, 0, 2)
        np.testing.assert_array_equal(ours, z[theirs][entry][:, :n])
    out = asked(program, view, turned(program, k, v), q, 0)
    np.testing.assert_allclose(out, z["question_out"][entry], **CLOSE)

    # The prompt and the answer follow on what the question recalled; the question's rows do not.
    prompt, steps = z["x_prompt"].shape[1], z["x_decode"].shape[1]
    rows = np.concatenate([z["x_prompt"][entry], z["x_decode"][entry]])
    q, k, v = split(z, rows, prompt + steps)
    tail = turned(program, k, v)
    out = asked(program, view, tail, q[:prompt], 0)
    np.testing.assert_allclose(out, z["prompt_out"][entry], **CLOSE)
    out = asked(program, view, tail, q[prompt:], prompt)
    np.testing.assert_allclose(out, z["decode_out"][entry], **CLOSE)

    # Blocks may also be chosen from outside.
    chosen = z["external_blocks"][entry]
    chosen = jnp.asarray(chosen[chosen >= 0])
    keep, block = jnp.ones(chosen.shape, bool), int(z["block_size"])
    tokens = retrieval.read(state.aux.sinks, mine, chosen, keep, block)
    tokens, base = numbered(tokens, start(program.spec))
    q, k, v = split(z, z["x_question"][entry], z["x_question"].shape[1])
    view = view._replace(kv=tokens, base=base)
    out = asked(program, view, turned(program, k, v), q, 0)
    np.testing.assert_allclose(out, z["external_question_out"][entry], **CLOSE)
