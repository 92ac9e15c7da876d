"""Random tiny models of the Qwen families, with prompts of pictures, videos and sound."""

import numpy as np
from cases import Prompt, parts, saved, text_config, words

START, END, IMAGE, VIDEO, AUDIO, AUDIO_START, AUDIO_END = range(1, 8)
BOTH = -1  # a video with sound
SECONDS = (0.25, 0.4, 0.5, 1.0, 1.5, 2.0)


def _vision(rng, out, *, patch=None):
    heads = int(rng.integers(1, 4))
    return {
        "depth": int(rng.integers(2, 6)),
        "hidden_size": heads * 4 * int(rng.integers(2, 5)),
        "intermediate_size": 8 * int(rng.integers(3, 8)),
        "num_heads": heads,
        "out_hidden_size": out,
        "patch_size": int(patch or rng.integers(2, 5)),
        "temporal_patch_size": int(rng.integers(1, 3)),
        "spatial_merge_size": int(rng.integers(1, 4)),
        "in_channels": 3,
    }


def _windowed(rng, out):
    """The encoder of Qwen2.5: some blocks see the whole frame."""
    vision = _vision(rng, out)
    cell = vision["patch_size"] * vision["spatial_merge_size"]
    full = rng.random(vision["depth"]) < 0.4
    return {
        **vision,
        "window_size": cell * int(rng.integers(1, 4)),
        "fullatt_block_indexes": np.flatnonzero(full).tolist(),
    }


def _grid(rng, vision, frames):
    merge = vision["spatial_merge_size"]
    return frames, merge * int(rng.integers(1, 5)), merge * int(rng.integers(1, 5))


def _patches(rng, vision, grids):
    width = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    count = sum(f * h * w for f, h, w in grids)
    return rng.normal(size=(count, width)).astype(np.float32)


def _media(rng, vision, kinds):
    """Pictures and videos as jaxmem and as transformers take them."""
    images = [_grid(rng, vision, 1) for kind in kinds if kind == IMAGE]
    videos = [_grid(rng, vision, int(rng.integers(1, 5))) for kind in kinds if kind == VIDEO]
    media = {"images": images, "videos": videos}
    media["image_patches"] = _patches(rng, vision, images) if images else None
    media["video_patches"] = _patches(rng, vision, videos) if videos else None
    return media


def _inputs(torch, media):
    inputs = {}
    for name, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if media[f"{name}s"]:
            inputs[key] = torch.tensor(media[f"{name}_patches"])
            inputs[f"{name}_grid_thw"] = torch.tensor(media[f"{name}s"])
    return inputs


def _kinds(rng, number):
    """The first prompt has a picture and a video, others what comes."""
    return (
        [IMAGE, VIDEO] if number == 0 else rng.choice([IMAGE, VIDEO], rng.integers(1, 4)).tolist()
    )


def _typed(torch, ids):
    types = np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0))
    return torch.tensor(types[None])


def _tokens(vision, grid):
    return grid[0] * grid[1] * grid[2] // vision["spatial_merge_size"] ** 2


def qwen2_vl(hf, folder, seed):
    """Layer norms, quick GELU, whole frames; positions count frames."""
    rng = np.random.default_rng(seed)
    text, rope = _sectioned(rng)
    vision = _vision(rng, text["hidden_size"])
    vision["embed_dim"], vision["mlp_ratio"] = vision["hidden_size"], int(rng.integers(1, 5))
    vision["hidden_size"] = vision.pop("out_hidden_size")
    vision.pop("intermediate_size")
    return _ticked(hf, folder, seed, rng, "Qwen2VL", text, rope, vision)


def qwen2_5_vl(hf, folder, seed):
    """Windows, groups of heads, rates, several clips."""
    rng = np.random.default_rng(seed)
    text, rope = _sectioned(rng)
    vision = {**_windowed(rng, text["hidden_size"]), "tokens_per_second": int(rng.integers(1, 5))}
    return _ticked(hf, folder, seed, rng, "Qwen2_5_VL", text, rope, vision)


