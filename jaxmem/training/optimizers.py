"""Muon for matrices, Adam for everything else, with a schedule counted in steps."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxmem.typing import Params

# Parents of kernels that Muon may turn; the last four are of mixers.
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
    steps: int, rate: float = 2.5e-3, muon_factor: float = 5.0, clip: float = 1.0
) -> optax.GradientTransformation:
    """The optimizer of `steps` steps; `rate` is Adam's peak, Muon's is `muon_factor` larger."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        muon(
            schedule(rate * muon_factor, steps),
            adam_b2=0.98,
            adam_learning_rate=schedule(rate, steps),
            muon_weight_dimension_numbers=matrices,
        ),
    )
