"""`Around`: what memories around other memories have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxmem.kv import KV
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.exchange import BankSpec, Embeds, Prompt, Question, Requires, View
from jaxmem.typing import PyTree


@dataclass(frozen=True)
class Around(Memory):
    """A memory around another one, which does everything that is not said otherwise."""

    memory: Memory

    def __post_init__(self):
        if not isinstance(self.memory, Memory):
            raise ValueError(
                f"{type(self).__name__} goes around a memory of keys and values, got "
                f"{self.memory!r}."
            )

    @property
    def per(self) -> Literal["layer", "stack"]:  # type: ignore[override]
        return self.memory.per

    @property
    def sized_by_options(self) -> bool:  # type: ignore[override]
        return self.memory.sized_by_options

    @property
    def requires(self) -> Requires:
        return self.memory.requires

    def inner(self, state: State) -> State:
        """Return the state that the memory inside knows."""
        return State(state.slots, state.aux.inner)

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        return self.memory.view(spec, self.inner(state), embeds, bank)

    def recall(
        self, spec: Spec, state: State, question: Question | None, bank: PyTree = None
    ) -> View:
        return self.memory.recall(spec, self.inner(state), question, bank)

    def anew(self, spec: Spec, state: State) -> Embeds:
        return self.memory.anew(spec, self.inner(state))

    def kv(self, state: State) -> KV:
        return self.memory.kv(self.inner(state))

    def bank(self, spec: Spec) -> BankSpec | None:
        return self.memory.bank(spec)

    def prompts(self, dialogue: tuple[str, str] | None = None) -> tuple[Prompt, ...]:
        return self.memory.prompts(dialogue)

    @property
    def dialogue(self) -> bool:
        """Return whether the memory inside guides what it keeps by the dialogue."""
        return getattr(self.memory, "dialogue", False)
