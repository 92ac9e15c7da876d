"""Memories on text: loss beside that of `full` and facts found, with intervals over texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from jaxmem.report.numbers import size
from jaxmem.report.shares import Share, mean, plain_share, share


class Theirs(NamedTuple):
    """What kvpress's press did on b of the texts."""

    texts: tuple[int, ...]  # b places in `Outcome.texts`
    alike: np.ndarray  # [b] share of its tokens that ours holds at the end
    loss: np.ndarray  # [b, K]
    nats: np.ndarray  # [b, n]
    right: np.ndarray  # bool [b, n]
    seconds: np.ndarray  # [b]


class Outcome(NamedTuple):
    """What one memory did at one budget on B texts of K chunks with n facts each."""

    memory: str
    share: float  # of the bytes that the whole text needs
    newest: float  # part of the slots for the newest tokens
    slots: int  # per layer
    nbytes: int
    texts: tuple[int, ...]  # B numbers
    loss: np.ndarray  # [B, K] nats a token
    nats: np.ndarray  # [B, n] nats a token of the answers
    right: np.ndarray  # bool [B, n]
    depth: np.ndarray  # [B, n]
    phrasing: np.ndarray  # [B, n]
    alone: np.ndarray  # bool [B', 1]: the same facts, each alone in its text
    seconds: tuple[float, ...]  # B of a text; of the first one with compilation
    theirs: Theirs | None = None

    @property
    def floor(self) -> str:
        """What its name says of the newest tokens."""
        return f", newest {self.newest:g}" if self.newest else ""

    @property
    def label(self) -> str:
        """Name of its row."""
        return self.memory if self.memory == "full" else f"{self.memory} {self.share:g}{self.floor}"


def theirs_of(found: Sequence[dict[str, Any] | None]) -> Theirs | None:
    """Return what kvpress did, of what was measured on each of B texts (None: not run)."""
    places = [i for i, one in enumerate(found) if one is not None]
    if not places:
        return None
    names = ("alike", "loss", "nats", "right", "seconds")
    alike, loss, nats, right, seconds = (
        np.array([one[name] for one in found if one is not None], float) for name in names
    )
    return Theirs(tuple(places), alike, loss, nats, right > 0, seconds[:, 0])


def over_full(one: Outcome, outcomes: Sequence[Outcome], *, half: bool = False) -> Share | None:
    """Return the loss minus that of `full` on the same texts; `half`: of their second halves."""
    full = next((o for o in outcomes if o.memory == "full"), None)
    both = [] if full is None else sorted(set(one.texts) & set(full.texts))
    if full is None or not both:
        return None
    first = one.loss.shape[1] // 2 if half else 0
    gain = [_loss(one, n, first) - _loss(full, n, first) for n in both]
    return mean(np.array(gain))


def _loss(one: Outcome, number: int, first: int) -> float:
    return float(one.loss[one.texts.index(number), first:].mean())


def found(right: np.ndarray, chosen: np.ndarray | None = None) -> Share | None:
    """Return the share of answers of which every token is right; texts are drawn."""
    return share(right[None], None if chosen is None else chosen[None]) if len(right) else None


def table(outcomes: Sequence[Outcome], tokens: int) -> Table:
    """Return loss and facts by memory and budget."""
    names = ("memory", "slots", "bytes", "loss", "minus full", "of the second half", "answer nats")
    out = Table(*names, "facts right, %", "one fact, %", "texts", title=f"texts of {tokens} tokens")
    for one in outcomes:
        texts = len(one.texts)
        out.add_row(
            one.label,
            f"{one.slots:,}",
            size(one.nbytes),
            _nats(mean(one.loss.mean(1)), texts),
            _nats(over_full(one, outcomes), texts),
            _nats(over_full(one, outcomes, half=True), texts),
            _nats(mean(one.nats.mean(1)), texts),
            _percent(found(one.right), texts),
            _percent(found(one.alone), len(one.alone)),
            str(texts),
        )
    return out


