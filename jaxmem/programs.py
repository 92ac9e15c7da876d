"""From a model and a memory to a `Program`: sizes, prefix and probes come from the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxmem.bound import decoder_of, question_rows
from jaxmem.decoder.program import Program, Text, make_program, spec_of
from jaxmem.decoder.scorer import check_scorer
from jaxmem.memory.base import AnyMemory, Memory, Spec
from jaxmem.memory.by_name import contestants, parse_budget
from jaxmem.memory.exchange import Embeds, Prompt
from jaxmem.models.base import Model


def model_spec(model: Model, chunk_pieces: int = 1, *, audio: bool = True) -> Spec:
    """Return the `Spec` of a model's streams; keys and values have the dtype of the weights.

    Args:
      model: what sees and answers, fitted to the size of its frames.
      chunk_pieces: pieces written at once.
      audio: whether the streams have audio that the model hears.

    Raises:
      ValueError: if the model was not fitted to the size of its frames, or `chunk_pieces` is not
        positive.
    """
    if chunk_pieces < 1:
        raise ValueError(f"chunk_pieces must be at least 1, got {chunk_pieces}.")
    if not model.tokens_per_piece:
        raise ValueError(
            f"the rows of a piece of {model.name} depend on the size of its frames: give "
            "jaxmem.models.base.for_frames(model, (height, width)), and frames of that size."
        )
    return spec_of(
        model.decoder,
        chunk=chunk_pieces * model.tokens_per_piece,
        prefix=0 if model.prefix is None else len(model.prefix),
        dtype=decoder_of(model.params)["embedding"]["embedding"].dtype,
        pos_dtype=model.pos_dtype,
        step=model.text_step,
        frame=model.frame,
        audio_tokens=model.audio_tokens if audio else 0,
        timestamps=model.timestamps,
        max_position=model.max_position,
    )


def memory_for(
    model: Model,
    name: str,
    budget: int | str,
    *,
    spec: Spec | None = None,
    tokens: int | None = None,
    bits: int | None = None,
    bank: Mapping[str, Any] | None = None,
    **options: Any,
) -> AnyMemory:
    """Return the memory that the command line makes of the same options for a model.

    Options that are not given are those that suit the model (`Model.presets`), then those of the
    memory's class.

    Args:
      model: what sees and answers, fitted to the size of its frames.
      name: of the memory, a key of `MEMORIES`.
      budget: slots per layer, or bytes over all layers ("64KiB").
      spec: of the streams; None: `model_spec(model)`, one piece a chunk.
      tokens: that the stream has at most (`stream_tokens`), for `full` and for memories with a
        bank of their own; None: their own default, and `full` needs its `capacity`.
      bits: keys and values are stored in so many.
      bank: options of a bank around the memory, such as `{"capacity": 4800}`.
      options: of the memory.

    Raises:
      ValueError: if the name is unknown, the budget holds no memory, or an option has no effect.
    """
    spec = model_spec(model) if spec is None else spec
    given = {name: options, **({"bank": bank} if bank else {})}
    more = {"presets": model.presets, "bits": bits}
    (chosen,) = contestants((name,), given, parse_budget(str(budget)), spec, tokens, **more)
    return chosen.memory


def compile(
    model: Model,
    memory: AnyMemory,
    *,
    chunk_pieces: int = 1,
    spec: Spec | None = None,
    mesh: Mesh | None = None,
) -> Program:
    """Return the program that streams a model through a memory; equal arguments, equal program.

    Nothing is compiled yet: `stream` and `ask` do that at their first call, once for equal
    programs.

    Args:
      model: what sees and answers, fitted to the size of its frames.
      memory: what is kept.
      chunk_pieces: pieces written at once.
      spec: sizes; None: those of the model.
      mesh: devices that weights and streams are cut over (`jaxmem.parse_mesh`); None: they are not.

    Raises:
      ValueError: if the memory does not fit the model, or reads weights that it lacks, or the mesh
        does not share the heads evenly.
    """
    if model.decoder.attends:
        check_scorer(memory, decoder_of(model.params))
    spec = model_spec(model, chunk_pieces) if spec is None else spec
    prefix = None
    if model.prefix is not None and len(model.prefix):
        prefix = text_of(model, model.prefix)
    more = {"encode": model.encode, "prefix": prefix, "probes": probes_of(model, memory)}
    more["mesh"] = mesh
    return make_program(model.decoder, memory, spec, **more)


def asked_rows(
    model: Model, program: Program, ids: np.ndarray, pieces: int, size: int | None = None
) -> Embeds:
    """Return a question's rows as the model places them, padded to its bucket.

    Args:
      model: what is asked.
      program: of the stream.
      ids: token ids [Q].
      pieces: fed before the question.
      size: padded length; None: the question's bucket.

    Raises:
      ValueError: as `question_rows`.
    """
    return question_rows(
        model.params,
        ids,
        program=program,
        size=size,
        steps=None if model.text_steps is None else model.text_steps(ids),
        start=None if model.question_start is None else model.question_start(pieces),
    )


def text_of(model: Model, ids: np.ndarray) -> Text:
    """Return token ids with the text steps that the model advances for each."""
    steps = None if model.text_steps is None else model.text_steps(np.asarray(ids))
    return Text(tuple(int(i) for i in ids), None if steps is None else tuple(int(s) for s in steps))


def probes_of(
    model: Model, memory: AnyMemory, dialogue: tuple[str, str] | None = None
) -> tuple[Text, ...]:
    """Return the texts that a memory scores by, in the tokens of a model.

    A model whose vocabulary cannot write a text takes its own generic questions
    (`Model.probes`: about the present scene, then about the whole stream) in its place.

    Args:
      model: whose tokenizer is used.
      memory: that asks for probes.
      dialogue: the last question and its answer, for memories that guide by them.

    Raises:
      ValueError: if the model can neither write a text nor names questions of its own.
    """
    if not isinstance(memory, Memory) or memory.requires.probes is None:
        return ()
    prompts = memory.prompts(dialogue)
    return tuple(text_of(model, _ids(model, p, i)) for i, p in enumerate(prompts))


def _ids(model: Model, prompt: Prompt, number: int) -> np.ndarray:
    if prompt.form == "answer_start" and model.answer_start is not None:
        return model.answer_start
    if model.tokenize_text is not None:
        return model.tokenize_text(prompt.text)
    try:
        return model.tokenize(prompt.text)
    except ValueError as error:
        if not model.probes:
            raise ValueError(
                f"a memory scores by the text {prompt.text!r}, which {model.name} cannot write "
                f"({error}), and it names no questions of its own: give it `Model.probes`."
            ) from None
    last = len(model.probes) - 1
    general = last if prompt.form == "answer_start" else min(number, last)
    return model.tokenize(model.probes[general])


def stream_tokens(model: Model, seconds: float) -> int:
    """Return the most tokens that so many seconds of stream are, per layer."""
    return math.ceil(seconds / model.media.piece_seconds + 1) * model.tokens_per_piece
