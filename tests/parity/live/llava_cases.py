"""Random tiny LLaVA-OneVision models, with pictures in tiles and videos."""

import numpy as np
from cases import Prompt, saved, text_config, words

IMAGE, VIDEO = 3, 4


def llava_onevision(hf, folder, seed):
    """One or several tiles, also more than are kept at full resolution, and odd grids."""
    from jaxmem.models.llava import onevision as family
    from jaxmem.models.llava import pictures

    rng = np.random.default_rng(seed)
    text = text_config(rng, 2 * int(rng.integers(4, 9)))
    heads, patch = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    side = patch * int(rng.integers(2, 6))
    depth = int(rng.integers(2, 5))
    down, across = (int(n) for n in rng.integers(1, 5, 2))
    sizes = [[side * r, side * c] for r in range(1, down + 1) for c in range(1, across + 1)]
    config = hf.transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6}},
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 4 * heads * int(rng.integers(2, 5)),
            "intermediate_size": 40, "num_hidden_layers": depth, "num_attention_heads": heads,
            "image_size": side, "patch_size": patch, "vision_use_head": False,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, image_grid_pinpoints=sizes,
        vision_feature_layer=int(rng.choice([-1, -2, 1, depth])),
        vision_aspect_ratio=f"anyres_max_{rng.choice([2, 4, 9])}",
        multimodal_projector_bias=bool(rng.integers(2)),
        tie_word_embeddings=bool(rng.integers(2)),
    )  # fmt: skip
    mine, prompts = family.read_config(config.to_dict()), []
    for number in range(2):
        size = tuple(int(n) for n in rng.integers(side // 2, 4 * side, 2))
        best = pictures.best_size(mine, size)
        tiles = rng.normal(size=(1 + best[0] * best[1] // side**2, side, side, 3))
        frames = rng.normal(size=(int(rng.integers(1, 4)), side, side, 3))
        ids, media = words(rng, text["vocab_size"]), {"size": size}
        inputs = {}
        if number == 0 or rng.integers(2):
            media["tiles"] = tiles.astype(np.float32)
            ids += [IMAGE] * pictures.image_tokens(mine, size) + words(rng, text["vocab_size"])
            inputs["pixel_values"] = _channels_first(hf.torch, media["tiles"])[None]
            inputs["image_sizes"] = hf.torch.tensor([size])
        if number == 1:
            media["frames"] = frames.astype(np.float32)
            ids += [VIDEO] * (len(frames) * mine.frame_tokens + 1)
            ids += words(rng, text["vocab_size"])
            inputs["pixel_values_videos"] = _channels_first(hf.torch, media["frames"])[None]
        prompts.append(Prompt(np.array(ids), media, inputs))
    model = hf.transformers.LlavaOnevisionForConditionalGeneration(config)
    return saved(hf, model, folder, seed, prompts)


def _channels_first(torch, pixels):
    return torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
