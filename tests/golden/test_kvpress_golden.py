"""Scores and kept sets of kvpress on its own models: one chunk through each memory's `write`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from golden_files import cases, found

from jaxmem import kv as tk
from jaxmem.kernels.attend import attend
from jaxmem.kernels.received import mass
from jaxmem.kv import KV
from jaxmem.memory.attention import segment
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.baselines import StreamingLLM
from jaxmem.memory.compression.keydiff import KeyDiff
from jaxmem.memory.compression.knorm import Knorm
from jaxmem.memory.compression.snapkv import SnapKV
from jaxmem.memory.compression.tova import TOVA
from jaxmem.memory.exchange import Chunk, Received
from jaxmem.rope import rope, rope_1d

PUBLISHED = {"audio_share": None}
EXTRA = 3  # rows of padding


def pytest_generate_tests(metafunc):
    if "file" in metafunc.fixturenames:
        files = found(metafunc.config, "kvpress/*.npz")
        metafunc.parametrize("file", cases(metafunc.config, files))


def memories(z) -> dict[str, Memory]:
    """Return the memories that a file has scores of, with its settings."""
    kept = int(z["n_kept"])
    return {
        "snapkv": snapkv(z),
        "tova": TOVA(kept, **PUBLISHED),
        "knorm": Knorm(kept, **PUBLISHED),
        "keydiff": KeyDiff(kept, **PUBLISHED),
        "streamingllm": StreamingLLM(kept, sinks=int(z["n_sink"])),
    }


def snapkv(z) -> SnapKV:
    """Return SnapKV with arrays long enough for its whole window, see `start`."""
    window = int(z["window_size"])
    slots = max(int(z["n_kept"]), 2 * window)
    return SnapKV(slots, window=window, kernel=int(z["kernel_size"]), **PUBLISHED)


def start(z, memory: Memory) -> State:
    """Return a memory's empty state, of which as many slots as the file says may be filled.

    A window of more than half of the budget is cut to that here, but not there: arrays are longer
    then, and capacity and quotas, which are data, say what is kept.
    """
    state, kept = memory.init(spec(z)), int(z["n_kept"])
    groups = int(state.aux.capacity) // getattr(memory, "budget")  # noqa: B009  # heads share
    aux = state.aux._replace(capacity=jnp.int32(groups * kept))
    if hasattr(aux, "quotas"):
        aux = aux._replace(quotas=jnp.asarray([kept], jnp.int32))
    return state._replace(aux=aux)


def setting(z, name: str) -> float:
    """Return a number as it was written before it was stored in float32."""
    return float(str(np.float32(z[name])))


def rows_of(z) -> int:
    """Return T, the rows of a chunk that holds the file's tokens and padding."""
    return z["keys"].shape[1] + EXTRA


def spec(z) -> Spec:
    """Return the sizes of a file's one layer."""
    heads, width = z["keys"].shape[0], z["hidden_states"].shape[1]
    return Spec(1, heads, int(z["head_dim"]), width, chunk=rows_of(z), rope=table(z))


def table(z):
    return rope_1d(int(z["head_dim"]), float(z["rope_theta"]))


def queries(z) -> np.ndarray:
    """Return the queries [T, H, D] before rotation, from the layer's weights."""
    q = z["hidden_states"] @ z["w.q_proj.weight"].T + z.get("w.q_proj.bias", np.float32(0))
    q = q.reshape(len(q), int(z["num_heads"]), -1)
    if "w.q_norm.weight" in z:
        mean = np.mean(q * q, axis=-1, keepdims=True)
        q = q / np.sqrt(mean + z["rms_eps"]) * z["w.q_norm.weight"][None, None]
    return q


def padded(x):
    """Return rows padded with numbers that nothing may read."""
    return np.concatenate([x, np.full((EXTRA, *x.shape[1:]), 3, x.dtype)])


def chunk_of(z, groups: int) -> KV:
    """Return the file's tokens with their keys turned back."""
    k, v = (jnp.asarray(padded(z[name].transpose(1, 0, 2))) for name in ("keys", "values"))
    n, rows = z["keys"].shape[1], rows_of(z)
    index = np.arange(rows, dtype=np.int32)
    pos = jnp.asarray(index[:, None, None])
    spread = lambda x: jnp.broadcast_to(jnp.asarray(x)[:, None], (rows, groups))
    kind = np.where(index < n, tk.TEXT, tk.EMPTY).astype(np.int8)
    order = np.where(index < n, index, 0)
    turned = rope(k, -pos, table(z))
    pos = jnp.broadcast_to(pos, (rows, groups, 1))
    return KV(turned, v, pos, spread(order), spread(kind))


def seen_of(z, memory: Memory, held: KV) -> Chunk:
    """Return what the decoder reports of the file's tokens."""
    fresh = chunk_of(z, held.modality.shape[1])
    n = z["keys"].shape[1]
    end = jnp.full((1,), n, jnp.int32)
    seen, base = Chunk(fresh, end), jnp.zeros((1,), jnp.int32)
    if memory.requires.attention is None:
        return seen
    q = jnp.asarray(padded(queries(z)))
    row = jnp.arange(rows_of(z), dtype=jnp.int32)
    parts = [
        segment(held, base, row[:, None]),
        segment(fresh, base, row[:, None], last=row),
    ]
    _, lse = attend(q, parts, rope=table(z))
    counted = (row < n) & (row >= n - memory.requires.attention.last)
    reduce = "kv_head" if held.modality.shape[1] > 1 else "head_mean"
    sums = mass(q, parts, lse, rope=table(z), rows=counted, reduce=reduce)
    return seen._replace(received=Received(*sums))


def kept_of(state: State, many: int) -> np.ndarray:
    """Return the tokens that every head keeps, [heads, many]."""
    modality = np.asarray(state.slots.kv.modality)
    assert modality[:many].all() and not modality[many:].any()
    return np.asarray(state.slots.kv.index)[:many].T


@pytest.mark.parametrize("name", ["snapkv", "tova", "knorm", "keydiff", "streamingllm"])
def test_scores_and_kept_sets(file, name):
    z = weights.read(file)
    heads, n = z["keys"].shape[:2]
    memory = memories(z)[name]

    @jax.jit
    def run(state):
        seen = seen_of(z, memory, state.slots.kv)
        new, _ = memory.write(spec(z), state, seen)
        if name == "streamingllm":
            return new, None
        return new, memory.score(memory.candidates(spec(z), state, seen))

    state, score = run(start(z, memory))
    if score is not None:
        theirs = z[f"score.{name}"]
        ours = np.broadcast_to(np.asarray(score)[:, :n], theirs.shape)
        plain = np.isfinite(ours)
        always = {"snapkv": int(z["window_size"]), "tova": 1}.get(name, 0)
        np.testing.assert_array_equal(plain, np.arange(n)[None] < np.full((heads, 1), n - always))
        close = {"atol": 1e-6} if name == "keydiff" else {"rtol": 1e-5, "atol": 1e-7}
        np.testing.assert_allclose(ours[plain], theirs[plain], **close)
    kept = kept_of(state, int(z["n_kept"]))
    np.testing.assert_array_equal(np.broadcast_to(kept, z[f"kept.{name}"].shape), z[f"kept.{name}"])
