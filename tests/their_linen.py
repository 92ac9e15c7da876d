"""A decoder in Flax Linen that is not jaxmem's, and what it takes to give it a memory."""

from flax import linen as nn

import jaxmem as jm


class Block(nn.Module):
    """Everything but the attention itself, which is left to whoever calls the block."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int

    def setup(self):
        linear = lambda features, **more: nn.DenseGeneral(features, use_bias=False, **more)
        self.norm, self.mlp_norm = nn.RMSNorm(), nn.RMSNorm()
        self.q_norm, self.k_norm = nn.RMSNorm(), nn.RMSNorm()
        self.q = linear((self.heads, self.head_dim))
        self.k = linear((self.kv_heads, self.head_dim))
        self.v = linear((self.kv_heads, self.head_dim))
        self.out = linear(self.width, axis=(-2, -1))
        self.gate, self.up, self.down = linear(self.inner), linear(self.inner), linear(self.width)

    def __call__(self, x, attend):
        h = self.norm(x)
        x = x + self.out(attend(self.q_norm(self.q(h)), self.k_norm(self.k(h)), self.v(h)))
        h = self.mlp_norm(x)
        return x + self.down(nn.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Blocks, called one after the other with an attention from outside."""

    layers: int
    sizes: tuple[int, ...]

    def setup(self):
        self.blocks = [Block(*self.sizes) for _ in range(self.layers)]

    def watch(self, memory, spec, states, clock, rows, banks):
        """Pass a chunk through all blocks, each with the memory of its own layer."""
        x, after = rows.x, []
        for block, state, bank in zip(self.blocks, states, banks, strict=True):
            held = []

            def attend(*qkv, x=x, state=state, bank=bank, held=held):
                y, *new = jm.attend(memory, spec, state, *qkv, rows, clock, hidden=x, bank=bank)
                held += new
                return y

            x = block(x, attend)
            after.append((*held, None)[:2])
        states, banks = zip(*after, strict=True)
        return x, *jm.tick(states, clock, rows), banks

    def ask(self, memory, spec, states, rows, banks):
        """Pass a question through all blocks; states and banks are only read."""
        x, args = rows.x, (memory, spec)
        for block, *held in zip(self.blocks, states, banks, strict=True):
            attend = lambda *qkv, h=held: jm.attend_question(*args, h[0], *qkv, rows, bank=h[1])
            x = block(x, attend)
        return x

    def watch_all(self, memory, spec, state, clock, rows, bank, probes):
        """Pass a chunk through all blocks whatever the memory needs of them."""
        call = lambda layer, x, attend: self.blocks[layer](x, attend)
        args = (memory, spec, state, call, rows.x, rows, clock)
        x, state, *bank = jm.attend_stack(*args, bank=bank, probes=probes)
        return x, *jm.tick(state, clock, rows), *bank

    def ask_all(self, memory, spec, state, rows, bank):
        """Pass a question through all blocks; state and bank are only read."""
        call = lambda layer, x, attend: self.blocks[layer](x, attend)
        return jm.ask_stack(memory, spec, state, call, rows.x, rows, bank=bank)
