"""Random tiny models of transformers: weights, one forward pass with its inner states, tokens."""

from typing import NamedTuple

import numpy as np

NEW = 5  # tokens that are decoded
WORDS = 10  # smaller ids are special
AROUND_ONE = ("Qwen3_5RMSNorm",)  # norms that multiply by 1 + w
SURE = 1e-3  # of the largest logit: a smaller lead of the best token is a tie


class Expected(NamedTuple):
    """What transformers computed for one prompt."""

    positions: np.ndarray  # [A, T]
    layers: list  # output of every decoder layer [T, E], before DeepStack is added
    logits: np.ndarray  # [T, V]
    tokens: np.ndarray  # greedy, as far as they are certain


class Prompt(NamedTuple):
    """Token ids, media as jaxmem takes them, and the same as transformers' keyword arguments."""

    ids: np.ndarray
    media: dict
    inputs: dict


class Case(NamedTuple):
    """A saved model and what it made of some prompts."""

    folder: object
    prompts: list
    expected: list


def spread(torch, model, seed):
    """Give weights a size at which every part matters: logits of a few units."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            kind = type(module).__name__
            for own, weight in module.named_parameters(recurse=False):
                noise = torch.randn(weight.shape, generator=draw)
                if "Norm" in kind and own == "weight":
                    noise = (kind not in AROUND_ONE) + 0.1 * noise
                elif kind == "Embedding":
                    noise = 0.5 * noise
                elif weight.ndim > 1:
                    noise = noise / weight[0].numel() ** 0.5
                else:
                    noise = 0.1 * noise
                weight.copy_(2 * noise if name == "lm_head" else noise)


def parts(rng, total):
    """Three positive numbers with this sum."""
    low, high = sorted(rng.choice(np.arange(1, total), 2, replace=False))
    return [int(low), int(high - low), int(total - high)]


def text_config(rng, head_dim):
    """Sizes of a decoder that all families share."""
    kv = int(rng.integers(1, 4))
    heads = kv * int(rng.integers(1, 4))
    return {
        "hidden_size": heads * head_dim,
        "intermediate_size": 8 * int(rng.integers(4, 10)),
        "num_hidden_layers": int(rng.integers(1, 5)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": int(rng.integers(80, 130)),
        "max_position_embeddings": 4096,
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5])),
    }


def words(rng, vocab, low=1, high=7):
    """Some text; the first ids are the special ones."""
    return rng.integers(WORDS, vocab, rng.integers(low, high)).tolist()


def saved(hf, model, folder, seed, prompts):
    """Save a model with new weights, and run its prompts."""
    spread(hf.torch, model, seed)
    model = model.float().eval()
    model.save_pretrained(folder)
    return Case(folder, prompts, [run(hf.torch, model, prompt) for prompt in prompts])


def run(torch, model, prompt):
    """One forward pass with its inner states, and greedy tokens."""
    inputs = {"input_ids": torch.tensor(prompt.ids[None], dtype=torch.long), **prompt.inputs}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    found, hooks, inner = {}, [], model.model
    decoder = inner.text_model if hasattr(inner, "text_model") else inner.language_model

    def positions(module, args, kwargs):
        found.setdefault("positions", kwargs.get("position_ids"))

    def layer(module, args, out):
        out = out[0] if isinstance(out, tuple) else out
        found.setdefault("layers", []).append(out[0].numpy().copy())

    hooks.append(decoder.register_forward_pre_hook(positions, with_kwargs=True))
    hooks += [each.register_forward_hook(layer) for each in decoder.layers]
    with torch.no_grad():
        logits = model(**inputs).logits[0].numpy()
        for hook in hooks:
            hook.remove()
        made = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    best = np.sort(np.stack([step[0].numpy() for step in made.logits]), axis=-1)
    clear = best[:, -1] - best[:, -2] > SURE * np.abs(best).max(-1)
    tokens = made.sequences[0, len(prompt.ids) :].numpy()
    # What follows a tie, or a decoded placeholder (which transformers takes for media), is open.
    known = clear & ~np.append(False, np.cumsum(tokens < WORDS)[:-1] > 0)
    sure = len(known) if known.all() else int(np.argmin(known))
    where = found["positions"]
    if where is None:  # one axis, counted from 0
        where = np.arange(len(prompt.ids))[None]
    else:
        where = where.numpy()
        where = where[-3:, 0] if where.ndim == 3 else where
    return Expected(where, found["layers"], logits, tokens[:sure])
