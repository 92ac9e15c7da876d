"""Random Q-Formers of transformers, and the reference directory made with one.

`python tests/parity/live/qformer_cases.py` writes tests/golden/data/hf/qformer from the Whisper
reference beside it.
"""

from pathlib import Path

import numpy as np
from cases import spread
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "data" / "hf"


def blip2(torch, transformers, seed, **sizes):
    """A random `Blip2QFormerModel` with cross-attention in every block."""
    raw = transformers.Blip2QFormerConfig(cross_attention_frequency=1, **sizes)
    model = transformers.Blip2QFormerModel(raw).float().eval()
    spread(torch, model, seed)
    return raw, model


def read(torch, model, queries, rows, window):
    """The output of a BLIP-2 Q-Former on rows [c, t, I], each window a call's batch entry."""
    cut = torch.tensor(rows.reshape(-1, window, rows.shape[-1]))
    with torch.no_grad():
        asked = torch.tensor(queries).expand(len(cut), -1, -1)
        out = model(query_embeds=asked, encoder_hidden_states=cut)
    return out.last_hidden_state.numpy().reshape(len(rows), -1, queries.shape[-1])


def stored(model, queries):
    """Tensors as a checkpoint holds them."""
    return {name: t.numpy() for name, t in model.state_dict().items()} | {"query_tokens": queries}


def main(target=GOLDEN / "qformer"):
    """Write config, weights and reference: what a Q-Former reads of Whisper's reference rows."""
    import torch
    import transformers

    with np.load(GOLDEN / "whisper" / "reference.npz") as file:
        rows = file["last_hidden"]
    raw, model = blip2(
        torch, transformers, 0, hidden_size=24, num_attention_heads=3, num_hidden_layers=2,
        intermediate_size=40, encoder_hidden_size=rows.shape[-1],
    )  # fmt: skip
    window, rng = 5, np.random.default_rng(0)
    queries = rng.normal(size=(1, 1, 24)).astype(np.float32)
    three = rng.normal(size=(1, 3, 24)).astype(np.float32)
    target.mkdir(parents=True, exist_ok=True)
    raw.save_pretrained(target)
    save_file(stored(model, queries), target / "model.safetensors", metadata={"format": "pt"})
    np.savez(
        target / "reference.npz",
        window=np.int32(window),
        rows=rows,
        out=read(torch, model, queries, rows, window),
        three=three,
        out_three=read(torch, model, three, rows, window),
    )


if __name__ == "__main__":
    main()
