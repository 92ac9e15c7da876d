"""SmolLM2 135M from its GGUF file against transformers, which reads the same file by itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.bound import bind
from jaxmem.data.text.prose import documents
from jaxmem.decoder.decoder import embed, logits
from jaxmem.decoder.program import Program, init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.experiments.evaluate.text_run import run_text
from jaxmem.experiments.evaluate.text_streams import TextConfig, streams_of
from jaxmem.memory.baselines import Full
from jaxmem.memory.exchange import Embeds
from jaxmem.models.hf.gguf import read_gguf, read_words, smollm2_path
from jaxmem.models.text import text_model
from jaxmem.programs import compile, model_spec

pytestmark = pytest.mark.parity
CHUNK, CHUNKS = 32, 3


def rows(program: Program, params, ids) -> Embeds:
    spec, step = program.spec, np.arange(CHUNK)[:, None]
    more = {"pos": jnp.asarray(step, spec.pos_dtype), "modality": jnp.ones(CHUNK, jnp.int8)}
    return Embeds(x=embed(params, ids), advance=jnp.full(1, CHUNK, spec.pos_dtype), **more)


def path_of_weights():
    path = smollm2_path()
    if path is None:
        pytest.skip("needs the extra real")
    return path


def test_words_are_those_of_transformers():
    transformers, path = pytest.importorskip("transformers"), path_of_weights()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = read_words(path).tokenizer
    odd = ["  x\n\n\ty ", "naïve \u2018clauses\u2019 don't 日本 🙂", "123 1.5", "<|im_start|>user"]
    for text in [*documents()[:3], *odd]:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False)


def test_logits_of_a_stream_are_those_of_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = path_of_weights()
    config, params = read_gguf(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    ids = np.random.default_rng(0).integers(3, config.vocab, CHUNK * CHUNKS)
    with torch.no_grad():
        expected = theirs(torch.as_tensor(ids)[None]).logits[0].numpy()
    spec = spec_of(config, chunk=CHUNK)
    program = make_program(config, Full(len(ids)), spec)
    carry = init_carry(program)
    for i in range(CHUNKS):
        here = slice(i * CHUNK, (i + 1) * CHUNK)
        carry, h = chunk_step(params, program, carry, rows(program, params, ids[here]))
        found = np.asarray(logits(params, config, h))
        np.testing.assert_allclose(found, expected[here], rtol=0, atol=1e-4 * expected.std())


def test_the_loss_of_a_text_is_that_of_transformers():
    """Of 1,024 tokens of real prose, as `evaluate text` measures it with everything kept."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path, tokens = path_of_weights(), 1024
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    model = text_model()
    (stream,) = streams_of(TextConfig(tokens=tokens, keys=1, alone=0), model)
    program = compile(model, Full(tokens), spec=model_spec(model, 128))
    ran = run_text(bind(program, model.params), program, stream.text).result
    count = np.full(tokens // 128, 128)
    count[-1] -= 1  # after the last token comes nothing
    ids = torch.as_tensor(stream.text.ids)[None].long()
    with torch.no_grad():
        expected = theirs(ids, labels=ids).loss.item()
    assert np.average(ran["loss"], weights=count) == pytest.approx(expected, abs=5e-5)
