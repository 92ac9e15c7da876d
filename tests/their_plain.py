"""A decoder in plain JAX, the small one called block by block, and what gives it a memory."""

from functools import partial

import jax

import jaxmem as jm
from jaxmem.decoder.decoder import finish, layer_at, qkv


def output_of(weights, cfg, layer):
    """Return a layer's output projection [H, D, E]."""
    kernel = layer_at(weights, layer)["o"]["kernel"]
    return kernel.reshape(cfg.heads, cfg.head_dim, cfg.width)


def block(weights, cfg, layer, x, attend):
    """Pass rows through one block, with an attention from outside."""
    mine = layer_at(weights, layer)
    more = {"output": output_of(weights, cfg, layer), "retention": mine.get("retention")}
    y = attend(*qkv(mine, cfg, x), **more)
    return finish(mine, cfg, x, y)


@partial(jax.jit, static_argnums=(1, 2, 3))
def watch(weights, cfg, memory, spec, states, clock, rows, banks):
    """Pass a chunk through all blocks, each with the memory of its own layer."""
    x, held = rows.x, []
    for layer, (state, bank) in enumerate(zip(states, banks, strict=True)):
        mine, more = layer_at(weights, layer), {"output": output_of(weights, cfg, layer)}
        more["retention"] = mine.get("retention")
        args = (memory, spec, state, *qkv(mine, cfg, x), rows, clock)
        y, *new = jm.attend(*args, hidden=x, bank=bank, **more)
        x = finish(mine, cfg, x, y)
        held.append((*new, None)[:2])
    states, banks = zip(*held, strict=True)
    return x, *jm.tick(states, clock, rows), banks


@partial(jax.jit, static_argnums=(1, 2, 3))
def ask(weights, cfg, memory, spec, states, rows, banks):
    """Pass a question through all blocks; states and banks are only read."""
    x = rows.x
    for layer, (state, bank) in enumerate(zip(states, banks, strict=True)):
        mine = layer_at(weights, layer)
        args = (memory, spec, state, *qkv(mine, cfg, x), rows)
        more = {"bank": bank, "retention": mine.get("retention")}
        x = finish(mine, cfg, x, jm.attend_question(*args, **more))
    return x


@partial(jax.jit, static_argnums=(1, 2, 3))
def watch_all(weights, cfg, memory, spec, state, clock, rows, bank=None, probes=None):
    """Pass a chunk through all blocks, whatever the memory needs of them."""
    args = (memory, spec, state, partial(block, weights, cfg), rows.x, rows, clock)
    x, state, *bank = jm.attend_stack(*args, bank=bank, probes=probes)
    return x, *jm.tick(state, clock, rows), *bank


@partial(jax.jit, static_argnums=(1, 2, 3))
def ask_all(weights, cfg, memory, spec, state, rows, bank=None):
    """Pass a question through all blocks; state and bank are only read."""
    call = partial(block, weights, cfg)
    return jm.ask_stack(memory, spec, state, call, rows.x, rows, bank=bank)