def depth_table(outcomes: Sequence[Outcome]) -> Table:
    """Return facts right (%) by memory and depth; 0 is the beginning of the text."""
    depths = sorted({float(d) for one in outcomes for d in one.depth.ravel()})
    title = "facts right, %, by depth"
    out = Table("memory", *(f"{depth:g}" for depth in depths), title=title)
    for one in outcomes:
        parts = [found(one.right, one.depth == depth) for depth in depths]
        out.add_row(one.label, *("-" if p is None else f"{100 * p.share:.0f}" for p in parts))
    return out


def against_table(outcomes: Sequence[Outcome], tokens: int) -> Table:
    """Return ours and kvpress's side by side, on the texts that both have."""
    names = ("memory", "slots", "kept alike, %", "by chance", "loss, ours", "theirs minus ours",
             "answer nats, ours", "theirs minus ours", "facts right, ours", "theirs",
             "s a text, ours", "theirs", "texts")  # fmt: skip
    out = Table(*names, title="kvpress on the same weights and texts")
    for one in outcomes:
        if one.theirs is None:
            continue
        them, here, texts = one.theirs, list(one.theirs.texts), len(one.theirs.texts)
        loss, nats = one.loss[here].mean(1), one.nats[here].mean(1)
        out.add_row(
            one.label,
            f"{one.slots:,}",
            _percent(mean(them.alike), texts),
            f"{100 * one.slots / tokens:.0f}",
            f"{loss.mean():.3f}",
            _nats(mean(them.loss.mean(1) - loss), texts),
            f"{nats.mean():.2f}",
            _nats(mean(them.nats.mean(1) - nats), texts),
            _percent(found(one.right[here]), texts),
            _percent(found(them.right), texts),
            f"{np.median(np.array(one.seconds)[here]):.1f}",
            f"{np.median(them.seconds):.1f}",
            str(texts),
        )
    return out


def _against_dict(one: Outcome) -> dict[str, Any] | None:
    if one.theirs is None:
        return None
    them, here = one.theirs, list(one.theirs.texts)
    return {
        "texts": [one.texts[i] for i in here],
        "alike": plain_share(mean(them.alike)),
        "loss_minus_ours": plain_share(mean(them.loss.mean(1) - one.loss[here].mean(1))),
        "nats_minus_ours": plain_share(mean(them.nats.mean(1) - one.nats[here].mean(1))),
        "right": plain_share(found(them.right)),
        "seconds": float(np.median(them.seconds)),
    }


def as_dict(one: Outcome, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return an outcome as plain data, with what is compared to `full`."""
    names = ("memory", "share", "newest", "slots", "nbytes", "texts")
    depths = sorted(set(one.depth.ravel().tolist()))
    kinds = sorted(set(one.phrasing.ravel().tolist()))
    return {
        **{name: getattr(one, name) for name in names},
        "seconds": float(np.median(one.seconds)),
        "loss": plain_share(mean(one.loss.mean(1))),
        "loss_by_chunk": [round(float(x), 4) for x in one.loss.mean(0)],
        "minus_full": plain_share(over_full(one, outcomes)),
        "minus_full_second_half": plain_share(over_full(one, outcomes, half=True)),
        "nats": plain_share(mean(one.nats.mean(1))),
        "right": plain_share(found(one.right)),
        "alone": plain_share(found(one.alone)),
        "by_depth": {f"{d:g}": plain_share(found(one.right, one.depth == d)) for d in depths},
        "by_phrasing": {str(p): plain_share(found(one.right, one.phrasing == p)) for p in kinds},
        "kvpress": _against_dict(one),
    }


def _nats(value: Share | None, texts: int) -> str:
    """Return a mean with its interval, which one text has not."""
    if value is None or texts < 2:
        return "-" if value is None else f"{value.share:.3f}"
    return f"{value.share:.3f} ({value.low:.3f} to {value.high:.3f})"


def _percent(value: Share | None, texts: int) -> str:
    if value is None or texts < 2:
        return "-" if value is None else f"{100 * value.share:.0f}"
    return f"{100 * value.share:.0f} ({100 * value.low:.0f} to {100 * value.high:.0f})"
