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
# # Live: see what is remembered while a stream runs
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmem/jaxmem/blob/main/notebooks/04_live.ipynb)
#
# On Colab, run `%pip install git+https://github.com/jaxmem/jaxmem` in a cell of its own first.
#
# A session watches a stream and answers at any moment. Here its picture, its memory map and its
# answers are shown while it streams: the map grows, the bytes stay. For a page with cameras,
# several streams and two memories side by side, run `jaxmem serve --demo` in a terminal.

# %%
import os
import tempfile
import time

import jaxmem as jm
from jaxmem.data.world.files import held_out
from jaxmem.serve.notebook import LiveView

SECONDS = int(os.environ.get("JAXMEM_NOTEBOOK_SECONDS", "90"))
PAUSE = 0.2 if SECONDS >= 60 else 0.0  # seconds a second of stream takes at least, for the eye

# %% [markdown]
# ## A stream, and questions on its way
# The embedded model knows a synthetic world of shapes and sounds, which we render to a video file
# first. The pieces of the file are handed on one by one, a little slowed down. Your own file or URL
# can stand in their place: `view.watch("talk.mp4")`. A camera needs its format and has no end:
# `view.watch("/dev/video0", format="v4l2", background=True)`, then `view.stop()`. On Colab there is
# no such device.

# %%
model = jm.load("tiny")
video, _ = held_out(7, SECONDS, tempfile.mkdtemp(), count=6)
session = jm.Session(model, jm.OmniMem(48, audio_share=0.5, text=0))


def slowly(path):
    """Yield the pieces of a file, not faster than the eye."""
    with session.open(path) as reader:
        for piece in reader:
            yield piece
            time.sleep(PAUSE)


view = LiveView(session)
questions = ["what was the last shape?", "what was the last sound?", "was the bell heard?"]
times = [SECONDS / 4, SECONDS / 2, SECONDS * 3 / 4]
view.watch(slowly(video), ask=list(zip(times, questions, strict=True)))

# %% [markdown]
# ## Ask while it goes on
# With `background=True` the cell ends at once and its output goes on changing. A question reads a
# copy of the stream's state, so it never disturbs the stream. Run the second cell as often as you
# like.

# %%
more, _ = held_out(8, SECONDS, tempfile.mkdtemp(), count=6)
view.watch(slowly(more), background=True)

# %%
print(view.ask("what is the last shape?").text)

# %% [markdown]
# `stop` ends the stream where it is (`wait` would wait for its end); everything stays answerable.

# %%
view.stop()
print(f"{session.seconds:g} s of stream, {session.nbytes:,} bytes")
[(line.time, line.question, line.answer) for line in view.history]
