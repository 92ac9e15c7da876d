"""Chunks of frames, audio and text for memories of features."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import small

from jaxmem.kv import AUDIO, TEXT, VISION
from jaxmem.memory.exchange import Embeds

CFG = small.config()
P, E, CHUNK = 4, 24, 15  # tokens of a frame; rows of a chunk: three frames, audio and text
RNG = np.random.default_rng(4)
FRAMES = RNG.normal(size=(14, P, E)).astype(np.float32)
SPEC = small.small_spec(CFG, CHUNK, frame=(2, 2))


def chunk(frames, junk: float = 0.0, audio=3.0) -> Embeds:
    """Rows of a chunk: text, then frames with one row of audio in the first, then padding."""
    x = np.full((CHUNK, E), junk, np.float32)
    modality = np.zeros((CHUNK,), np.int8)
    rows, found = [np.ones((1, E))], [TEXT]
    for i, frame in enumerate(frames):
        rows += [frame[:2], np.full((1, E), audio), frame[2:]] if i == 0 else [frame]
        found += [VISION, VISION, AUDIO, VISION, VISION] if i == 0 else [VISION] * P
    flat = np.concatenate(rows)
    x[: len(flat)], modality[: len(found)] = flat, found
    pos = np.arange(CHUNK)[:, None].repeat(3, 1)
    return Embeds(*map(jnp.asarray, (x, pos, modality, np.full((3,), len(flat)))))


def watch(memory: Any, lengths=(3, 3, 2, 0, 3, 3), junk: float = 0.0) -> list:
    """The states after each chunk of so many frames."""
    write, state, at = jax.jit(memory.write, static_argnums=0), memory.init(SPEC), 0
    states = []
    for n in lengths:
        state = write(SPEC, state, chunk(FRAMES[at : at + n], junk))
        at += n
        states.append(state)
    return states


def merge_once(entries, sizes, similarity, weighted):
    """Replace the most similar adjacent pair by its mean, in a plain loop."""
    near = [similarity(a, b) for a, b in pairwise(entries)]
    i = int(np.argmax(near))
    share = sizes[i] / (sizes[i] + sizes[i + 1]) if weighted else 0.5
    entries[i : i + 2] = [share * entries[i] + (1 - share) * entries[i + 1]]
    sizes[i : i + 2] = [sizes[i] + sizes[i + 1]]
