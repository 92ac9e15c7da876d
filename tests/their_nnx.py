"""A decoder in Flax NNX that is not jaxmem's, and what it takes to give it a memory."""

from functools import partial

import jax
from flax import nnx

import jaxmem as jm


class Block(nnx.Module):
    """Everything but the attention itself, which is left to whoever calls the block."""

    def __init__(self, width, heads, kv_heads, head_dim, inner, *, rngs):
        norm = partial(nnx.RMSNorm, rngs=rngs)
        linear = partial(nnx.LinearGeneral, use_bias=False, rngs=rngs)
        self.norm, self.mlp_norm = norm(width), norm(width)
        self.q_norm, self.k_norm = norm(head_dim), norm(head_dim)
        self.q = linear(width, (heads, head_dim))
        self.k = linear(width, (kv_heads, head_dim))
        self.v = linear(width, (kv_heads, head_dim))
        self.out = linear((heads, head_dim), width, axis=(-2, -1))
        self.gate, self.up = linear(width, inner), linear(width, inner)
        self.down = linear(inner, width)

    def project(self, x):  # [T, E] -> q [T, H, D], k and v [T, G, D], before rotation
        x = self.norm(x)
        return self.q_norm(self.q(x)), self.k_norm(self.k(x)), self.v(x)

    def finish(self, x, y):  # y [T, H, D]: what attention made of them
        x = x + self.out(y)
        h = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h))


def watch(blocks, memory, spec, states, clock, rows):
    """Pass a chunk through all blocks; each one's memory keeps of it what it has room for."""
    x, after = rows.x, []
    for block, state in zip(blocks, states, strict=True):
        y, state = jm.attend(memory, spec, state, *block.project(x), rows, clock, hidden=x)
        x = block.finish(x, y)
        after.append(state)
    return x, *jm.tick(tuple(after), clock, rows)


def ask(blocks, memory, spec, states, rows):
    """Pass a question through all blocks; the states are only read."""
    x = rows.x
    for block, state in zip(blocks, states, strict=True):
        y = jm.attend_question(memory, spec, state, *block.project(x), rows)
        x = block.finish(x, y)
    return x


def watch_all(blocks, memory, spec, state, clock, rows, bank=None, probes=None):
    """Pass a chunk through all blocks, whatever the memory needs of them."""

    def call(layer, x, attend):
        return blocks[layer].finish(x, attend(*blocks[layer].project(x)))

    args = (memory, spec, state, call, rows.x, rows, clock)
    x, state, *bank = jm.attend_stack(*args, bank=bank, probes=probes)
    return x, *jm.tick(state, clock, rows), *bank


def ask_all(blocks, memory, spec, state, rows, bank=None):
    """Pass a question through all blocks; state and bank are only read."""

    def call(layer, x, attend):
        return blocks[layer].finish(x, attend(*blocks[layer].project(x)))

    return jm.ask_stack(memory, spec, state, call, rows.x, rows, bank=bank)
