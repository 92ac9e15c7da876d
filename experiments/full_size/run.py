"""Measure checkpoints of published sizes on a CPU, beside transformers on the same rows.

    cd experiments/full_size && python run.py --checkpoints DIR --record results.jsonl

The checkpoints (random weights) are written to DIR where they are not there yet. Needs the extras
`dev` and `parity`. Every number comes from a process of its own; of the two that are compared each
does the same step in turn. Where both do not fit in memory (--apart), one runs after the other.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
MODELS = ("llava-onevision:0.5b", "qwen3-vl:2b", "qwen2.5-vl:3b")
ROWS, SLOTS, QUESTION = 196, 1024, 32
SIDE = 448  # pixels of a picture, where the family lets choose


class Ours:
    """The decoder alone, with `recent` full of SLOTS tokens."""

    def __init__(self, folder: str, dtype: str):
        import jax
        import numpy as np

        import jaxmem as jm
        from jaxmem.decoder.program import make_program, spec_of

        model = jm.load(folder, dtype=dtype)
        self.params, self.jax, self.jm = model.params["decoder"], jax, jm
        spec = spec_of(model.decoder, chunk=ROWS, dtype=np.dtype(dtype))
        self.program = make_program(model.decoder, jm.Recent(SLOTS), spec)
        draw = np.random.default_rng(0).standard_normal((ROWS, model.decoder.width))
        x = jax.numpy.asarray(0.02 * draw, dtype)
        rows = jm.embeds(x, jm.Modality.VISION, axes=spec.axes)
        self.chunk_rows = jax.tree.map(lambda leaf: leaf[None], rows)
        ids = np.arange(100, 100 + QUESTION)
        self.question = jm.question_rows(self.params, ids, program=self.program)
        self.carry = jm.start(self.program)
        for _ in range(-(-SLOTS // ROWS)):
            self.chunk()

    def chunk(self) -> None:
        more = {"program": self.program}
        self.carry = self.jm.advance(self.params, self.carry, self.chunk_rows, **more)
        self.jax.block_until_ready(self.carry)

    def first(self) -> None:
        answer = self.jm.ask(self.params, self.carry, self.question, program=self.program)
        self.jax.block_until_ready(answer)


class Theirs:
    """The same decoder of transformers with a cache of SLOTS tokens."""

    def __init__(self, folder: str, dtype: str):
        import torch
        from transformers import AutoModelForImageTextToText, DynamicCache

        self.torch = torch
        torch.set_num_threads(1)  # several would spin while they wait, which counts as CPU time
        kind = getattr(torch, dtype)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=kind).eval()
        self.decoder, self.head = model.model.language_model, model.lm_head
        for name in ("visual", "vision_tower"):
            if hasattr(model.model, name):
                delattr(model.model, name)
        width = self.decoder.config.hidden_size
        self.x, self.cache = 0.02 * torch.randn(1, ROWS, width, dtype=kind), DynamicCache()
        self.ids = torch.arange(100, 100 + QUESTION)[None]
        with torch.inference_mode():
            for begin in range(0, SLOTS, ROWS):
                self._pass(inputs_embeds=self.x[:, : SLOTS - begin])

    def _pass(self, **inputs):
        """Return the hidden states; the cache grows by the rows."""
        return self.decoder(past_key_values=self.cache, use_cache=True, **inputs)[0]

    def chunk(self) -> None:
        with self.torch.inference_mode():
            self._pass(inputs_embeds=self.x)
            self.cache.crop(-ROWS)

    def first(self) -> None:
        with self.torch.inference_mode():
            self.head(self._pass(input_ids=self.ids)[:, -1])
            self.cache.crop(-QUESTION)


def work(kind: str, folder: str, dtype: str) -> None:
    """Do what standard input says, and print the CPU seconds that it took."""
    worker = {"ours": Ours, "theirs": Theirs}[kind](folder, dtype)
    for _ in range(2):  # compiles, and packs weights
        worker.chunk(), worker.first()
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.process_time()
        getattr(worker, line.strip())()
        print(time.process_time() - begin, flush=True)


def stream(folder: str, dtype: str) -> None:
    """Load and stream as users do; print seconds and bytes as JSON."""
    import resource

    import numpy as np

    import jaxmem as jm

    begin, wall = time.process_time(), time.perf_counter()
    model = jm.load(folder, dtype=dtype, max_new=1)
    found = {"load_cpu_s": time.process_time() - begin, "load_s": time.perf_counter() - wall}
    found["peak_bytes_loading"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    media, draw = model.media, np.random.default_rng(0)
    size = media.size if isinstance(media.size, tuple) else media.size(SIDE, SIDE)
    frames = (round(media.fps * media.piece_seconds), *size, 3)
    samples = np.zeros(round(media.sample_rate * media.piece_seconds), np.float32)
    session = jm.Session(model, jm.OmniMem(SLOTS))
    chunks, firsts = [], []
    for _ in range(4):
        begin = time.process_time()
        session.feed(
            SimpleNamespace(frames=draw.integers(0, 256, frames, "uint8"), samples=samples)
        )
        session.carry.clock.block_until_ready()
        chunks.append(time.process_time() - begin)
    for _ in range(4):
        begin = time.process_time()
        session.ask("what is shown now")
        firsts.append(time.process_time() - begin)
    found |= {"rows": session.spec.chunk, "piece_seconds": media.piece_seconds}
    found["chunk_cpu_s"] = statistics.median(chunks[1:])  # the first compiles
    found["first_token_cpu_s"] = statistics.median(firsts[1:])
    found["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found))


def child(*words: str, **more) -> subprocess.Popen:
    """Start this file with other words, or a module."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], env=env, **pipes, **more)


