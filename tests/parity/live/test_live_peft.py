"""Adapters that were trained here, loaded by PEFT onto transformers' models, and what it saves."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import heard_in_time
from passes import LOGITS, close, one_pass
from safetensors.numpy import load_file
from test_live_models import FAMILIES, opened

import jaxmem as jm
from jaxmem.models.hf.checkpoint import load
from jaxmem.models.hf.peft import write
from jaxmem.models.load import stored_of
from jaxmem.training import lora

RANK, ALPHA = 3, 5


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


def drawn(model, at):
    rng, one = np.random.default_rng(0), jax.random.key(0)
    shapes = jax.eval_shape(lambda p, k: lora.init(p, k, rank=RANK, at=at), model.params, one)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), shapes)


def theirs(hf, peft, case, adapter, target):
    """Logits of every prompt with an adapter, which PEFT then saves; how many matrices it is on."""
    architecture = hf.transformers.AutoConfig.from_pretrained(case.folder).architectures[0]
    base = getattr(hf.transformers, architecture).from_pretrained(case.folder).float()
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    matrices = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    found = []
    for prompt in case.prompts:
        inputs = {"input_ids": hf.torch.tensor(prompt.ids[None], dtype=hf.torch.long)}
        inputs |= {**prompt.inputs, "attention_mask": hf.torch.ones_like(inputs["input_ids"])}
        with hf.torch.no_grad():
            found.append(model(**inputs).logits[0].numpy())
    model.save_pretrained(target)
    return found, len(matrices)


def read(folder, adapter, family, model):
    """The weights of a checkpoint with an adapter, as `opened` has them without one."""
    member = model.encode.of
    table, renames, ignore, _ = member.names
    stored = stored_of(folder, adapter, member.names)
    params = load(folder, table, renames=renames, ignore=ignore, stored=stored)
    return member.finalise(params) if hasattr(family, "finalise") else params


def described(folder, target):
    """The model without its weights; of pieces that whole windows of sound fill."""
    config = json.loads((folder / "config.json").read_text())
    target.mkdir()
    more = {}
    if "audio_config" in config:
        config = heard_in_time(config)
        more["fps"] = 2 / config["seconds_per_chunk"]
    (target / "config.json").write_text(json.dumps(config))
    return jm.load(target, abstract=True, **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_with_an_adapter(hf, peft, tmp_path, name):
    family, make, planned = FAMILIES[name]
    case = make(hf, tmp_path / "base", 0)
    config, params = opened(family, case.folder)
    model = described(case.folder, tmp_path / "described")
    part = "gate" if "gate" in model.params["vision"]["blocks"] else "fc1"
    adapters = drawn(model, (*lora.LINEAR, f"vision.blocks.{part}"))
    adapter = write(tmp_path / "mine", adapters, model, base=case.folder, alpha=ALPHA)
    params = lora.merge(params, adapters, alpha=ALPHA)
    expected, matrices = theirs(hf, peft, case, adapter, tmp_path / "theirs")
    assert matrices == len(load_file(adapter / "adapter_model.safetensors")) / 2
    for each in (adapter, tmp_path / "theirs"):
        same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        jax.tree.map(same, read(case.folder, each, family, model), params)
    for prompt, before, logits in zip(case.prompts, case.expected, expected, strict=True):
        plan, features, deep = planned(params, config, prompt)
        _, _, found = one_pass(params["decoder"], config.decoder, plan, features, deep)
        close(found, logits, LOGITS)
        assert np.abs(logits - before.logits).max() > 0.1
