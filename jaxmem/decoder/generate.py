"""An answer token by token: begun after its question, extended by as many tokens as wanted.

Token i is drawn with the i-th key folded from the answer's own, so an answer is the same in
whatever steps it is written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.decoder.alone import States
from jaxmem.decoder.answer import Dialogue, decode, prefill
from jaxmem.decoder.decoder import embed, logits
from jaxmem.decoder.placing import whole
from jaxmem.decoder.program import Carry, Program
from jaxmem.decoder.sampling import Sampling, penalised, sample
from jaxmem.kv import KV
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Array, Bool, Float, Int, Params, PyTree


class Generation(NamedTuple):
    """An answer in progress."""

    ids: Int[Array, "M"]  # tokens so far, -1: none; entries from `written` on are padding
    written: Int[Array, ""]  # tokens so far, an end token included
    first: Float[Array, "V"]  # logits of the first token
    dialogue: Dialogue
    repeated: Bool[Array, "V"] | None = None  # tokens that a penalty of repetition counts


def end_ids(end: int | tuple[int, ...] | None) -> Int[Array, "e"]:
    """Return the tokens that end an answer; -1, which no token is, if none does."""
    return jnp.asarray(-1 if end is None else end, jnp.int32).reshape(-1)


def begin(
    params: Params,
    program: Program,
    carry: Carry,
    question: Embeds,
    *,
    room: int,
    prefix: KV | None = None,
    states: States = (),
    sampling: Sampling | None = None,
    key: Array | None = None,
    repeated: Bool[Array, "V"] | None = None,
) -> Generation:
    """Prefill a question and choose the first token of its answer.

    Args:
      params: decoder weights.
      program: static description.
      carry: the stream; only read.
      question: rows [Q], padding last.
      room: M, the largest number of answer tokens.
      prefix: pinned tokens [L, P], or None.
      states: see `prefill`.
      sampling: how tokens are drawn; None: the likeliest.
      key: of the answer, with `sampling`.
      repeated: tokens of the prompt that a penalty of repetition counts; None: none of them.
    """
    dialogue, h = prefill(params, program, carry, question, room=room, prefix=prefix, states=states)
    last = jnp.maximum(jnp.sum(question.modality != tk.EMPTY, dtype=jnp.int32) - 1, 0)
    first = whole(program.mesh, logits(params, program.config, h[last]))
    if sampling is None or not sampling.penalises:
        repeated = None
    elif repeated is None:
        repeated = jnp.zeros(first.shape, bool)
    token, repeated = _choose(first, 0, sampling, key, repeated)
    ids = jnp.zeros((room,), jnp.int32).at[0].set(token)
    return Generation(ids, jnp.ones((), jnp.int32), first, dialogue, repeated)


def extend(
    params: Params,
    program: Program,
    generation: Generation,
    *,
    ends: Int[Array, "e"],
    stop_run: int = 0,
    most: int | None = None,
    sampling: Sampling | None = None,
    key: Array | None = None,
) -> Generation:
    """Write further tokens until one ends the answer, a run comes again, or there is no room.

    Args:
      params: decoder weights.
      program: static description.
      generation: the answer so far.
      ends: tokens that end it.
      stop_run: it also ends after so many tokens that are an earlier run of it; 0: it does not.
      most: tokens to add at most; None: all there is room for.
      sampling: as in `begin`.
      key: as in `begin`.
    """
    room = generation.ids.shape[0]
    if room == 1:  # without a loop that never runs, nothing has to be kept for one
        return generation
    # A token below 0 is none: the logits were not finite.
    until = room if most is None else jnp.minimum(generation.written + most, room)

    def more(loop: PyTree) -> Array:
        i, ids = loop[:2]
        again = came_again(ids, i, stop_run)
        return (i < until) & ~jnp.isin(ids[i - 1], ends) & (ids[i - 1] >= 0) & ~again

    # What layers attend to never changes: outside of the loop's state it stays one array where many
    # answers from one stream are written side by side (`vmap` would copy a state for each).
    context = generation.dialogue.context

    def body(loop: PyTree) -> PyTree:
        i, ids, dialogue, repeated = loop
        dialogue = dialogue._replace(context=context)
        dialogue, out = decode(params, program, dialogue, embed(params, ids[i - 1]))
        scores = whole(program.mesh, logits(params, program.config, out))
        token, repeated = _choose(scores, i, sampling, key, repeated)
        return i + 1, ids.at[i].set(token), dialogue._replace(context=()), repeated

    own = generation.dialogue._replace(context=())
    start = (generation.written, generation.ids, own, generation.repeated)
    written, ids, own, repeated = jax.lax.while_loop(more, body, start)
    dialogue = own._replace(context=context)
    return Generation(ids, written, generation.first, dialogue, repeated)


def came_again(ids: Any, written: Any, run: int) -> Any:
    """Return whether the last `run` of the tokens `ids` [M] are an earlier run of them.

    Runs may overlap. It takes NumPy and traced arrays alike; `run` 0: False.
    """
    starts = np.arange(len(ids) - run + 1)
    if not run or not len(starts):
        return np.zeros((), bool)
    runs = ids[starts[:, None] + np.arange(run)[None]]
    last = written - run
    return ((runs == runs[last.clip(0)][None]).all(1) & (starts < last)).any()


def _choose(
    scores: Float[Array, "V"],
    number: int | Int[Array, ""],
    sampling: Sampling | None,
    key: Array | None,
    repeated: Bool[Array, "V"] | None,
) -> tuple[Int[Array, ""], Bool[Array, "V"] | None]:
    """Return the token that is drawn from `scores` as number `number`, and `repeated`.

    The token is -1 where the scores are not finite.
    """
    if sampling is not None and repeated is not None:
        scores = penalised(scores.astype(jnp.float32), repeated, sampling.repetition_penalty)
    if sampling is None or sampling.greedy:
        token = jnp.argmax(scores).astype(jnp.int32)
        most = scores[token]  # of any that is not a number, that
    elif key is None:
        raise ValueError("sampling needs a key: give key=jax.random.key(seed).")
    else:
        mine = jax.random.fold_in(key, number)
        token = sample(scores, mine, sampling.temperature, sampling.top_p, sampling.top_k)
        most = jnp.max(scores)
    token = jnp.where(jnp.isfinite(most), token, -1)
    return token, None if repeated is None else repeated.at[token].set(True)
