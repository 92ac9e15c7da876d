"""What a model is asked: the question with its options, in words of our own or in the user's."""

from __future__ import annotations

from pathlib import Path

from jaxmem.data.benchmarks.item import Form, Item
from jaxmem.data.benchmarks.reading import letter

ASKED: dict[Form, str] = {
    "options": "{question}\n{options}\nAnswer with the letter of the right option.",
    "count": "{question}\nAnswer with a number.",
    "yes_no": "{question}\nAnswer with Yes or No.",
    "text": "{question}",
    "proactive": "{question}",
}
"""Templates of our own. Benchmarks have theirs, which are not part of this package."""
POLL = '{question}\nIs it the right time to output "{right}" now? Answer with Yes or No.'
"""Asked every second until the reply is yes; then comes the question."""


def template_of(prompt: str) -> str | None:
    """Return the template of options that `--prompt` means; None: questions alone, as they are.

    Args:
      prompt: "options", "question", or a file with a template of the user's.

    Raises:
      ValueError: if there is no such file, it is no UTF-8, or it has no place for question and
        options.
    """
    if prompt == "options":
        return ASKED["options"]
    if prompt == "question":
        return None
    path = Path(prompt)
    if not path.is_file():
        raise ValueError(f'--prompt is "options", "question" or a file, got {prompt!r}.')
    try:
        text = path.read_text(encoding="utf-8-sig").strip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt {path}: it is no UTF-8: {error}. Save it as UTF-8.") from error
    if "{question}" not in text or "{options}" not in text:
        raise ValueError(f"--prompt {path}: it has no {{question}} or no {{options}}.")
    return text


def asked(item: Item, template: str | None) -> str:
    """Return what a model is asked about an item.

    Args:
      item: of any form.
      template: of options; None: the question alone, whatever its form.
    """
    if template is None:
        return item.question
    text = template if item.form == "options" else ASKED[item.form]
    lines = "\n".join(f"{letter(i)}. {one}" for i, one in enumerate(item.options))
    return text.replace("{options}", lines).replace("{question}", item.question)


def poll(item: Item) -> str:
    """Return what a model is asked while it waits for the time of a proactive item."""
    return POLL.replace("{right}", str(item.right)).replace("{question}", item.question)
