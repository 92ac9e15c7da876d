"""Chat templates as transformers writes them: where they are kept, and what they may use.

Needs jinja2 (extra `hf`).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxmem.models.hf.config import optional_json

FILES = "chat_template.jinja, chat_template.json, or chat_template in tokenizer_config.json"


class _Generation(Extension):
    """`{% generation %}`: marks an assistant's own text for training; here only its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own, as in transformers, where it is the body of a call.
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what a template may use: it is code from the checkpoint and runs in a sandbox."""
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    env.globals["raise_exception"] = _refuse
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # Unlike jinja2's own filter, no escapes of HTML.
    env.filters["tojson"] = _tojson
    return env


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    more = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(x, ensure_ascii=ensure_ascii, **more)


def render(template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]) -> str:
    """Return messages as a template writes them, up to where the answer begins.

    Args:
      template: its source.
      messages: with `role` and `content`.
      special: special tokens by the names that the template may use (`eos_token`).

    Raises:
      ValueError: if the template refuses the messages, or fails.
    """
    try:
        return _environment().from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **special
        )  # fmt: skip
    except Exception as error:  # a template is a program: it can fail in any way
        raise ValueError(f"the chat template cannot write this prompt: {error}.") from None


def read_template(folder: Path) -> str:
    """Return the chat template of a directory, of the first place that has one.

    As transformers' processors: processor_config.json, chat_template.json, chat_template.jinja,
    tokenizer_config.json; of several by name (a list, a dict, files in additional_chat_templates)
    the one called "default".

    Raises:
      ValueError: if there is none.
    """
    jinja, named = folder / "chat_template.jinja", folder / "additional_chat_templates"
    for name in ("processor_config.json", "chat_template.json", "", "tokenizer_config.json"):
        if name:
            found = _default(optional_json(folder, name).get("chat_template"))
        else:
            files = (jinja, named / "default.jinja")
            found = next((p.read_text(encoding="utf-8") for p in files if p.is_file()), None)
        if found is not None:
            return found
    raise ValueError(f"no chat template in {folder}: expected {FILES}.")


def _default(found: Any) -> str | None:
    """Return a template, or that called "default" of several; None if there is none."""
    if isinstance(found, list):
        named = [item for item in found if isinstance(item, dict)]
        found = {item.get("name"): item.get("template") for item in named}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None
