"""jaxmem: a memory of fixed size for video and audio language models, in JAX.

    import jaxmem as jm

    session = jm.Session(jm.load("tiny"), jm.OmniMem(96)).watch("talk.mp4")
    print(session.ask("what was the last shape?").text)

Names are imported when they are first used: `import jaxmem` alone imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    # The contract.
    "memory.base": "Memory FeatureMemory Spec State",
    "memory.exchange": "View Sinks Chunk Question Requires Attention Probes Prompt Received Probed "
    "BankSpec Embeds",
    "memory.sizes": "slots nbytes",
    "mixers.base": "Mixer",
    "kv": "KV Modality",
    "memory.bank.bank": "Bank footprint init_bank",
    "memory.omnimem.budgets": "within",
    "memory": "MEMORIES",
    "rope": "Rope rope_1d mrope_sectioned mrope_interleaved yarn",
    # Any decoder.
    "memory.foreign": "attend attend_question attend_stack ask_stack init_stack embeds",
    "memory.clock": "tick",
    # Memories, and memories around memories.
    "memory.bank.with_bank": "WithBank",
    "memory.transforms.quantized": "Quantized",
    "memory.transforms.recorded": "Recorded",
    "memory.features.with_audio": "WithAudio",
    "memory.parts.scored": "Scored Candidates",
    "memory.parts.prioritized": "Prioritized",
    # Streams.
    "decoder.program": "Carry Program",
    "decoder.placing": "parse_mesh",
    "decoder.sampling": "Sampling",
    "bound": "Bound bind question_rows",
    "loop": "start stream advance branch",
    "asking": "Answer ask ask_all log_prob",
    "programs": "compile memory_for model_spec",
    "feeding": "Event",
    "replies": "Reply",
    "session": "Session",
    "saving": "save restore",
    # Models.
    "models.base": "Model MediaFormat for_frames",
    "models.scorer": "with_scorer",
    "models.load": "load",
}


def _table() -> dict[str, str]:
    from jaxmem.memory import CLASSES

    names = {n: where for where, several in _WHERE.items() for n in several.split()}
    return names | {n: f"memory.{path.rpartition('.')[0]}" for n, path in CLASSES.items()}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__all__":
        return sorted(_table())
    if name.startswith("_"):
        raise AttributeError(name)
    where = _table().get(name)
    if where is None:
        raise AttributeError(
            f"module 'jaxmem' has no attribute {name!r}; it has {', '.join(sorted(_table()))}."
        )
    value = getattr(import_module(f"jaxmem.{where}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(["__version__", *_table()])
