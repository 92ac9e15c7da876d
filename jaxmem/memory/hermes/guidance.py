"""The texts of HERMES' guidance prompts (arXiv 2601.14724, appendix B, in our own words)."""

from __future__ import annotations


def guidance(last: tuple[str, str] | None = None) -> tuple[str, str]:
    """Return the texts of the two probes: for middle layers (both prompts), and for deep ones.

    `last` is the question and the answer of the last round of dialogue, if there was one.
    """
    scene = (
        "Describe the current scene in detail: its objects, fine-grained actions and how things "
        "are placed."
    )
    story = (
        "Summarise what has happened: the main characters, the key events, how things changed "
        "over time, and the theme."
    )
    if last is not None:
        round_ = f"Question: {last[0]} Answer: {last[1]}"
        scene = f"Find recent details related to {round_}. {scene}"
        story = f"Context summary: {round_}. {story}"
    return f"{scene}; {story}", story
