"""Chat templates of every kind that transformers renders."""

import pytest

from jaxmem.models.hf.template import render

pytest.importorskip("jinja2")

MESSAGES = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "who <is> é?"}]}
]
TEXT = "{{ messages[0]['content'][1]['text'] }}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% generation %}" + TEXT + "{% endgeneration %}", "who <is> é?"),
        (
            "{% if tools is none and documents is none %}a{% else %}b{% endif %}" + TEXT,
            "awho <is> é?",
        ),
        ("{% if tools is not none %}tools{% endif %}{{ eos_token }}", "<end>"),
        ("{{ messages[0]['content'][1] | tojson }}", '{"type": "text", "text": "who <is> é?"}'),
        ("{{ messages[0] | tojson(indent=1) | length > 10 }}", "True"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% for m in [1, 2] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{{ pad_token is defined }}{{ add_generation_prompt }}", "FalseTrue"),
        ("a\n  {% if true %}\nb\n  {% endif %}\n", "a\nb\n"),
    ],
)
def test_renders(source, expected):
    assert render(source, MESSAGES, {"eos_token": "<end>"}) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no videos') }}", "no videos"),
        ("{% nothing %}", "unknown tag"),
        ("{{ messages[0].content.upper() }}", "cannot write|fails"),
        ("{{ ''.__class__.__mro__ }}", "cannot write"),
        ("{{ 'a' + messages[0]['content'] }}", "fails on a message with a video"),
    ],
)
def test_refusals_say_what_is_wrong(source, message):
    with pytest.raises(ValueError, match=message):
        render(source, MESSAGES, {})
