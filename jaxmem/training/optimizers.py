"""Muon, GaLore or APOLLO for matrices, Adam for the rest, with a schedule counted in steps."""

from collections.abc import Hashable
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxmem.training.low_rank import apollo, by_layer, galore
from jaxmem.typing import Params

Name = Literal["muon", "adam", "galore", "apollo"]

# Parents of kernels that are turned as matrices; the last four are of mixers.
_MATRICES = ("q", "k", "v", "o", "up", "down", "gate", "in", "qkv", "z", "out")


def schedule(
    peak: float, steps: int, warmup: int = 100, flat: float = 0.4, floor: float = 0.03
) -> optax.Schedule:
    """Learning rate by step.

    It rises from a tenth of the peak to the peak in `warmup` steps (at most a tenth of all), stays
    there until the share `flat` of the steps, and falls to `floor` times the peak as a cosine.
    """
    rise = max(1, min(warmup, steps // 10))
    hold = max(int(flat * steps), rise + 1)
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / 10, peak, rise),
            optax.constant_schedule(peak),
            optax.cosine_decay_schedule(peak, max(steps - hold, 1), floor),
        ],
        [rise, hold],
    )


def matrices(params: Params) -> Params:
    """Which leaves Muon turns, as `MuonDimensionNumbers` (stacked layers are a batch) or None."""

    def which(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [str(getattr(k, "key", "")) for k in path]
        if len(names) < 2 or names[-2] not in _MATRICES or names[-1] != "kernel":
            return None
        return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(which, params)


def optimizer(
    steps: int,
    rate: float = 2.5e-3,
    muon_factor: float = 5.0,
    clip: float = 1.0,
    name: Name = "muon",
    rank: int = 16,
) -> optax.GradientTransformation:
    """The optimizer of `steps` steps; `rate` is Adam's peak, Muon's is `muon_factor` larger.

    With "galore" and "apollo" the matrices of every layer have moments of rank `rank`.
    """
    if name == "muon":
        turned = muon(
            schedule(rate * muon_factor, steps),
            adam_b2=0.98,
            adam_learning_rate=schedule(rate, steps),
            muon_weight_dimension_numbers=matrices,
        )
        return optax.chain(optax.clip_by_global_norm(clip), turned)
    peak = schedule(rate, steps)
    adam = optax.adam(peak, b2=0.98)
    kinds: dict[Hashable, optax.GradientTransformation] = {"other": adam, "matrix": adam}
    if name != "adam":
        kinds["matrix"] = by_layer({"galore": galore, "apollo": apollo}[name](peak, rank))
    return optax.chain(optax.clip_by_global_norm(clip), optax.partition(kinds, _kinds))


def _kinds(params: Params) -> Params:
    """Which leaves are matrices of a layer, in words."""
    end = lambda x: x is None or isinstance(x, MuonDimensionNumbers)
    return jax.tree.map(lambda x: "other" if x is None else "matrix", matrices(params), is_leaf=end)
