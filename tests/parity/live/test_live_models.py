"""Every family against the installed transformers: random sizes, prompts and weights."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llava_cases import llava_onevision as make_llava
from passes import HIDDEN, LOGITS, bounds, close, greedy, in_chunks, one_pass
from qwen_cases import qwen2_5_omni as make_omni
from qwen_cases import qwen2_5_vl as make_qwen2_5
from qwen_cases import qwen2_vl as make_qwen2
from qwen_cases import qwen3_5 as make_qwen3_5
from qwen_cases import qwen3_vl as make_qwen3
from smolvlm_cases import smolvlm as make_smolvlm

from jaxmem.models.hf.checkpoint import load
from jaxmem.models.hf.config import read_json
from jaxmem.models.llava import onevision as llava_onevision
from jaxmem.models.llava import pictures
from jaxmem.models.qwen import (
    qwen2_5_omni,
    qwen2_5_omni_layout,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
)
from jaxmem.models.smolvlm import smolvlm

SEEDS = range(int(os.environ.get("PARITY_SEEDS", "4")))


def opened(family, folder):
    config = family.read_config(read_json(folder))
    ignore = getattr(family, "ignored", lambda config: family.IGNORE)(config)
    table = family.weight_table(config)
    params = load(folder, table, renames=family.RENAMES, ignore=ignore)
    return config, family.finalise(params, config) if hasattr(family, "finalise") else params


def seen(family, params, config, media):
    """What the encoder makes of the pictures, then of the videos."""
    found = []
    for name in ("image", "video"):
        if media[f"{name}s"]:
            run = partial(family.encode, config=config, grids=media[f"{name}s"])
            found.append(jax.jit(run)(params, patches=media[f"{name}_patches"]))
    return found


def plan_ticked(params, config, prompt, *, family):
    media = {k: prompt.media[k] for k in ("images", "videos", "seconds")}
    plan = qwen2_5_vl.prompt_plan(config, prompt.ids, rule="5.23", **media)
    return plan, jnp.concatenate(seen(family, params, config, prompt.media)), None


def plan_qwen3(params, config, prompt):
    media = {k: prompt.media[k] for k in ("images", "videos")}
    found = seen(qwen3_vl, params, config, prompt.media)
    tokens, deep = (
        jnp.concatenate([each.tokens for each in found]),
        jnp.concatenate([each.deep for each in found], axis=1),
    )
    return qwen3_vl.prompt_plan(config, prompt.ids, **media), tokens, deep


def plan_omni(params, config, prompt):
    media = {k: prompt.media[k] for k in ("images", "videos", "seconds", "sounds")}
    plan = qwen2_5_omni_layout.prompt_plan(config.layout, prompt.ids, **media)
    found = seen(qwen2_5_omni, params, config, prompt.media)
    clips = [jnp.asarray(clip) for clip in prompt.media["clips"]]
    if clips:
        found.append(qwen2_5_omni.encode(params, config, None, (), clips))
    return plan, jnp.concatenate(found), None


def plan_llava(params, config, prompt):
    media, found = prompt.media, []
    if "tiles" in media:
        tiles, size = jnp.asarray(media["tiles"]), media["size"]
        found.append(pictures.image_features(params, config, tiles, size))
    if "frames" in media:
        frames = jnp.asarray(media["frames"])
        found.append(llava_onevision.video_features(params, config, frames))
    return llava_onevision.prompt_plan(config, prompt.ids), jnp.concatenate(found), None


def plan_smolvlm(params, config, prompt):
    frames = jnp.asarray(prompt.media["frames"])
    found = jax.jit(partial(smolvlm.encode, config=config))(params, pixels=frames)
    return smolvlm.prompt_plan(config, prompt.ids), found, None


FAMILIES = {
    "llava_onevision": (llava_onevision, make_llava, plan_llava),
    "qwen2_vl": (qwen2_vl, make_qwen2, partial(plan_ticked, family=qwen2_vl)),
    "qwen2_5_vl": (qwen2_5_vl, make_qwen2_5, partial(plan_ticked, family=qwen2_5_vl)),
    "qwen3_vl": (qwen3_vl, make_qwen3, plan_qwen3),
    "qwen3_5": (qwen3_5, make_qwen3_5, plan_qwen3),
    "qwen2_5_omni": (qwen2_5_omni, make_omni, plan_omni),
    "smolvlm": (smolvlm, make_smolvlm, plan_smolvlm),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_model(hf, tmp_path, name, seed):
    """Positions, every layer's output, logits, logits of the stream in chunks, greedy tokens."""
    family, make, planned = FAMILIES[name]
    case = make(hf, tmp_path, seed)
    config, params = opened(family, tmp_path)
    decoder, weights = config.decoder, params["decoder"]
    for number, (prompt, expected) in enumerate(zip(case.prompts, case.expected, strict=True)):
        plan, features, deep = planned(params, config, prompt)
        np.testing.assert_array_equal(plan.pos.T, expected.positions)
        _, outputs, logits = one_pass(weights, decoder, plan, features, deep)
        assert len(outputs) == len(expected.layers) == decoder.layers
        for found, layer in zip(outputs, expected.layers, strict=True):
            close(found, layer, HIDDEN)
        close(logits, expected.logits, LOGITS)
        if number == 0:
            size = 5 + 4 * (seed % 3)  # chunks that cut frames anywhere
            starts = bounds(len(plan.ids), size)
            found, _, _ = in_chunks(weights, decoder, plan, features, deep, starts, size)
            close(found, expected.logits, LOGITS)
        # transformers decodes after the largest position of the prompt, wherever its text ended.
        plan = plan._replace(advance=np.full_like(plan.advance, expected.positions.max() + 1))
        tokens = greedy(weights, decoder, plan, features, deep, len(expected.tokens) or 1)
        np.testing.assert_array_equal(tokens[: len(expected.tokens)], expected.tokens)
