# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Stream a video, keep a memory of fixed size, ask
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmem/jaxmem/blob/main/notebooks/01_stream_and_ask.ipynb)
#
# On Colab, run `%pip install git+https://github.com/jaxmem/jaxmem` in a cell of its own first.
#
# A memory is a frozen dataclass of options with pure methods over a state whose shapes never
# change: `view` (what the next chunk attends to), `write` (what is kept after it) and `recall`
# (what a question reads). This notebook streams a real video file with sound through one, asks
# questions, draws what was kept, does the same with the pure functions underneath, and then puts a
# memory into a Flax module that has nothing to do with this project.

# %%
import os
import tempfile

import jax
import jax.numpy as jnp
from flax import nnx

import jaxmem as jm
from jaxmem.data.world.files import held_out
from jaxmem.kv import count
from jaxmem.memory.sizes import nbytes
from jaxmem.pieces import Preprocessor

SECONDS = int(os.environ.get("JAXMEM_NOTEBOOK_SECONDS", "60"))

# %% [markdown]
# ## A video file with sound
# The embedded model knows a synthetic world of coloured shapes and sounds. We render a held-out
# stream of it to a real H.264/AAC file.

# %%
video, _ = held_out(7, SECONDS, tempfile.mkdtemp(), count=6)
model = jm.load("tiny")

# %% [markdown]
# ## A session: stream it, and ask
# A question reads the stream and leaves it as it is, bit for bit.

# %%
memory = jm.OmniMem(48, audio_share=0.5, text=0)
session = jm.Session(model, memory).watch(video)
everything = jm.Full(model.tokens_per_piece * SECONDS)
print(f"{session.nbytes:,} bytes, whatever the length of the stream")
print(f"{nbytes(everything, session.spec):,} bytes to keep all of it")
for text in ("what is the last shape?", "what was the last sound?", "was the bell heard?"):
    print(text, "->", session.ask(text).text)

# %% [markdown]
# ## What was kept
# Stream time runs across, layers down.

# %%
session.memory_map()

# %% [markdown]
# ## The same with pure functions
# A `Program` is everything static about a stream, so that equal ones compile once. `stream` is a
# `lax.scan`: chunks stacked on a leading axis go in with a carry, a carry comes out.

# %%
with jm.Session(model, memory).open(video) as reader:
    pieces = list(reader)
print(reader.info)
print(len(pieces), pieces[0].frames.shape, pieces[0].samples.shape)
preprocess = Preprocessor(model, 1)
chunks = jax.tree.map(lambda *x: jnp.stack(x), *[preprocess([piece]) for piece in pieces])
program = jm.compile(model, memory)
bound = jm.bind(program, model.params)
carry = jm.stream(bound, jm.start(program), chunks, program=program)
rows = jm.question_rows(model.params, model.tokenize("what is the last shape?"), program=program)
answer = jm.ask(bound, carry, rows, program=program)
print(model.detokenize(answer.ids[: int(answer.length)]))
jax.tree.map(lambda x: x.shape, carry)

# %% [markdown]
# ## A memory in somebody else's Flax module
# The core imports JAX only. Here is a single attention block that has never heard of our decoder:
# `jm.attend` stands where its attention was.


# %%
class TheirAttention(nnx.Module):
    """One attention block over [memory | chunk]."""

    def __init__(self, width: int, heads: int, head_dim: int, *, rngs: nnx.Rngs):
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nnx.Linear(width, 3 * heads * head_dim, rngs=rngs)
        self.out = nnx.Linear(heads * head_dim, width, rngs=rngs)

    def __call__(self, x, state, clock):
        rows = self.qkv(x).reshape(len(x), 3, self.heads, self.head_dim)
        q, k, v = rows[:, 0], rows[:, 1], rows[:, 2]
        y, state = jm.attend(window, their_spec, state, q, k, v, jm.embeds(x), clock)
        return x + self.out(y.reshape(len(x), -1)), state


window = jm.Recent(24, sinks=4)
their_spec = jm.Spec(layers=1, kv_heads=4, head_dim=8, width=32, chunk=10, rope=jm.rope_1d(8))
graph, weights = nnx.split(TheirAttention(32, 4, 8, rngs=nnx.Rngs(0)))


@jax.jit
def endless(weights, state, chunks):
    """Scan their block over any number of chunks."""

    def step(held, x):
        state, clock = held
        y, state = nnx.merge(graph, weights)(x, state, clock)
        return jm.tick(state, clock, jm.embeds(x)), y

    return jax.lax.scan(step, (state, jnp.int32(0)), chunks)


x = jax.random.normal(jax.random.key(1), (100, 10, 32))
(state, _), y = endless(weights, window.init(their_spec), x)
print(y.shape, "tokens kept:", int(count(state.slots.kv)))
