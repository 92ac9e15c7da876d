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
# # Your own model and your own video
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmem/jaxmem/blob/main/notebooks/02_your_own_model.ipynb)
#
# On Colab choose a GPU runtime, run
# `%pip install "jaxmem[hf,cuda12] @ git+https://github.com/jaxmem/jaxmem"` in a cell first, and
# restart the runtime.
#
# A published checkpoint (LLaVA-OneVision, Qwen2.5-VL, Qwen3-VL, Qwen2.5-Omni) streams a video
# through any memory. To use yours, upload the video (on Colab: the folder icon at the left) and run
# before all else `%env JAXMEM_MODEL=Qwen/Qwen2.5-VL-3B-Instruct` (or a directory),
# `%env JAXMEM_VIDEO=/content/talk.mp4` and `%env JAXMEM_NOTEBOOK_SECONDS=600` (seconds of it that
# are read; 40). Without them the notebook writes a Qwen2.5-VL with three tiny layers and random
# weights, and a video: everything runs in seconds on a CPU, and the answers mean nothing.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import jaxmem as jm
from jaxmem.data.world.files import held_out
from jaxmem.models.qwen.tiny_checkpoint import write_tiny

SECONDS = int(os.environ.get("JAXMEM_NOTEBOOK_SECONDS", "40"))
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The model
# `load` reads config, weights, tokenizer, chat template and preprocessor settings. How many
# tokens a frame has depends on its size: a session fits the model to the video that it opens.

# %%
tiny = "JAXMEM_MODEL" not in os.environ
where = write_tiny(folder / "tiny") if tiny else os.environ["JAXMEM_MODEL"]
more = {"dtype": "float32", "max_new": 8} if tiny else {"dtype": "bfloat16", "max_new": 128}
model = jm.load(where, fps=1.0, **more)

video = os.environ.get("JAXMEM_VIDEO") or held_out(7, SECONDS, folder)[0]
first = jm.Session(model, jm.Recent(16))
with first.open(video, stop=SECONDS) as reader:
    pieces = list(reader)
model = first.model
tokens = len(pieces) * model.tokens_per_piece
print(f"{model.name}: {len(pieces)} pieces of {model.tokens_per_piece} tokens, {tokens} in all")

# %% [markdown]
# ## The same stream through several memories
# `Full` keeps everything and is the reference. The others get an eighth of its slots. Nothing but
# the memory changes.

# %%
slots = max(tokens // 8, 16)
memories = {
    "Full": jm.Full(tokens),
    "Recent": jm.Recent(slots),
    "SnapKV": jm.SnapKV(slots, window=4, audio_share=None),
    "OmniMem": jm.OmniMem(slots, audio_share=0.0),
}
question = "what is shown now" if tiny else "What happens in this video?"
sessions = {name: jm.Session(model, memory).watch(pieces) for name, memory in memories.items()}
replies = {name: session.ask(question) for name, session in sessions.items()}
for name, reply in replies.items():
    print(f"{name:10} {sessions[name].nbytes:>12,} bytes   {reply.text!r}")

# %% [markdown]
# ## How far are they from the model that kept everything?
# The distribution of the first answer token, compared with that of `Full` (total variation: 0 is
# the same distribution, 1 has nothing in common).


# %%
def chances(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits."""
    weight = np.exp(logits.astype(np.float64) - logits.max())
    return weight / weight.sum()


reference = chances(replies["Full"].logits)
apart = {
    name: 0.5 * float(np.abs(chances(reply.logits) - reference).sum())
    for name, reply in replies.items()
    if name != "Full"
}
fig, axes = plt.subplots(figsize=(6, 2.4))
axes.barh(list(apart), list(apart.values()), color="#0072B2")
axes.set_xlabel("total variation distance to Full")
axes.invert_yaxis()
fig.tight_layout()

# %% [markdown]
# ## What was kept
# Stream time runs across, layers down.

# %%
sessions["OmniMem"].memory_map()