def _sectioned(rng):
    """Sizes of a decoder with three rotary axes, and their settings."""
    head_dim = 4 * int(rng.integers(2, 5))
    text = text_config(rng, head_dim)
    sections = parts(rng, head_dim // 2)
    return text, {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}


def _ticked(hf, folder, seed, rng, name, text, rope, vision):
    """A model whose videos have ticks, and two prompts."""
    config = getattr(hf.transformers, f"{name}Config")(
        text_config={**text, "rope_parameters": rope, "bos_token_id": 0, "eos_token_id": None},
        vision_config=vision,
        image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=bool(rng.integers(2)),
    )  # fmt: skip
    prompts = []
    for number in range(2):
        kinds, ids = _kinds(rng, number), words(rng, text["vocab_size"])
        media = _media(rng, vision, kinds)
        media["seconds"] = [1.0 for _ in media["videos"]]
        if "tokens_per_second" in vision:
            media["seconds"] = [float(np.float32(rng.choice(SECONDS))) for _ in media["videos"]]
        left = {IMAGE: list(media["images"]), VIDEO: list(media["videos"])}
        for kind in kinds:
            seen = [kind] * _tokens(vision, left[kind].pop(0))
            ids += [START, *seen, END, *words(rng, text["vocab_size"])]
        inputs = _inputs(hf.torch, media)
        if media["videos"] and "tokens_per_second" in vision:
            inputs["second_per_grid_ts"] = hf.torch.tensor(media["seconds"])
        inputs["mm_token_type_ids"] = _typed(hf.torch, np.array(ids))
        prompts.append(Prompt(np.array(ids), media, inputs))
    model = getattr(hf.transformers, f"{name}ForConditionalGeneration")(config)
    return saved(hf, model, folder, seed, prompts)


def qwen3_vl(hf, folder, seed):
    """Norms on heads, interleaved axes, DeepStack, positions of a learned square."""
    rng = np.random.default_rng(seed)
    head_dim = 2 * int(rng.integers(3, 9))
    text = text_config(rng, 2 * int(rng.integers(4, 9)))  # heads need not fill the width
    third = head_dim // 2 // 3
    rows, columns = (int(n) for n in rng.integers(1, third + 1, 2))
    rope = {
        "rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True,
        "mrope_section": [head_dim // 2 - rows - columns, rows, columns],
    }  # fmt: skip
    vision = _vision(rng, text["hidden_size"])
    deep = min(int(rng.integers(0, 4)), vision["depth"], text["num_hidden_layers"])
    taps = np.sort(rng.choice(vision["depth"], deep, replace=False)).tolist()
    vision |= {"deepstack_visual_indexes": taps}
    vision |= {"num_position_embeddings": int(rng.integers(2, 8)) ** 2}
    config = hf.transformers.Qwen3VLConfig(
        text_config={**text, "head_dim": head_dim, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=bool(rng.integers(2)),
    )  # fmt: skip
    prompts = _stamped_prompts(hf.torch, rng, vision, text["vocab_size"])
    model = hf.transformers.Qwen3VLForConditionalGeneration(config)
    return saved(hf, model, folder, seed, prompts)


def _stamped_prompts(torch, rng, vision, vocab):
    """Two prompts with words before every frame of a video."""
    prompts = []
    for number in range(2):
        kinds, ids = _kinds(rng, number), words(rng, vocab)
        media = _media(rng, vision, kinds)
        left = {IMAGE: list(media["images"]), VIDEO: list(media["videos"])}
        for kind in kinds:
            frames, rows, columns = left[kind].pop(0)
            for _ in range(frames):
                stamp = words(rng, vocab) if kind == VIDEO else []
                ids += [*stamp, START, *[kind] * _tokens(vision, (1, rows, columns)), END]
            ids += words(rng, vocab)
        inputs = _inputs(torch, media)
        inputs["mm_token_type_ids"] = _typed(torch, np.array(ids))
        prompts.append(Prompt(np.array(ids), media, inputs))
    return prompts


def qwen3_5(hf, folder, seed):
    """Layers with a state in any order, gated attention that rotates a part of every head."""
    rng = np.random.default_rng(seed)
    third = int(rng.integers(1, 4))
    head_dim = 2 * 3 * third * int(rng.integers(1, 4))
    text = text_config(rng, 2 * int(rng.integers(4, 9)))
    key_heads, layers = int(rng.integers(1, 4)), int(rng.integers(2, 7))
    rope = {
        "rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True,
        "partial_rotary_factor": 6 * third / head_dim, "mrope_section": [third] * 3,
    }  # fmt: skip
    text |= {"head_dim": head_dim, "rope_parameters": rope, "num_hidden_layers": layers}
    text |= {
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * int(rng.integers(1, 4)),
        "linear_key_head_dim": 2 * int(rng.integers(2, 7)),
        "linear_value_head_dim": 2 * int(rng.integers(2, 7)),
        "linear_conv_kernel_dim": int(rng.integers(2, 6)),
    }
    if seed % 2:  # any order, but both kinds
        kinds = ["linear_attention", "full_attention", *[None] * (layers - 2)]
        kinds = [kind or str(rng.choice(kinds[:2])) for kind in kinds]
        text |= {"layer_types": rng.permutation(kinds).tolist()}
    else:
        text |= {"full_attention_interval": int(rng.integers(1, layers + 1))}
    vision = _vision(rng, text["hidden_size"])
    vision |= {"num_position_embeddings": int(rng.integers(2, 8)) ** 2}
    config = hf.transformers.Qwen3_5Config(
        text_config=text, vision_config=vision,
        image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=bool(rng.integers(2)),
    )  # fmt: skip
    prompts = _stamped_prompts(hf.torch, rng, vision, text["vocab_size"])
    model = hf.transformers.Qwen3_5ForConditionalGeneration(config)
    return saved(hf, model, folder, seed, prompts)


def qwen2_5_omni(hf, folder, seed):
    """Sound alone, silent videos, and videos with sound whose tokens take turns."""
    from jaxmem.models.qwen import qwen2_5_omni as family

    rng = np.random.default_rng(seed)
    head_dim = 4 * int(rng.integers(2, 5))
    text = text_config(rng, head_dim)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": parts(rng, head_dim // 2)}
    vision, heads = _windowed(rng, text["hidden_size"]), int(rng.integers(1, 4))
    window = int(rng.integers(3, 12))
    audio = {
        "num_mel_bins": int(rng.integers(6, 20)), "encoder_layers": int(rng.integers(1, 4)),
        "encoder_attention_heads": heads, "encoder_ffn_dim": 8 * int(rng.integers(3, 8)),
        "d_model": heads * 4 * int(rng.integers(2, 5)), "n_window": window,
        "max_source_positions": 100, "output_dim": text["hidden_size"],
    }  # fmt: skip
    config = hf.transformers.Qwen2_5OmniThinkerConfig(
        text_config={**text, "rope_parameters": rope}, vision_config=vision, audio_config=audio,
        image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO,
        vision_start_token_id=START, vision_end_token_id=END,
        audio_start_token_id=AUDIO_START, audio_end_token_id=AUDIO_END,
        position_id_per_seconds=int(rng.integers(4, 9)), seconds_per_chunk=2, user_token_id=9,
    )  # fmt: skip
    model = hf.transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
    mine = family.read_config(config.to_dict())
    prompts = [_omni_prompt(hf.torch, rng, mine, vision, kinds) for kinds in _omni_kinds(rng, seed)]
    return saved(hf, model, folder, seed, prompts)


def _omni_kinds(rng, seed):
    """Pictures, silent videos and sound apart; videos with sound; and one of them alone."""
    apart, both = [IMAGE, VIDEO, AUDIO], [BOTH] * int(rng.integers(1, 3))
    return [apart, both, [AUDIO, AUDIO] if seed % 2 else [VIDEO, IMAGE]]


def _omni_prompt(torch, rng, config, vision, kinds):
    from jaxmem.models.qwen import qwen2_5_omni_layout as lay
    from jaxmem.models.qwen.audio import token_count

    vocab, together = config.decoder.vocab, BOTH in kinds
    media = _media(rng, vision, [VIDEO if kind == BOTH else kind for kind in kinds])
    media["seconds"] = [float(np.float32(rng.choice(SECONDS))) for _ in media["videos"]]
    media["clips"] = [
        rng.normal(size=(int(rng.integers(3, 60)), config.sound.mel_bins)).astype(np.float32)
        for kind in kinds
        if kind in (AUDIO, BOTH)
    ]
    media["sounds"] = [token_count(config.sound, len(clip)) for clip in media["clips"]]
    left = {name: list(media[name]) for name in ("images", "videos", "seconds", "sounds")}
    ids = words(rng, vocab)
    for kind in kinds:
        if kind == AUDIO:
            ids += [AUDIO_START, *[AUDIO] * left["sounds"].pop(0), AUDIO_END]
        elif kind == BOTH:
            taken = (left[name].pop(0) for name in ("videos", "seconds", "sounds"))
            ids += [*lay.mixed_ids(config.layout, *taken)]
        else:
            grid = left["images" if kind == IMAGE else "videos"].pop(0)
            ids += [START, *[kind] * _tokens(vision, grid), END]
        ids += words(rng, vocab)
    inputs = _inputs(torch, media)
    if media["clips"]:
        inputs |= _sound(torch, media["clips"])
    if media["videos"]:
        inputs["video_second_per_grid"] = torch.tensor(media["seconds"])
    inputs["use_audio_in_video"] = together
    return Prompt(np.array(ids), media, inputs)


def _sound(torch, clips):
    longest = max(len(clip) for clip in clips)
    padded = np.stack([np.pad(clip.T, ((0, 0), (0, longest - len(clip)))) for clip in clips])
    mask = np.stack([np.arange(longest) < len(clip) for clip in clips])
    return {
        "input_features": torch.tensor(padded),
        "feature_attention_mask": torch.tensor(mask.astype(np.int64)),
    }
