"""Chat templates, rendered as transformers renders them: same sandbox, tags, filters and names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

Message = Mapping[str, Any]


def render(source: str, messages: Sequence[Message], special: Mapping[str, str]) -> str:
    """Return messages as a template writes them, up to where the answer begins.

    Args:
      source: of the template (jinja).
      messages: of the conversation.
      special: names that the template may use, such as `eos_token`.

    Raises:
      ValueError: if jinja2 is missing, or the template refuses the messages.
    """
    try:
        from jinja2 import TemplateError
    except ImportError:
        raise ValueError(
            "a checkpoint's chat template needs the package `jinja2`: pip install 'jaxmem[hf]'."
        ) from None
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **special}
    try:
        return _environment().from_string(source).render(messages=messages, **given)
    except TemplateError as error:
        raise ValueError(f"the chat template cannot write this prompt: {error}.") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the chat template fails on a message with a video and a text: {error}."
        ) from None


def _environment() -> Any:
    """Return a sandbox: a template is code from the checkpoint."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: marks what the assistant says, for training; here it is as it is."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_as_it_is")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _as_it_is(self, caller: Any) -> str:
            return caller()

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(
        x: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Unlike jinja2's own filter, no escapes of HTML.
        more = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(x, ensure_ascii=ensure_ascii, **more)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    env.filters["tojson"] = as_json
    return env
