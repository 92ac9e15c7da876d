"""A demo for Spaces and Colab: a video, a memory, what it holds meanwhile, and questions.

`pip install "jaxmem[demo]"`, then `python -m jaxmem.serve.demo`; in a notebook
`app().launch()`. Cameras, several streams and two memories side by side: `jaxmem serve`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from tempfile import mkdtemp
from typing import Any

import numpy as np

from jaxmem.data.world.files import held_out
from jaxmem.memory import MEMORIES
from jaxmem.models.base import Model
from jaxmem.models.load import load
from jaxmem.programs import memory_for
from jaxmem.report.numbers import clock, size
from jaxmem.session import Session
from jaxmem.typing import UInt

PICTURE = 240
"""Pixels of the picture on the screen."""
EVERY = 1.0
"""Seconds between two drawings."""
EXAMPLES = ("what was the last shape?", "what was the last sound?", "was the bell heard?")


def watch(
    model: Model, path: str | None, memory: str, budget: str
) -> Iterator[tuple[Any, Any, str, Session]]:
    """Stream a video; yield the picture, the map, what is held in words, and the session.

    Raises:
      ValueError: if there is no video, it does not open, or the memory does not fit its budget.
    """
    if not path:
        raise ValueError("there is no video yet: give one, or render the synthetic world.")
    session = Session(model, memory_for(model, memory, budget))
    with session.open(path) as reader:
        drawn, frame = 0.0, None
        for piece in reader:
            session.feed(piece)
            frame = magnified(piece.frames[-1]) if len(piece.frames) else frame
            if time.monotonic() - drawn >= EVERY:
                yield *_shown(session, frame), session
                drawn = time.monotonic()
    session.flush()
    yield *_shown(session, frame), session


def magnified(frame: UInt[np.ndarray, "h w 3"]) -> UInt[np.ndarray, "H W 3"]:
    """Return a small picture with larger pixels, as many as `PICTURE` takes."""
    times = max(1, PICTURE // max(frame.shape[:2]))
    return frame.repeat(times, 0).repeat(times, 1)


def _shown(session: Session, frame: Any) -> tuple[Any, Any, str]:
    held = f"{size(session.nbytes)} held after {clock(session.seconds)}, however long the stream"
    return frame, session.memory_map(), held


def ask(session: Session | None, text: str, history: list[Any]) -> tuple[list[Any], str]:
    """Answer a question; return the history with it, and an empty box.

    Raises:
      ValueError: if nothing is watched yet, or the model does not know the words.
    """
    if session is None:
        raise ValueError("nothing is watched yet: watch a video first.")
    at, answer = clock(session.seconds), session.ask(text).text
    asked = [{"role": "user", "content": f"{at}  {text}"}, {"role": "assistant", "content": answer}]
    return [*history, *asked], ""


def app(where: str = "tiny") -> Any:
    """Return the demo of a model, as gradio's `Blocks`.

    Raises:
      ValueError: if gradio is missing, or the model does not load.
    """
    try:
        import gradio as gr  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("the demo needs gradio: pip install 'jaxmem[demo]'.") from None
    model = load(where)

    def told(job: Any) -> Any:
        """Have gradio show what is wrong with a request in a sentence, and change nothing."""

        def run(*given: Any) -> Any:
            try:
                yield from job(*given)
            except ValueError as error:
                gr.Warning(str(error))
                yield gr.skip()

        return run

    with gr.Blocks(title="jaxmem") as blocks:
        gr.Markdown(f"# A memory of fixed size\n{model.note}")
        session = gr.State(None)
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Video", sources=["upload", "webcam"])
                world = gr.Button("Render the synthetic world")
                memory = gr.Dropdown([*MEMORIES], value="omnimem", label="Memory")
                budget = gr.Textbox("96", label="Budget: slots a layer, or bytes such as 64KiB")
                begin = gr.Button("Watch", variant="primary")
                picture = gr.Image(label="As the model sees it", height=PICTURE)
            with gr.Column(scale=2):
                held, drawn = gr.Markdown(), gr.Plot(show_label=False)
                chat = gr.Chatbot(label="Questions and answers", height=240)
                question = gr.Textbox(EXAMPLES[0], label="Question", submit_btn="Ask")
                gr.Examples([*EXAMPLES], question)
        world.click(lambda: str(held_out(7, 60, mkdtemp(), count=1)[0]), None, video)
        seen = [picture, drawn, held, session]
        begin.click(told(lambda *given: watch(model, *given)), [video, memory, budget], seen)
        answer = told(lambda *given: iter([ask(*given)]))
        question.submit(answer, [session, question, chat], [chat, question])
    return blocks


if __name__ == "__main__":
    app().launch()
