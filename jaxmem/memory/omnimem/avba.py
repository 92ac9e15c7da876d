"""AVBA, OmniMem's audio-visual budget allocation: per-layer caps from a calibration.

A layer whose attention is spread widely over tokens that do not repeat each other is hard to
compress and gets more slots. Per layer, with normalised entropies H / log K and mean cosines s,

    C_v = H_v sqrt(1 - s_v),   C_a = H_a sqrt(1 - s_a),   C = H_all sqrt(1 - (s_a + s_v) / 2)
    B   = L * average * softmax over layers(C / T)
    K_v = clip(B r C_v / (r C_v + C_a), low average,     high average)
    K_a = clip(B   C_a / (r C_v + C_a), low average / r, high average / r)

truncated to whole slots (the released script; the paper prints C without the square root). Only
the differences of C between layers and the ratio C_v / C_a matter, so a `Profile` is those two.

Signals are gathered by `Recorder`, a memory like any other; profiles released with the paper's
models are `profile("salmonn-8b")` and `profile("salmonn-4b")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from importlib import resources
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.omnimem.budgets import read_document
from jaxmem.memory.omnimem.omnimem import OmniMem, Pool, gather
from jaxmem.memory.transforms.around import Around
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree

AUDIO, VISION, BOTH = 0, 1, 2
PROFILES = ("salmonn-8b", "salmonn-4b")
FORMAT = "jaxmem-avba-profile"
VERSION = 1


class Signals(NamedTuple):
    """Calibration averages per layer: float64, entropies in [0, 1], cosines in [-1, 1]."""

    entropy_audio: np.ndarray  # [L] H / log K of importance over audio tokens
    entropy_visual: np.ndarray  # [L]
    entropy_all: np.ndarray  # [L] over audio and visual tokens
    cosine_audio: np.ndarray  # [L] mean redundancy of audio tokens
    cosine_visual: np.ndarray  # [L]


class Profile(NamedTuple):
    """What a table is made of: float64 [L] each."""

    delta: np.ndarray  # C minus its largest value
    rho: np.ndarray  # C_v / C_a


def profile_of(signals: Signals, *, root: bool = True) -> Profile:
    """Return the profile of calibration signals.

    `root`: take the square root of 1 - s (released) or not (published).

    Raises:
      ValueError: if a layer has no audio or no vision to compare, or shapes differ.
    """
    arrays = [np.asarray(x, np.float64) for x in signals]
    if any(x.ndim != 1 or x.shape != arrays[0].shape for x in arrays):
        raise ValueError(
            f"signals are [L] each, got shapes {[x.shape for x in arrays]}; average over chunks "
            "first."
        )
    h_audio, h_visual, h_all, s_audio, s_visual = arrays
    power = 0.5 if root else 1.0
    apart_audio, apart_visual = np.maximum(1 - s_audio, 0.0), np.maximum(1 - s_visual, 0.0)
    c_audio, c_visual = h_audio * apart_audio**power, h_visual * apart_visual**power
    c_all = h_all * ((apart_audio + apart_visual) / 2) ** power
    good = np.isfinite(c_all) & (c_audio > 0) & (c_visual > 0)
    if not good.all():
        raise ValueError(
            f"layers {np.flatnonzero(~good).tolist()} have no usable audio or visual signal; "
            "calibrate on streams that hold both, longer than the skipped chunks."
        )
    return Profile(c_all - c_all.max(), c_visual / c_audio)


def table(
    profile: Profile,
    *,
    average: float,
    temperature: float = 0.2,
    ratio: float = 5.0,
    low: float = 0.25,
    high: float = 2.0,
) -> np.ndarray:
    """Return the budget table [L, 2] of (audio, visual) caps.

    Args:
      profile: of the model.
      average: slots per layer, audio and vision together, averaged over layers (before clipping).
      temperature: T of the softmax over layers; larger is more even.
      ratio: r, the prior of visual to audio slots.
      low: smallest cap, in units of `average` (audio: of average / r).
      high: largest cap, in the same units.

    Raises:
      ValueError: if a setting is not positive or the clips cross.
    """
    if min(average, temperature, ratio) <= 0:
        raise ValueError(
            f"average, temperature and ratio must be positive, got {average}, {temperature} and "
            f"{ratio}."
        )
    if not 0 <= low <= high:
        raise ValueError(f"clips must satisfy 0 <= low <= high, got low={low}, high={high}.")
    weight = np.exp((profile.delta - profile.delta.max()) / temperature)
    total = len(weight) * average * weight / weight.sum()
    visual = total * (ratio * profile.rho) / (ratio * profile.rho + 1.0)
    audio = total / (ratio * profile.rho + 1.0)
    visual = np.clip(visual, low * average, high * average)
    audio = np.clip(audio, low * average / ratio, high * average / ratio)
    return np.trunc(np.stack([audio, visual], axis=1)).astype(np.int64)


def stretch(profile: Profile, layers: int) -> Profile:
    """Return a profile for a model of another depth: linear interpolation over relative depth.

    A stand-in for a calibration, not a replacement: that depth profiles carry over between models
    is an assumption.
    """
    old = np.linspace(0.0, 1.0, len(profile.delta))
    new = np.linspace(0.0, 1.0, layers)
    delta = np.interp(new, old, profile.delta)
    return Profile(delta - delta.max(), np.interp(new, old, profile.rho))


def profile(name: str) -> Profile:
    """Return a released profile of 36 layers.

    Recovered from the published budget tables of video-SALMONN 2+. Of "salmonn-8b" every other
    published table follows within 2 tokens; "salmonn-4b" is known to three digits.

    Raises:
      ValueError: if there is no such profile.
    """
    if name not in PROFILES:
        raise ValueError(f"no profile {name!r}; there are {', '.join(PROFILES)}.")
    file = resources.files("jaxmem.memory.omnimem") / "profiles" / f"{name}.json"
    document = read_document(file.read_text(), FORMAT, VERSION, ("delta", "rho"))
    return Profile(np.asarray(document["delta"], float), np.asarray(document["rho"], float))


class Sums(NamedTuple):
    """Running sums of a layer's signals, in the order audio, vision, both."""

    entropy: Float[Array, "3"]
    cosine: Float[Array, "3"]
    chunks: Int[Array, "3"]  # chunks that counted


