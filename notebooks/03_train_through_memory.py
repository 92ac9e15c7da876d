# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train through the memory
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmem/jaxmem/blob/main/notebooks/03_train_through_memory.ipynb)
#
# On Colab, first run `%pip install "jaxmem[train] @ git+https://github.com/jaxmem/jaxmem"`.
#
# A model was trained with everything it ever saw in its context, and now answers from a memory that
# has dropped most of it. Here it learns to live with that: the loss of its answers goes back
# through the memory to the first chunk, while every chunk is computed again in the backward pass.
# The weights stay; low-rank adapters (LoRA) beside them train. Minutes on a CPU.

# %%
import os
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import optax

import jaxmem as jm
from jaxmem.experiments.evaluate.recall_streams import streams, streams_of_seeds
from jaxmem.experiments.finetune.loops import example_of
from jaxmem.training import lora
from jaxmem.training.answers import encoded, objective

SECONDS = int(os.environ.get("JAXMEM_NOTEBOOK_SECONDS", "64")) // 8 * 8
STEPS = 40 if SECONDS >= 64 else 2

# %% [markdown]
# ## A model, and a memory that is too small
# 24 slots a layer; a stream of 64 s has 1,280 tokens. The program is the one that streams: what is
# trained is what is run.

# %%
model = jm.load("tiny")
program = jm.compile(model, jm.OmniMem(24, sketch=128), chunk_pieces=4)
print(f"{jm.nbytes(program.memory, program.spec):,} bytes of memory")

# %% [markdown]
# ## Streams with questions
# Of the synthetic world that comes with the library: drawn from seeds, asked at two moments. For
# videos of your own, `jaxmem.data.clips` reads question files, and `jaxmem.training.answers.taught`
# makes rows of questions and answers.

# %%
sizes = {"seconds": SECONDS, "moments": 2, "chunk_seconds": 4, "difficulty": "standard"}


def batch(step: int, streams: int = 4):
    """Return the streams of a step, encoded: the encoders stay as they are."""
    seeds = [(0, 3, step, i) for i in range(streams)]
    example = example_of(streams_of_seeds(model, seeds, questions=16, **sizes))
    return example._replace(inputs=encode(example.inputs))


encode = jax.jit(lambda inputs: encoded(program, model.params, inputs))
example = example_of(streams(model, count=8, questions=16, **sizes))
test = example._replace(inputs=encode(example.inputs))

# %% [markdown]
# ## Adapters and the loss of answers
# `objective` is a function of what trains and of a batch. Merging the adapters is part of it, so
# that the loop, the memory and the model do not know of them.

# %%
adapters = lora.init(model.params, jax.random.key(0), rank=16)
answers = objective(program, weights=lambda a: lora.merge(model.params, a, alpha=32))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3, b2=0.98))
moments = optimizer.init(adapters)


@jax.jit
def update(adapters, moments, batch):
    """Return adapters and moments after a step, and the share of right answers."""
    (_, found), gradient = jax.value_and_grad(answers, has_aux=True)(adapters, batch)
    change, moments = optimizer.update(gradient, moments)
    return optax.apply_updates(adapters, change), moments, found


measure = jax.jit(lambda adapters: answers(adapters, test)[1])
before, losses = measure(adapters), []
for step in range(STEPS):
    adapters, moments, found = update(adapters, moments, batch(step))
    losses.append(float(found.loss))
after = measure(adapters)
for name, found in (("before", before), ("after", after)):
    print(f"{name:7} loss {found.loss:.2f}, right answers on held-out streams {found.accuracy:.0%}")

# %%
fig, axes = plt.subplots(figsize=(6, 2.4))
axes.plot(losses, color="#0072B2")
axes.set_xlabel("step")
axes.set_ylabel("loss of an answer")
fig.tight_layout()

# %% [markdown]
# ## Keep them, and use them
# The file names the weights that it belongs to. The command line takes it, too:
# `python -m jaxmem.experiments.stream --adapter adapter.safetensors`. The recipe with budgets drawn
# for every stream, checkpoints and a table at the end is `python -m jaxmem.experiments.finetune`.

# %%
path = Path(tempfile.mkdtemp()) / "adapter.safetensors"
lora.save(path, adapters, base=lora.digest(model.params), alpha=32, name=model.name)
tuned = jm.load("tiny", adapter=path)
session = jm.Session(tuned, jm.OmniMem(24, sketch=128))
print(f"{path.stat().st_size:,} bytes; a session of the tuned model holds {session.nbytes:,}")
