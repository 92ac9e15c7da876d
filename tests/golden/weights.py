"""Golden weights (official parameter names, [out, in]) as the decoder's parameters."""

import jax
import numpy as np

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.rope import mrope_interleaved, mrope_sectioned, rope_1d

LINEAR = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORM = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


def layer_params(file, index: int, prefix: str = "w.") -> dict:
    """Return one layer's parameters; parts the file lacks (biases, head norms) are left out."""
    at = f"{prefix}layers.{index}."
    params = {}
    for ours, theirs in LINEAR.items():
        params[ours] = {"kernel": file[f"{at}{theirs}.weight"].T}
        if f"{at}{theirs}.bias" in file:
            params[ours]["bias"] = file[f"{at}{theirs}.bias"]
    for ours, theirs in NORM.items():
        if f"{at}{theirs}.weight" in file:
            params[ours] = {"scale": file[f"{at}{theirs}.weight"]}
    return params


def decoder_params(file, prefix: str = "w.", head: str | None = None) -> dict:
    """Return a decoder's parameters: all layers stacked, and the ends that the file has.

    `head` names the array of the output matrix [vocab, width], which golden files keep apart.
    Layers are stacked by NumPy: `jnp.stack` compiles for every shape, and so does `jnp.asarray`.
    """
    count = 0
    while f"{prefix}layers.{count}.self_attn.q_proj.weight" in file:
        count += 1
    layers = [layer_params(file, i, prefix) for i in range(count)]
    params = {"layers": jax.tree.map(lambda *x: np.stack(x), *layers)}
    if f"{prefix}embed_tokens.weight" in file:
        params["embedding"] = {"embedding": file[f"{prefix}embed_tokens.weight"]}
    if f"{prefix}norm.weight" in file:
        params["norm"] = {"scale": file[f"{prefix}norm.weight"]}
    if head is not None:
        params["head"] = {"kernel": file[head].T}
    return jax.device_put(params)


def decoder_config(file, prefix: str = "w.", sections: str = "interleaved") -> DecoderConfig:
    """Return the decoder that a golden file's weights and scalars describe."""
    params = decoder_params(file, prefix)
    head_dim, theta = int(file["head_dim"]), float(file["rope_theta"])
    if "mrope_section" in file:
        make = {"interleaved": mrope_interleaved, "sectioned": mrope_sectioned}[sections]
        rope = make(head_dim, theta, tuple(int(s) for s in file["mrope_section"]))
    else:
        rope = rope_1d(head_dim, theta)
    layers, width, _ = params["layers"]["q"]["kernel"].shape
    embedding = params.get("embedding")
    return DecoderConfig(
        layers=layers,
        width=width,
        heads=int(file["num_heads"]),
        kv_heads=int(file["num_kv_heads"]),
        head_dim=head_dim,
        mlp_width=params["layers"]["up"]["kernel"].shape[2],
        vocab=1 if embedding is None else embedding["embedding"].shape[0],
        rope=rope,
        qkv_bias="bias" in params["layers"]["q"],
        qk_norm="q_norm" in params["layers"],
        norm_eps=float(file["rms_eps"]),
    )


def read(path) -> dict[str, np.ndarray]:
    """Return a golden file as a plain dict."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
