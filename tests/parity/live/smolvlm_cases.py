"""Random tiny models of SmolVLM2, with prompts of frames."""

import numpy as np
from cases import Prompt, saved, text_config, words

IMAGE = 3


def smolvlm(hf, folder, seed):
    """Heads that need not fill the width, cells of patches, sides that they do not fill."""
    rng = np.random.default_rng(seed)
    text = {
        **text_config(rng, 4 * int(rng.integers(2, 5))),
        "head_dim": 2 * int(rng.integers(3, 9)),
    }
    scale, patch, heads = (
        int(n) for n in (rng.integers(1, 4), rng.integers(2, 5), rng.integers(1, 4))
    )
    grid = scale * int(rng.integers(2, 5))
    vision = {
        "hidden_size": heads * 4 * int(rng.integers(2, 5)),
        "intermediate_size": 8 * int(rng.integers(3, 8)),
        "num_hidden_layers": int(rng.integers(1, 5)),
        "num_attention_heads": heads,
        "image_size": grid * patch + int(rng.integers(0, patch)),
        "patch_size": patch,
    }
    rope = {"rope_type": "default", "rope_theta": 1e5}
    config = hf.transformers.SmolVLMConfig(
        text_config={**text, "model_type": "llama", "rope_parameters": rope, "pad_token_id": 0},
        vision_config=vision, image_token_id=IMAGE, scale_factor=scale,
        tie_word_embeddings=bool(seed % 2),
    )  # fmt: skip
    prompts, side = [], vision["image_size"]
    for _ in range(2):
        frames = rng.normal(size=(int(rng.integers(1, 4)), side, side, 3)).astype(np.float32)
        ids = words(rng, text["vocab_size"])
        for _ in frames:
            ids += [*words(rng, text["vocab_size"]), 4, 5, *[IMAGE] * (grid // scale) ** 2, 4]
        ids += words(rng, text["vocab_size"])
        pixels = hf.torch.tensor(frames.transpose(0, 3, 1, 2)[None])
        prompts.append(Prompt(np.array(ids), {"frames": frames}, {"pixel_values": pixels}))
    model = hf.transformers.SmolVLMForConditionalGeneration(config)
    return saved(hf, model, folder, seed, prompts)
