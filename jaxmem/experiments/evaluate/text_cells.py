"""The memories of `evaluate text` at their budgets, and what does not fit them."""

from __future__ import annotations

from typing import NamedTuple

from jaxmem.experiments.evaluate.text_streams import TextConfig
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import AnyMemory, FeatureMemory, Spec
from jaxmem.memory.baselines import Full
from jaxmem.memory.by_name import Budget, Wrapped, check_around, contestants, parse_names, why_bare
from jaxmem.memory.options import options_of
from jaxmem.memory.sizes import nbytes
from jaxmem.models.base import Model
from jaxmem.programs import compile


class Cell(NamedTuple):
    """A memory at a budget."""

    name: str  # of the memory
    share: float
    newest: float
    memory: AnyMemory | None  # None: refused
    slots: int
    why: str = ""  # it was refused

    @property
    def stem(self) -> str:
        """Name of its file."""
        return f"{self.name}_{self.share:g}_{self.newest:g}"


def cells_of(config: TextConfig, model: Model, spec: Spec) -> list[Cell]:
    """Return every memory at every budget, those that do not fit as refused.

    Raises:
      ValueError: for an unknown name, parts outside (0, 1], or options without an effect.
    """
    check(config)
    whole, out = nbytes(Full(config.tokens), spec), []
    for name in parse_names(config.memories):
        floors = config.newest if "newest" in options_of(name) else (0.0,)
        shares = (1.0,) if name == "full" else config.shares
        each = [(share, floor) for share in shares for floor in floors]
        out += [_cell(config, model, spec, name, int(s * whole), s, f) for s, f in each]
    return out


def _cell(
    config: TextConfig,
    model: Model,
    spec: Spec,
    name: str,
    allowed: int,
    share: float,
    floor: float,
) -> Cell:
    own = dict(config.options.get(name, {}))
    longer = model.max_position is not None and config.tokens > model.max_position
    renumbers = longer if config.renumber is None else config.renumber
    if "reindex" in options_of(name) and renumbers:
        own.setdefault("reindex", True)
    try:
        if issubclass(MEMORIES[name], FeatureMemory):
            raise ValueError(f"{name} keeps features and reads no text: leave it out.")
        bits = None if why_bare(name, "bits") else config.bits
        made = lambda own, budget: contestants(
            (name,), {name: own}, budget, spec, config.tokens, bits=bits
        )
        (chosen,) = made(own, Budget(None, allowed))
        if floor:  # a part of the slots that these bytes hold
            newest = {"newest": round(floor * chosen.slots)}
            (chosen,) = made(own | newest, Budget(chosen.slots, None))
        compile(model, chosen.memory, spec=spec)  # sizes that it lacks are missed here
    except ValueError as error:  # not to fit its budget is a result, too
        return Cell(name, share, floor, None, 0, str(error))
    return Cell(name, share, floor, chosen.memory, chosen.slots)


def check(config: TextConfig) -> list[str]:
    """Refuse options of memories that have no effect here; return in words what has some.

    Raises:
      ValueError: naming the option.
    """
    wrong = [x for x in config.shares if not 0 < x <= 1] + [
        x for x in config.newest if not 0 <= x <= 1
    ]
    if wrong or not config.shares or not config.newest:
        raise ValueError(f"--shares and --newest are parts of a whole, got {wrong or 'none'}.")
    if "bank" in config.options:
        raise ValueError("--bank.* has no effect on text, which puts no bank around a memory.")
    for name, own in config.options.items():
        if "newest" in own and any(config.newest):
            raise ValueError(
                f"--{name}.newest is a number of slots, which --newest sets in parts of each "
                "budget: leave it out, or give --newest 0."
            )
    return check_around(parse_names(config.memories), Wrapped(config.bits))


def beyond(config: TextConfig, model: Model, cells: list[Cell]) -> list[str]:
    """Return in words which memories hold more positions than the model was trained with."""
    most = model.max_position
    which = [c.stem for c in cells if most is not None and c.slots + config.chunk > most]
    told = f"the {most or 0:,} positions that {model.name} was trained with"
    return [f"{one}: holds more than {told}, so its loss is no reference." for one in which]