class RecorderAux(NamedTuple):
    """The recorded memory's numbers, and what was recorded."""

    capacity: Int[Array, ""]
    next_pos: Num[Array, "A"]
    inner: PyTree
    sums: Sums
    chunks: Int[Array, ""]  # of this stream so far


@dataclass(frozen=True)
class Recorder(Around):
    """An `OmniMem` that records AVBA's signals before each eviction.

    It streams exactly as the memory does; `signals_of` reads the averages from the final states.
    The released tables were calibrated with a uniform joint cap of 20,480 slots.

    Attributes:
      memory: with lam > 0.
      skip: first chunks of every stream that are not recorded, while the memory fills.

    Raises:
      ValueError: if the memory is no `OmniMem`, or reads no attention.
    """

    _: KW_ONLY
    skip: int = 5

    def __post_init__(self):
        if not isinstance(self.memory, OmniMem) or self.memory.requires.attention is None:
            raise ValueError(
                f"calibration needs importance and redundancy, got {self.memory!r}; use OmniMem "
                "with lam > 0."
            )

    def init(self, spec: Spec, layer: int = 0) -> State:
        state = self.memory.init(spec, layer)
        sums = Sums(jnp.zeros((3,)), jnp.zeros((3,)), jnp.zeros((3,), jnp.int32))
        zero, aux = jnp.zeros((), jnp.int32), state.aux
        return State(state.slots, RecorderAux(aux.capacity, aux.next_pos, aux, sums, zero))

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, PyTree]:
        aux, memory = state.aux, self.memory
        assert isinstance(memory, OmniMem)
        pool = gather(state.slots, chunk, carry=memory.carry, exact=memory.importance == "exact")
        real = jnp.any(chunk.kv.modality != kvs.EMPTY)
        sums = _add(aux.sums, pool, real & (aux.chunks >= self.skip))
        new, evicted = memory.write(spec, self.inner(state), chunk)
        count = aux.chunks + real.astype(jnp.int32)
        aux = RecorderAux(aux.capacity, new.aux.next_pos, new.aux, sums, count)
        return State(new.slots, aux), evicted


