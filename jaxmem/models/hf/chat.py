"""Text of a checkpoint directory: its tokenizer, its chat template, and where answers end.

Needs the packages of the extra `hf` (tokenizers, jinja2); nothing else in the library does.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmem.decoder.sampling import Sampling
from jaxmem.models.hf.config import optional_json
from jaxmem.models.hf.keys import flag, number, refusal, section
from jaxmem.models.hf.special import add_tokens, special_tokens
from jaxmem.typing import Int

Message = Mapping[str, Any]
GENERATION = "generation_config.json"
TOP_K = 50
"""Of transformers, for a generation_config.json that samples and does not say."""


class Turn(NamedTuple):
    """The token ids of a prompt with one question, around its video."""

    before: Int[np.ndarray, "P"]
    after: Int[np.ndarray, "Q"]


@dataclass(frozen=True)
class Chat:
    """What turns messages into token ids and back."""

    tokenizer: Any  # a `tokenizers.Tokenizer`
    template: str  # source of the chat template (jinja)
    special: Mapping[str, str]  # special tokens that the template may name (bos_token, eos_token)
    end: tuple[int, ...] | None  # tokens that end an answer; None if the directory does not say

    def ids(self, text: str) -> Int[np.ndarray, "Q"]:
        """Return the token ids of a text, nothing added."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of token ids, special tokens left out."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def render(self, messages: Sequence[Message]) -> str:
        """Return messages as the template writes them, up to where the answer begins.

        Raises:
          ValueError: if jinja2 is missing, or the template refuses the messages.
        """
        try:
            from jaxmem.models.hf.template import render
        except ImportError:
            raise ValueError(
                "a checkpoint's chat template needs the package `jinja2`: pip install 'jaxmem[hf]'."
            ) from None
        return render(self.template, messages, self.special)

    def around(self, question: str, placeholder: int) -> Turn:
        """Return the token ids before and after the placeholder of the video, with one question.

        Raises:
          ValueError: if the question is empty, or the template does not write the placeholder once.
        """
        check_question(question)
        content = [{"type": "video"}, {"type": "text", "text": question}]
        ids = self.ids(self.render([{"role": "user", "content": content}]))
        at = np.flatnonzero(ids == placeholder)
        if len(at) != 1:
            raise ValueError(
                f"the chat template wrote the placeholder {placeholder} of the video {len(at)} "
                "times, expected once: the tokenizer and config.json are not of one checkpoint, or "
                "the question holds the placeholder's text."
            )
        return Turn(ids[: at[0]], ids[at[0] + 1 :])

    def around_text(self, question: str, mark: str) -> Turn:
        """Return the same for a text only: a `mark` and a line break, then the question.

        As released, the text before and after the mark is tokenised apart.

        Raises:
          ValueError: if the question is empty, or the prompt does not hold the mark once.
        """
        check_question(question)
        parts = self.render([{"role": "user", "content": f"{mark}\n{question}"}]).split(mark)
        if len(parts) != 2:
            raise ValueError(
                f"the prompt holds {mark} {len(parts) - 1} times, expected once: leave it out of "
                "the question, and use a chat template that writes the content of messages as it "
                "is."
            )
        return Turn(self.ids(parts[0]), self.ids(parts[1]))


class Uncoded(Chat):
    """Text without a tokenizer or a template: as many ids as it would have, about, all of them 0.

    For shapes only: a word is one token, and so is every digit and every sign.
    """

    def __init__(self):
        super().__init__(None, "", {}, None)

    def ids(self, text: str) -> Int[np.ndarray, "Q"]:
        return np.zeros(len(re.findall(r"\d|[^\W\d]+|[^\w\s]", text)), np.int32)

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        del ids
        return ""

    def around(self, question: str, placeholder: int | None = None) -> Turn:
        del placeholder
        check_question(question)
        return Turn(self.ids(""), self.ids(question))

    def around_text(self, question: str, mark: str) -> Turn:
        del mark
        return self.around(question)


def check_question(question: str) -> None:
    """Refuse a question without a word."""
    if not question.strip():
        raise ValueError("the question is empty; ask at least one word.")


def read_chat(directory: str | Path) -> Chat:
    """Return the text side of a checkpoint directory.

    Raises:
      ValueError: if a package, the tokenizer or the chat template is missing.
    """
    try:
        from jaxmem.models.hf.template import read_template
        from jaxmem.models.hf.tokenizer import read_tokenizer
    except ImportError:
        raise ValueError(
            "a checkpoint's text needs the packages `tokenizers` and `jinja2`: pip install "
            "'jaxmem[hf]'."
        ) from None
    folder = Path(directory)
    tokenizer = read_tokenizer(folder)
    add_tokens(tokenizer, folder)
    special, end = special_tokens(folder), _end(folder)
    if end is None and "eos_token" in special:
        found = tokenizer.token_to_id(special["eos_token"])
        end = None if found is None else (found,)
    return Chat(tokenizer, read_template(folder), special, end)


def _end(folder: Path) -> tuple[int, ...] | None:
    """Return the tokens that end an answer, as generation_config.json or config.json says.

    Raises:
      ValueError: if they are no tokens of the vocabulary.
    """
    key, config = "eos_token_id", optional_json(folder, "config.json")
    text, generation = section(config, "text_config"), optional_json(folder, GENERATION)
    rows = text.get("vocab_size", config.get("vocab_size"))
    rows = rows if type(rows) is int and rows > 0 else math.inf  # refused where it is read
    for name, part in ((GENERATION, generation), ("config.json", config), ("config.json", text)):
        if part.get(key) is not None:
            return _tokens(part[key], key, name, rows)
    return None


def _tokens(found: Any, key: str, where: str, rows: float) -> tuple[int, ...]:
    """Return one id or a list of ids as a tuple; ValueError if one is no token of `rows`."""
    ids = found if isinstance(found, list) else [found]
    if any(type(i) is not int or not 0 <= i < rows for i in ids):
        most = "" if rows == math.inf else f" and below {rows} (vocab_size)"
        expected = f"the number of a token or a list of them, from 0 on{most}"
        raise refusal(key, found, expected, where)
    return tuple(ids)


def read_sampling(directory: str | Path) -> Sampling | None:
    """Return how a checkpoint's generation_config.json draws tokens; None if it is greedy.

    Read are `do_sample`, `temperature`, `top_p`, `top_k` (50 where the file does not say, as in
    transformers; 0 keeps all tokens) and `repetition_penalty`; nothing else of it is applied.

    Raises:
      ValueError: if one is no number, or outside its range.
    """
    found = optional_json(Path(directory), GENERATION)
    if not flag(found, "do_sample", False, GENERATION):
        return None
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    given = {n: number(found, n, GENERATION) for n in names if found.get(n) is not None}
    try:
        return Sampling(**{"top_k": TOP_K, **given})
    except ValueError as error:
        raise ValueError(f"{GENERATION} in {directory}: {error}") from None