def answer(process: subprocess.Popen, what: str | None = None) -> str:
    """Return the next line of a child, after telling it something."""
    if what is not None:
        process.stdin.write(what + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a process ended before it was done; its error stands above.")
    return line


def compare(folder: str, dtype: str, rounds: int, apart: bool) -> dict:
    """Return median CPU seconds of both on the same rows, and the median of their ratios."""
    words, times = (str(HERE), "--work"), {}
    start = lambda kind: child(*words, kind, folder, dtype)
    for group in (("ours",), ("theirs",)) if apart else (("ours", "theirs"),):
        workers = {kind: start(kind) for kind in group}
        for worker in workers.values():
            answer(worker)
        for what in ("chunk", "first"):
            for turn in range(rounds):
                for kind in group[:: 1 if turn % 2 else -1]:  # neither always comes first
                    seconds = float(answer(workers[kind], what))
                    times.setdefault((what, kind), []).append(seconds)
        for worker in workers.values():
            worker.communicate()
    found = {"interleaved": not apart}
    for what in ("chunk", "first"):
        ours, theirs = times[what, "ours"], times[what, "theirs"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        found[what] = {
            "ours_cpu_s": statistics.median(ours),
            "theirs_cpu_s": statistics.median(theirs),
            "ratio": statistics.median(ours) / statistics.median(theirs)
            if apart
            else statistics.median(ratios),
        }
    return found


def priced(name: str, dtype: str, found: dict) -> dict:
    """Return the price of the stream that was measured, of bytes that are held and needed."""
    words = ["--model", name, "--dtype", dtype, "--memory", "omnimem", "--budget", str(SLOTS)]
    words += [
        "--chunk-seconds",
        str(found["piece_seconds"]),
        "--height",
        str(SIDE),
        "--answer",
        "1",
    ]
    words += ["--width", str(SIDE), "--question", "8", "--json"]
    process = child("-m", "jaxmem.experiments.benchmark", "price", *words)
    cost = json.loads(process.communicate()[0])
    keys = ("weight_bytes", "state_bytes", "resident_bytes")
    return {key: cost[key] for key in keys} | {"price_rows": cost["rows"]}


def machine() -> dict:
    """Return what was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "cpu": next(line.split(": ")[1] for line in lines if line.startswith("model name")),
        "avx512_bf16": "avx512_bf16" in " ".join(lines),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "torch", "transformers")},
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--stream", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoints", type=Path, help="folder of the checkpoints")
    parser.add_argument("--record", type=Path, help="file that a line is added to for each model")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=("bfloat16", "float32"))
    parser.add_argument("--apart", nargs="*", default=("qwen2.5-vl:3b/float32",))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.work or args.stream:
        return work(*args.work) if args.work else stream(*args.stream)
    from published_checkpoints import write_published

    for name in args.models:
        folder = args.checkpoints / name.replace(":", "-")
        if not folder.is_dir():
            write_published(name, folder)
        for dtype in args.dtypes:
            found = {"model": name, "dtype": dtype} | machine()
            found |= json.loads(answer(child(str(HERE), "--stream", str(folder), dtype)))
            found |= priced(name, dtype, found)
            apart = f"{name}/{dtype}" in args.apart
            found |= compare(str(folder), dtype, args.rounds, apart)
            with args.record.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