def _add(sums: Sums, pool: Pool, record: Bool[Array, ""]) -> Sums:
    """Return the sums with one chunk's signals added, where `record` holds and K >= 2."""
    assert pool.importance is not None
    audio = pool.modality == kvs.AUDIO
    visual = (pool.modality == kvs.VISION) | (pool.modality == kvs.SUMMARY)
    members = jnp.stack([audio, visual, audio | visual])
    count = jnp.sum(members, axis=1, dtype=jnp.int32)
    k = jnp.maximum(count, 2).astype(jnp.float32)
    mass = jnp.where(members, pool.importance[None], 0.0)
    total = jnp.sum(mass, axis=1)
    p = mass / jnp.where(total > 0, total, 1.0)[:, None]
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0), axis=1)
    cosine = jnp.sum(jnp.where(members, pool.redundancy[None], 0.0), axis=1) / k
    counts = record & (count >= 2) & (total > 0)
    return Sums(
        entropy=sums.entropy + jnp.where(counts, entropy / jnp.log(k), 0.0),
        cosine=sums.cosine + jnp.where(counts, cosine, 0.0),
        chunks=sums.chunks + counts.astype(jnp.int32),
    )


def signals_of(states: State | Sequence[State]) -> Signals:
    """Return the average signals of recorded streams.

    These are of `Recorder`, of all layers ([L] leading `aux`, as the streaming loop holds them;
    further leading axes are streams), one or several.

    Raises:
      ValueError: if no chunk counted for some layer and modality.
    """
    several = [states] if isinstance(states, State) else list(states)
    recorded = [jax.tree.map(np.asarray, state.aux.sums) for state in several]

    def total(name: str) -> np.ndarray:
        parts = [np.asarray(getattr(sums, name), np.float64) for sums in recorded]
        return np.sum([x.reshape(-1, *x.shape[-2:]).sum(axis=0) for x in parts], axis=0)

    chunks = total("chunks")
    if not chunks.all():
        raise ValueError(
            f"no chunk was recorded for layers {np.flatnonzero(~chunks.all(axis=1)).tolist()} (of "
            "audio, vision or both); use longer streams that hold both, or a smaller skip."
        )
    entropy, cosine = total("entropy") / chunks, total("cosine") / chunks
    return Signals(
        entropy_audio=entropy[:, AUDIO],
        entropy_visual=entropy[:, VISION],
        entropy_all=entropy[:, BOTH],
        cosine_audio=cosine[:, AUDIO],
        cosine_visual=cosine[:, VISION],
    )


def average_rows(rows: np.ndarray, video: np.ndarray, *, skip: int = 5) -> np.ndarray:
    """Return the mean over recorded chunks [R, L] -> [L], without each video's first `skip`.

    For signals that were recorded elsewhere, one row per chunk; rows of a video are in order.

    Raises:
      ValueError: if nothing is left.
    """
    rank = np.zeros(len(video), np.int64)
    for v in np.unique(video):
        mine = video == v
        rank[mine] = np.arange(mine.sum())
    kept = np.asarray(rows, np.float64)[rank >= skip]
    if not len(kept):
        raise ValueError(f"all {len(video)} chunks lie in the first {skip} of their video.")
    return kept.mean(axis=0)
