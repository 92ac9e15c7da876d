"""Weight tables: which stored tensor of a checkpoint goes where in the tree of weights.

See `jaxmem.models.hf.checkpoint` for the format and for what reads them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.typing import Params

Turn = Literal["plain", "linear", "conv", "patch", "flat"]
"""How a stored tensor is laid out in the tree.

"plain": as it is. "linear": [out, in] to [in, out]. "conv": [out, in, *window] to
[*window, in, out]. "patch": a convolution whose stride is its window, [out, in, *window], to the
kernel [in * window, out] of flattened patches (channel first). "flat": to one axis.
"""

Layers = int | tuple[int, ...] | None
"""How many tensors are stacked, or the numbers in their names; None: one tensor, not stacked."""
Place = Callable[[str, tuple[int, ...]], Sharding]
"""Tree path and shape to the placement of the (stacked) leaf."""


@dataclass(frozen=True)
class Weight:
    """One leaf of the tree: which stored tensor(s) it is made of."""

    name: str  # of the stored tensor; with `{}` for the layer if `layers` is given
    shape: tuple[int, ...]  # of one stored tensor
    turn: Turn = "plain"  # its layout in the tree
    layers: Layers = None  # tensors to stack on a leading axis
    # (start, stop) on the stored tensor's first axis; None: all of it.
    rows: tuple[int, int] | None = None

    def __post_init__(self):
        if ("{}" in self.name) != (self.layers is not None):
            raise ValueError(
                f"weight {self.name!r} has layers={self.layers}: give `layers` exactly where the "
                "name holds {} for the layer's number."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the stored tensors, in order of the layers."""
        if self.layers is None:
            return (self.name,)
        numbers = range(self.layers) if isinstance(self.layers, int) else self.layers
        return tuple(self.name.format(i) for i in numbers)

    @property
    def tree_shape(self) -> tuple[int, ...]:
        """Return the shape of the leaf."""
        first = self.shape[:1] if self.rows is None else (self.rows[1] - self.rows[0],)
        one = jax.ShapeDtypeStruct((*first, *self.shape[1:]), jnp.float32)
        lead = () if self.layers is None else (len(self.names),)
        return (*lead, *jax.eval_shape(partial(turned, turn=self.turn), one).shape)


Table = Mapping[str, Weight]


def turned(x: Any, turn: Turn) -> Any:
    """Return a stored tensor (numpy or traced) in the tree's layout; a view in numpy."""
    if turn == "linear":
        return x.T
    if turn == "conv":
        return x.transpose(*range(2, x.ndim), 1, 0)
    if turn == "patch":
        return x.reshape(x.shape[0], -1).T
    return x.reshape(-1) if turn == "flat" else x


def under(path: str, table: Table) -> dict[str, Weight]:
    """Return a table whose paths lie below `path`."""
    return {f"{path}.{key}": weight for key, weight in table.items()}


def dense(
    path: str, name: str, fan_in: int, fan_out: int, *, bias: bool = True, layers: Layers = None
) -> dict[str, Weight]:
    """Return the entries `{path}.kernel` and `.bias` of torch's Linear `name`."""
    table = {f"{path}.kernel": Weight(f"{name}.weight", (fan_out, fan_in), "linear", layers)}
    if bias:
        table[f"{path}.bias"] = Weight(f"{name}.bias", (fan_out,), layers=layers)
    return table


def norm(
    path: str, name: str, width: int, *, bias: bool = False, layers: Layers = None
) -> dict[str, Weight]:
    """Return the entries `{path}.scale` (and `.bias`) of a norm `name`; layer norms have a bias."""
    table = {f"{path}.scale": Weight(f"{name}.weight", (width,), layers=layers)}
    if bias:
        table[f"{path}.bias"] = Weight(f"{name}.bias", (width,), layers=layers)
    return table


def decoder_table(
    config: DecoderConfig, prefix: str = "model.", head: str = "lm_head.weight"
) -> dict[str, Weight]:
    """Return the table of `jaxmem.decoder.decoder`'s tree for Qwen2/Qwen3/Llama names.

    What layers with a state hold beside their norms and MLP is the family's: `mixers.I.mixer`.

    Args:
      prefix: of `layers.0...`, `embed_tokens.weight` and `norm.weight`, with its dot.
      head: name of the output matrix. A tied decoder has none; put the name in `load`'s `ignore`,
        since some checkpoints store a copy.
    """
    n, width = config.numbers(None), config.width
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    at, bias, table = f"{prefix}layers.{{}}.", config.qkv_bias, {}
    if n:
        table |= norm("layers.attn_norm", f"{at}input_layernorm", width, layers=n)
        table |= dense("layers.q", f"{at}self_attn.q_proj", width, q, bias=bias, layers=n)
        table |= dense("layers.k", f"{at}self_attn.k_proj", width, kv, bias=bias, layers=n)
        table |= dense("layers.v", f"{at}self_attn.v_proj", width, kv, bias=bias, layers=n)
        table |= dense("layers.o", f"{at}self_attn.o_proj", q, width, bias=False, layers=n)
        if config.qk_norm:
            table |= norm("layers.q_norm", f"{at}self_attn.q_norm", config.head_dim, layers=n)
            table |= norm("layers.k_norm", f"{at}self_attn.k_norm", config.head_dim, layers=n)
        table |= _feed_forward("layers", at, config, n)
    for i, mixer in enumerate(config.stacks):
        path, mine = f"mixers.{i}", config.numbers(mixer)
        table |= norm(f"{path}.norm", f"{at}input_layernorm", width, layers=mine)
        table |= _feed_forward(path, at, config, mine)
    table["embedding.embedding"] = Weight(f"{prefix}embed_tokens.weight", (config.vocab, width))
    table |= norm("norm", f"{prefix}norm", width)
    if not config.tied:
        table["head.kernel"] = Weight(head, (config.vocab, width), "linear")
    return table


def _feed_forward(
    path: str, at: str, config: DecoderConfig, layers: tuple[int, ...]
) -> dict[str, Weight]:
    """Return the entries of the norm and the MLP of some layers."""
    width, inner, more = config.width, config.mlp_width, {"bias": False, "layers": layers}
    table = norm(f"{path}.mlp_norm", f"{at}post_attention_layernorm", width, layers=layers)
    if config.activation == "swiglu":
        table |= dense(f"{path}.gate", f"{at}mlp.gate_proj", width, inner, **more)
    table |= dense(f"{path}.up", f"{at}mlp.up_proj", width, inner, **more)
    return table | dense(f"{path}.down", f"{at}mlp.down_proj", inner, width, **more)


def nest(flat: Mapping[str, Any]) -> Params:
    """Return the nested dict of a dict keyed by tree paths."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def abstract(table: Table, dtype: Any = jnp.float32) -> Params:
    """Return the tree as shapes and dtypes: what `load` would return, without reading anything."""
    return nest({p: jax.ShapeDtypeStruct(w.tree_shape, dtype) for p, w in table.items()})


def mesh_rule(mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]] = ()) -> Place:
    """Return a placement: the first pattern (`fnmatch`) that a tree path matches names its axes.

    Leaves that match no rule are replicated. A spec counts the leading axis L of stacks.
    """

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        del shape
        specs = (spec for pattern, spec in rules if fnmatchcase(path, pattern))
        return NamedSharding(mesh, next(specs, PartitionSpec()))

    return place
