"""The same decoder in transformers, with a cache of as many slots, and kvpress's presses on it.

Both are used as installed packages, through what they make public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.experiments.benchmark.step_model import CLOCKS, PER_CALL, StepModel
from jaxmem.models.hf.weights import decoder_table
from jaxmem.typing import Float, Params

PRESSES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "snapkv": ("SnapKVPress", {"window_size": 32}),
    "knorm": ("KnormPress", {}),
    "keydiff": ("KeyDiffPress", {}),
    "expected_attention": ("ExpectedAttentionPress", {}),
    "tova": ("TOVAPress", {}),
    "streaming_llm": ("StreamingLLMPress", {}),
    "h2o": ("ObservedAttentionPress", {}),
    "random": ("RandomPress", {}),
}
"""Our memories and kvpress's, with our options. Observed attention is H2O's score, averaged."""

EAGER = ("h2o",)
"""Of them, those that read attention, which transformers' fused attention does not return."""


def needed(name: str) -> Any:
    """Import a package.

    Raises:
      ValueError: if it cannot be.
    """
    try:
        return __import__(name)
    except ImportError as error:
        raise ValueError(
            f"--against needs the package {name} ({error}): pip install 'jaxmem[parity]', and "
            "kvpress with a transformers that it names."
        ) from None


def llama(config: DecoderConfig, params: Params) -> Any:
    """Return the decoder as transformers' Llama, float32, with the same weights.

    Raises:
      ValueError: if the decoder is no Llama.
    """
    theta = config.rope.inv_freq[1] ** (-config.head_dim / 2)
    plain = not (config.qk_norm or config.qkv_bias or config.mixers or config.rope.axes > 1)
    if not plain or config.activation != "swiglu":
        raise ValueError("--against compares Llama decoders, such as smollm2; this one is another.")
    torch, transformers = needed("torch"), needed("transformers")
    names = {
        "hidden_size": config.width, "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "vocab_size": config.vocab, "rms_norm_eps": config.norm_eps, "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": config.tied, "max_position_embeddings": 1 << 20,
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**names)).eval().float()
    flat = {".".join(k.key for k in at): x for at, x in jax.tree_util.tree_leaves_with_path(params)}
    found: dict[str, Any] = {}
    for place, weight in decoder_table(config).items():
        for layer, name in enumerate(weight.names):
            x = np.asarray(flat[place] if weight.layers is None else flat[place][layer], np.float32)
            found[name] = torch.tensor(x.T.copy() if weight.turn == "linear" else x)
    missing, unexpected = model.load_state_dict(found, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"transformers' Llama has other weights: {missing}, {unexpected}.")
    return model


def press_of(name: str) -> Any:
    """Return kvpress's press for a memory, with our options."""
    kind, options = PRESSES[name]
    return getattr(needed("kvpress"), kind)(**options)


def chunk_as_prompt(press: Any, length: Callable[[], int]) -> Callable[..., Any]:
    """Return the hook of a press that shows it a chunk of `length()` rows as a prompt of its own.

    A press knows a prompt by where its rows lie in the cache.
    """
    own, torch = press.forward_hook, needed("torch")

    def hook(module: Any, given: Any, kwargs: Any, output: Any) -> Any:
        rows = torch.arange(length())
        return own(module, given, kwargs | {"cache_position": rows}, output)

    return hook


class Theirs:
    """transformers' model, and a cache that is as full as ours."""

    def __init__(
        self,
        model: StepModel,
        x: Float[np.ndarray, "K T E"],
        slots: int,
        clock: str = "wall",
        threads: int | None = None,
    ):
        self.torch, self.transformers = needed("torch"), needed("transformers")
        if threads is not None:
            self.torch.set_num_threads(threads)
        self.slots, self.now = slots, CLOCKS[clock]
        self.model = llama(model.config, model.params)
        self.x = self.torch.tensor(np.array(x))[:, None]  # [K, 1, T, E]
        self.presses: dict[str, Any] = {}

    def filled(self) -> Any:
        """Return a cache of rows as they come, all slots taken."""
        cache = self.transformers.DynamicCache()
        rows = self.x.reshape(1, -1, self.x.shape[-1])
        rows = rows.repeat(1, -(-self.slots // rows.shape[1]), 1)[:, : self.slots]
        with self.torch.inference_mode():
            self.model.model(inputs_embeds=rows, past_key_values=cache)
        return cache

    def _chunk(self, cache: Any, rows: Any) -> None:
        begin = self.slots
        place = self.torch.arange(begin, begin + rows.shape[1])[None]
        self.model.model(inputs_embeds=rows, past_key_values=cache, position_ids=place)

    def _cut(self, cache: Any) -> None:
        """Cut a cache back to its slots: told what to remove, which every version understands."""
        cache.crop(self.slots - cache.get_seq_length())

    def prefill(self) -> Any:
        """Return what passes chunks over a full cache, which is cut back after each."""
        cache = self.filled()

        def run() -> float:
            with self.torch.inference_mode():
                begin = self.now()
                for rows in self.x[:PER_CALL]:
                    self._chunk(cache, rows)
                    self._cut(cache)
                return (self.now() - begin) / PER_CALL

        return run

    def press(self, name: str) -> Any:
        """Return what passes chunks over a full cache, which a press brings back to its slots.

        Every chunk is shown to it as a prompt of its own, after what is kept.
        """
        press, length = press_of(name), self.x.shape[2]
        press.compression_ratio = (length - 0.5) / (self.slots + length)
        press.forward_hook = chunk_as_prompt(press, lambda: length)
        cache, form = self.filled(), "eager" if name in EAGER else "sdpa"

        def run() -> float:
            self.model.set_attn_implementation(form)
            with self.torch.inference_mode(), press(self.model):
                begin = self.now()
                for rows in self.x[:PER_CALL]:
                    self._chunk(cache, rows)
                took = (self.now() - begin) / PER_CALL
            self.model.set_attn_implementation("sdpa")
            held = cache.get_seq_length()
            if held != self.slots:
                kind = type(press).__name__
                raise ValueError(f"kvpress's {kind} left {held} tokens, expected {self.slots}.")
            return took

        return run

    def answer(self, ids: np.ndarray, count: int) -> Any:
        """Return what answers a question over a full cache with `count` tokens."""
        cache, question = self.filled(), self.torch.as_tensor(np.asarray(ids, np.int64))[None]

        def run() -> float:
            with self.torch.inference_mode():
                begin, given = self.now(), question
                for _ in range(count):
                    out = self.model(given, past_key_values=cache, logits_to_keep=1)
                    given = out.logits[:, -1:].argmax(-1)
                given.item()
                took = self.now() - begin
                self._cut(cache)
            return took

        return run
