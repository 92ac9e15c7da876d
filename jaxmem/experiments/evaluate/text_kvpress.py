"""One text through transformers' decoder with the same weights, its cache cut by kvpress.

A press cuts the cache of one prompt. Here every chunk is shown to it as a prompt of its own behind
what is kept, and what it keeps is put back in order of arrival, which presses of windows and
neighbours need. The packages are used through what they make public.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from jaxmem.bound import decoder_of
from jaxmem.data.text.facts import Planted
from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.experiments.benchmark.step_theirs import (
    EAGER,
    PRESSES,
    chunk_as_prompt,
    llama,
    needed,
    press_of,
)
from jaxmem.experiments.evaluate.text_streams import TextConfig
from jaxmem.models.base import Model
from jaxmem.typing import Int, Params


def comparable(config: TextConfig, name: str, newest: float) -> bool:
    """Return whether a memory with a floor has a counterpart in kvpress."""
    return bool(config.against) and name in PRESSES and not newest and not config.bits


def rival_of(
    config: TextConfig, model: Model, cells: Sequence[tuple[str, float]]
) -> Decoder | None:
    """Return what runs kvpress on memories with floors, if it is asked for.

    Raises:
      ValueError: if a package is missing, the decoder is no Llama, or kvpress has no such memory.
    """
    if config.against is None or config.measured_only:
        return None
    if config.prompt:
        raise ValueError("kvpress has no text that is never dropped: leave out --prompt.")
    if not any(comparable(config, *cell) for cell in cells):
        raise ValueError(
            f"--against kvpress compares {', '.join(PRESSES)}, without --bits or a floor; there is "
            f"none of them in {config.memories}."
        )
    return Decoder(model.decoder, decoder_of(model.params), config.chunk)


class Pressed(NamedTuple):
    """What a press did on one text."""

    result: dict[str, Any]  # as `text_run.run_text` says
    tokens: Int[np.ndarray, "L G S"]  # numbers of those that are held at the end


class Decoder:
    """transformers' decoder with our weights, and chunks of `chunk` tokens."""

    def __init__(self, config: DecoderConfig, params: Params, chunk: int):
        needed("kvpress")
        self.torch, self.transformers = needed("torch"), needed("transformers")
        self.model, self.chunk = llama(config, params), chunk

    def run(self, name: str, slots: int, text: Planted) -> Pressed:
        """Return what the press of a memory's name does on a text, with `slots` a layer.

        Raises:
          ValueError: if it leaves another number of tokens.
        """
        begin, count = time.perf_counter(), len(text.ids)
        cache = self.transformers.DynamicCache()
        cut = Cut(self.torch, name, slots, cache)
        self.model.set_attn_implementation("eager" if name in EAGER else "sdpa")
        with self.torch.inference_mode():
            loss = [self._chunk(cut, text, first) for first in range(0, count, self.chunk)]
            watched = time.perf_counter() - begin
            asked = [self._asked(cache, one.question, one.answer, count) for one in text.asked]
        result = {
            "loss": [round(float(x), 5) for x in loss],
            "nats": [round(float(nats.mean()), 5) for nats, _ in asked],
            "right": [int(right.all()) for _, right in asked],
            "seconds": [round(watched, 2), round(time.perf_counter() - begin - watched, 2)],
        }
        return Pressed(result, np.stack(cut.tokens))

    def _chunk(self, cut: Cut, text: Planted, first: int) -> float:
        """Pass one chunk; return the mean nats of the token after each of its rows."""
        ids = text.ids[first : first + self.chunk]
        following = text.ids[first + 1 : first + 1 + len(ids)]
        with cut.after(self.model, first, len(ids)):
            found = self._logits(cut.cache, ids, first)
        nats, _ = self._nats(found[: len(following)], following)
        return float(nats.mean())

    def _asked(self, cache: Any, question: np.ndarray, answer: np.ndarray, at: int) -> Any:
        """Return the nats of an answer's tokens and whether they are the likeliest."""
        ids = np.concatenate([question, answer])[:-1]
        found = self._logits(cache, ids, at)[len(question) - 1 :]
        cache.crop(-len(ids))  # told what to remove, which every version understands
        return self._nats(found, answer)

    def _logits(self, cache: Any, ids: np.ndarray, first: int) -> Any:
        place = self.torch.arange(first, first + len(ids))[None]
        rows = self.torch.as_tensor(np.asarray(ids, np.int64))[None]
        return self.model(rows, past_key_values=cache, position_ids=place).logits[0].float()

    def _nats(self, found: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        after = self.torch.as_tensor(np.asarray(ids, np.int64))
        mine = found.gather(1, after[:, None])[:, 0]
        nats, right = self.torch.logsumexp(found, 1) - mine, found.argmax(1) == after
        return nats.numpy(), right.numpy()


class Cut:
    """A press on a cache, and which tokens it has left."""

    def __init__(self, torch: Any, name: str, slots: int, cache: Any):
        self.torch, self.name, self.slots, self.cache = torch, name, slots, cache
        self.press, self.tokens, self.first, self.length = press_of(name), [], 0, 0

    def after(self, model: Any, first: int, length: int) -> Any:
        """Return the context in which a chunk passes; its rows are counted, then cut."""
        groups = model.config.num_key_value_heads
        rows = np.tile(np.arange(first, first + length), (groups, 1))
        held = self.tokens or [rows[:, :0]] * model.config.num_hidden_layers
        self.tokens = [np.concatenate([one, rows], axis=1) for one in held]
        pool = self.tokens[0].shape[1]
        if pool <= self.slots:
            return nullcontext()
        self.first, self.length = first, length
        self.press.compression_ratio = (pool - self.slots - 0.5) / pool
        if "forward_hook" not in vars(self.press):
            self.own = chunk_as_prompt(self.press, lambda: self.length)
            self.press.forward_hook = self._hook
        return self.press(model)

    def _hook(self, module: Any, given: Any, kwargs: Any, output: Any) -> Any:
        layer, number = self.cache.layers[module.layer_idx], module.layer_idx
        keys, values = layer.keys, layer.values
        if self.name == "expected_attention":  # its queries to come follow a prompt from 0 on
            layer.keys = self._turned_back(module, keys)
        shown = layer.keys
        output = self.own(module, given, kwargs, output)
        kept = np.sort(places(shown, layer.keys), axis=1)
        if kept.shape[1] != self.slots:
            raise ValueError(f"kvpress left {kept.shape[1]} tokens, expected {self.slots}.")
        index = self.torch.as_tensor(kept)[None, :, :, None]
        layer.keys = keys.gather(2, index.expand(-1, -1, -1, keys.shape[3]))
        layer.values = values.gather(2, index.expand(-1, -1, -1, values.shape[3]))
        self.tokens[number] = np.take_along_axis(self.tokens[number], kept, axis=1)
        return output

    def _turned_back(self, module: Any, keys: Any) -> Any:
        """Return keys at their positions minus that of the chunk's first row."""
        cos, sin = module.rotary_emb(keys, self.torch.full((1, 1), -self.first))
        one, two = keys.chunk(2, dim=-1)
        return keys * cos[:, None] + self.torch.cat([-two, one], dim=-1) * sin[:, None]


def places(pool: Any, kept: Any) -> Int[np.ndarray, "G S"]:
    """Return where in the pool [1, G, N, D] the kept keys [1, G, S, D] lie: they are copies."""
    out = []
    for here, mine in zip(pool[0].numpy(), kept[0].numpy(), strict=True):
        known = {row.tobytes(): i for i, row in enumerate(here)}
        out.append([known[row.tobytes()] for row in mine])
    return np.array(out)
