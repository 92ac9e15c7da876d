"""Time two checkouts of jaxmem side by side: chunk step and first token of the embedded model.

    git worktree add /tmp/before 2c6f359
    python experiments/before_and_after/pair.py /tmp/before . --memory omnimem --rounds 60

Each checkout runs in a process of its own; the two take turns, round by round, so that a ratio
holds while the machine's speed drifts. The median over rounds of the ratio second / first is
printed, with the middle half of the rounds.
"""

import argparse
import ast
import os
import statistics
import subprocess
import sys
from pathlib import Path

SLOTS, CHUNK, CHUNKS = 96, 8, 16
QUESTION = "what was the last shape ?"

WORKER = """
import importlib, sys, time
import jax, numpy as np
name = sys.argv[1]
NEW = importlib.util.find_spec("jaxmem.loop") is not None
if NEW:
    import jaxmem as jm
    from jaxmem.pieces import Preprocessor
    from jaxmem.memory.by_name import build
    from jaxmem.programs import model_spec
    model = jm.load("tiny")
    memory = build(name, {slots}, model_spec(model, {chunk}), {options})
    program = jm.compile(model, memory, chunk_pieces={chunk})
    bound = jm.bind(program, model.params)
    carry = jm.start(program)
    def advance(carry, inputs):
        return jm.advance(bound, carry, inputs, program=program)
    def ask(carry, rows):
        return jm.ask(bound, carry, rows, program=program).first
    rows_of = lambda ids: jm.question_rows(model.params, ids, program=program)
else:
    from jaxmem.embedded import embedded
    from jaxmem.models.program import init_carry, make_program
    from jaxmem.session import model_spec
    from jaxmem.stream import ask as _ask, question_rows, stream
    model = embedded()
    module = importlib.import_module("jaxmem.memory." + name)
    memory = getattr(module, name)({slots}, **{options})
    spec = model_spec(model, {chunk} * model.tokens_per_piece)
    program = make_program(model.decoder, memory, spec)
    carry = init_carry(program)
    def advance(carry, inputs):
        return stream(model.params, carry, inputs, program=program, encode=model.encode)
    def ask(carry, rows):
        return _ask(model.params, carry, rows, program=program).first
    rows_of = lambda ids: question_rows(model.params, ids, program=program)

rng = np.random.default_rng(0)
c, media = {chunk}, model.media
def one():
    frames = rng.integers(0, 256, (c, 1, *media.size, 3), dtype=np.uint8)
    samples = rng.normal(size=(c, media.sample_rate)).astype(np.float32) * 0.1
    past = np.zeros(media.past_samples, np.float32)
    make = model.preprocess if NEW else model.pack
    return make(frames, samples, np.ones(c, bool), past)
inputs = jax.tree.map(lambda *x: np.stack(x), *[one() for _ in range({chunks})])
rows = rows_of(model.tokenize({question!r}))
carry = jax.block_until_ready(advance(carry, inputs))
jax.block_until_ready(ask(carry, rows))
print("ready", flush=True)
for line in sys.stdin:
    begin = time.perf_counter()
    if line.strip() == "chunk":
        carry = jax.block_until_ready(advance(carry, inputs))
    else:
        for _ in range(8):
            jax.block_until_ready(ask(carry, rows))
    print(time.perf_counter() - begin, flush=True)
"""


class Checkout:
    """A process that times what it is told to."""

    def __init__(self, root: str, memory: str, options: dict):
        code = WORKER.format(
            slots=SLOTS, chunk=CHUNK, chunks=CHUNKS, question=QUESTION, options=repr(options)
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(root).resolve())},
            cwd="/",
        )
        self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a checkout ended before it was timed; its error stands above.")
        return line

    def seconds(self, what: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(self.read())

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", help="folder of a checkout")
    parser.add_argument("second", help="folder of another")
    parser.add_argument("--memory", default="recent")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the memory")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    options = {k: ast.literal_eval(v) for k, v in (o.split("=", 1) for o in args.option)}
    both = [Checkout(root, args.memory, options) for root in (args.first, args.second)]
    print(f"{args.memory}, {SLOTS} slots, chunks of {CHUNK} s, {args.rounds} rounds")
    for what in ("chunk", "first token"):
        ratios, firsts = [], []
        for turn in range(args.rounds):
            order = (0, 1) if turn % 2 else (1, 0)  # neither always comes first
            times = dict((i, both[i].seconds(what)) for i in order)
            ratios.append(times[1] / times[0])
            firsts.append(times[0])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{what:12} second / first {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)
    for checkout in both:
        checkout.close()


if __name__ == "__main__":
    main()
