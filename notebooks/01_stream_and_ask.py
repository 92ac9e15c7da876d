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
# A memory is three pure functions over a state whose shapes never change: `view` (what the next
# chunk attends to), `write` (what is kept after it) and `recall` (what a question reads). This
# notebook builds one, scans it over a real video file with sound, asks questions, draws what was
# kept, and then puts the same memory into a Flax module that has nothing to do with this project.

# %%
import os
import tempfile

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmem.data.world.files import held_out
from jaxmem.data.media.media import open_media
from jaxmem.models.tiny.embedded import embedded
from jaxmem.kernels.attend import attend
from jaxmem.memory import layout as pool
from jaxmem.memory.base import Embeds, Chunk, Spec, nbytes
from jaxmem.memory.omnimem.omnimem import omnimem
from jaxmem.memory.recent import recent
from jaxmem.decoder.layer import segment
from jaxmem.report.kept import kept
from jaxmem.report.maps import memory_map
from jaxmem.rope import rope_1d
from jaxmem.session import Packer
from jaxmem.loop import ask, init_carry, make_program, question_rows, spec_of, stream
from jaxmem.kv import VISION, KV, count

SECONDS = int(os.environ.get("JAXMEM_NOTEBOOK_SECONDS", "60"))

# %% [markdown]
# ## A video file with sound
# The embedded model knows a synthetic world of coloured shapes and sounds. We render a held-out
# stream of it to a real H.264/AAC file and read it back in aligned pieces of one second.

# %%
folder = tempfile.mkdtemp()
video, questions = held_out(7, SECONDS, folder, count=6)
model = embedded()
media = model.media
with open_media(video, fps=media.fps, size=media.size, sample_rate=media.sample_rate) as reader:
    pieces = list(reader)
print(reader.info)
print(len(pieces), pieces[0].frames.shape, pieces[0].samples.shape)

# %% [markdown]
# ## A memory and a program
# `Spec` says the sizes of the model; `nbytes` prices a memory without allocating it. A `Program` is
# everything static about a stream, so the functions below compile once.

# %%
memory = omnimem(48, audio_share=0.5, text=0)
spec = spec_of(model.decoder, chunk=model.tokens_per_piece, text_step=model.text_step)
program = make_program(model.decoder, memory, spec)
print(f"{nbytes(memory, spec):,} bytes, whatever the length of the stream")
print(f"{nbytes(recent(model.tokens_per_piece * SECONDS), spec):,} bytes to keep all of it")

# %% [markdown]
# ## Scan it over the stream
# `stream` is a `lax.scan`: chunks stacked on a leading axis go in with a carry, a carry comes out.

# %%
pack = Packer(model, 1)
chunks = jax.tree.map(lambda *x: jnp.stack(x), *[pack([piece]) for piece in pieces])
carry = stream(model.params, init_carry(program), chunks, program=program, encode=model.encode)
jax.tree.map(lambda x: x.shape, carry)

# %% [markdown]
# ## Ask
# A question reads the carry and leaves it as it is, bit for bit.

# %%
for text in ("what is the last shape?", "what was the last sound?", "was the bell heard?"):
    rows = question_rows(model.params, model.tokenize(text), program=program)
    answer = ask(model.params, carry, rows, program=program)
    print(text, "->", model.detokenize(answer.ids[: int(answer.length)]))

# %% [markdown]
# ## What was kept
# Stream time runs across, layers down.

# %%
layers = kept(
    pool.layers(program.layout, carry.state),
    seconds=SECONDS,
    seconds_per_tick=1 / model.ticks_per_second,
)
memory_map(layers, seconds=float(SECONDS), title=f"{memory.name}, {SECONDS} s")

# %% [markdown]
# ## The same memory in somebody else's Flax module
# The core (`jaxmem.kv`, `jaxmem.memory`, `jaxmem.kernels`) imports JAX only. Here is a single
# attention block that has never heard of our decoder: it asks the memory what to attend to, and
# tells it what it saw.


# %%
class TheirAttention(nnx.Module):
    """One attention block over [memory | chunk]."""

    def __init__(self, width: int, heads: int, head_dim: int, *, rngs: nnx.Rngs):
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nnx.Linear(width, 3 * heads * head_dim, rngs=rngs)
        self.out = nnx.Linear(heads * head_dim, width, rngs=rngs)
        self.rope = rope_1d(head_dim)

    def __call__(self, x, memory, state):
        T = x.shape[0]
        q, k, v = self.qkv(x).reshape(T, 3, self.heads, self.head_dim).transpose(1, 0, 2, 3)
        t = jnp.arange(T)
        kind = jnp.full((T,), VISION, jnp.int8)
        rows = Embeds(x, t[:, None], kind, advance=jnp.array([T]))
        view = memory.view(state, None, rows)
        order = view.base + t
        fresh = KV(k, v, order[:, None, None], order[:, None], kind[:, None])
        segments = [
            segment(view.tokens, view.base, rows.pos),
            segment(fresh, view.base, rows.pos, last=t),
        ]
        y, _ = attend(q, segments, rope=self.rope)
        seen = Chunk(fresh, view.base, view.base + T, jnp.zeros((), jnp.int32))
        state, _ = memory.write(state, seen)
        return x + self.out(y.reshape(T, -1)), state


block = TheirAttention(32, 4, 8, rngs=nnx.Rngs(0))
window = recent(24, sinks=4)
their_spec = Spec(layers=1, kv_heads=4, heads=4, head_dim=8, width=32, chunk=10)
graph, weights = nnx.split(block)


@jax.jit
def endless(weights, state, chunks):
    """Scan their block over any number of chunks."""

    def step(state, x):
        y, state = nnx.merge(graph, weights)(x, window, state)
        return state, y

    return jax.lax.scan(step, state, chunks)


x = jax.random.normal(jax.random.key(1), (100, 10, 32))
state, y = endless(weights, window.init(their_spec), x)
print(y.shape, "tokens kept:", int(count(state.slots.tokens)))
