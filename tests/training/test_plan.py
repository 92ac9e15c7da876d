"""The memory that XLA compiles grows as the formulas say; plans, and the published constants."""

from functools import cache
from itertools import product

import jax
import pytest
from cells import LAYERS, NAMES, shapes

from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.training.plan import (
    Cost,
    Plan,
    cost_of,
    plan,
    price,
    published,
    published_cost,
    squares,
    temp,
)
from jaxmem.training.remat import SCHEMES, WORDS, grid

CHUNK = 128


@cache
def costs(name, chunk=CHUNK, **sizes):
    """The cost of a cell, measured at other depths and lengths than the laws'."""
    cell, params, x, state = shapes(name, chunk, **sizes)
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (params, state))
    return cost_of(cell, one[0], x, one[1])


def planned(scheme, tokens, chunk=CHUNK, layers=LAYERS):
    block = 2 if WORDS[scheme].count("s") == 2 else None
    return Plan(scheme, layers, tokens, block, chunk, 4 if scheme == "E" else None)


@cache
def compiled(name, plan, **sizes):
    cell, *given = shapes(name, plan.tokens, **{"layers": plan.depth, **sizes})
    return price(squares(grid(cell, **plan.options)), *given)


def slope(f, few, many):
    return (f(many) - f(few)) / (many - few)


def law(name, scheme, chunk=CHUNK, layers=LAYERS, first=16, **sizes):
    """Compiled and said bytes of one more token, between `first` chunks and 2.5 times as many."""
    cost = costs(name, chunk, **sizes)
    lengths = first * chunk, 5 * first // 2 * chunk

    def real(tokens):
        return compiled(name, planned(scheme, tokens, chunk, layers), **sizes)

    def said(tokens):
        return temp(planned(scheme, tokens, chunk, layers), cost)

    return slope(real, *lengths), slope(said, *lengths)


LONG = 256  # chunks; a stream [S, E] is then larger than what one chunk works with
QUICK = [("generic", s, 16) for s in ("off", "layer", "A", "B", "C", "D", "E")]
QUICK += [("generic", "D", LONG)]
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in product(NAMES, SCHEMES, (16, LONG))
]


@pytest.mark.parametrize("name, scheme, first", CASES)
def test_memory_grows_by_the_formula(name, scheme, first):
    found, expected = law(name, scheme, first=first)
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "scheme, streams", [("D", 2), pytest.param("A", 7, marks=pytest.mark.slow)]
)
def test_a_slope_in_words(scheme, streams):
    """The formula itself, of long streams: streams, and states of every layer."""
    cost, (found, _) = costs("generic"), law("generic", scheme, first=LONG)
    extra = 2 if scheme == "A" else 0  # layers of a block, while they are computed again
    states = (LAYERS + extra) * cost.state / CHUNK
    assert found == pytest.approx(streams * cost.stream + states, rel=0.01)


def test_twice_the_layers_cost_their_states_alone():
    """D keeps one stream whatever the depth."""
    once, twice = (law("generic", "D", layers=n)[0] for n in (8, 16))
    assert twice - once == pytest.approx(8 * costs("generic").state / CHUNK, rel=0.01)


@pytest.mark.slow
def test_blocks_of_layers_change_no_slope_of_c():
    """C keeps what D keeps, whatever l is."""
    found = []
    for block in (2, 4):
        at = [planned("C", n * CHUNK)._replace(layers=block) for n in (16, 32)]
        found.append(compiled("generic", at[1]) - compiled("generic", at[0]))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0] / (16 * CHUNK) == pytest.approx(law("generic", "D")[0], rel=1e-3)


def test_the_whole_formula_is_near():
    """What does not grow is an estimate; here it is half of all."""
    cost = costs("generic")
    for scheme in ("A", "B", "C", "D", "E"):
        one = planned(scheme, 40 * CHUNK)
        assert temp(one, cost) == pytest.approx(compiled("generic", one), rel=0.1)


@pytest.mark.slow  # the first of them is in the quick test of `benchmark remat`
@pytest.mark.parametrize("width, chunk", [(64, 512), (128, 1024)])
def test_ratios_at_16384_tokens(width, chunk):
    """Per-layer checkpointing of the whole stream is what people have."""
    sizes = {"width": width, "mixer": Mamba2(width // 32, 64, 16, block=128)}
    names = ("layer", "D") if width == 64 else ("layer", "D", "off")
    at = {s: compiled("mamba2", planned(s, 16_384, chunk), **sizes) for s in names}
    assert at["D"] <= at["layer"] / 8
    assert at["D"] <= at.get("off", at["D"] * 60) / 60


TABLE = [  # tokens, GiB by the paper's constants, s, l, GiB by those of the code, s, l (2.7B)
    (2**10, 0.73, 256, 6, 0.35, 1024, 5),
    (2**14, 3.31, 1024, 13, 2.82, 2048, 16),
    (2**16, 7.18, 1792, 20, 6.99, 4096, 22),
    (2**17, 10.67, 2304, 24, 10.66, 4864, 32),
    (2**19, 24.0, 4352, 35, 24.95, 6400, 64),
]
MODELS = {  # width, inner, size of the published models, and Table 7 of the paper
    "370m": ((1024, 2048, 128), 32, (1024, 269_056, 6_432, 264_448)),
    "1.3b": ((2048, 4096, 128), 64, (2048, 537_344, 12_608, 528_640)),
    "2.7b": ((2560, 5120, 128), 80, (2560, 671_488, 15_696, 660_736)),
}


@pytest.mark.parametrize("name", MODELS)
def test_constants_are_those_of_the_paper(name):
    sizes, heads, expected = MODELS[name]
    found = published_cost(*sizes, heads=heads)
    assert (found.stream, found.state, found.inner, found.scan) == tuple(2 * n for n in expected)


def test_constants_are_those_of_the_released_code():
    found = published_cost(2560, 5120, 128, heads=80, rule="released")
    assert found.state == 2 * 1_326_848 and found.scan == 2 * 13_888 and found.stream == 6 * 2560


@pytest.mark.parametrize("row", TABLE, ids=lambda row: str(row[0]))
def test_published_rules_choose_what_they_choose(row):
    tokens, *expected = row
    for rule, scheme, (gib, chunk, block) in (
        ("paper", "B", expected[:3]),
        ("released", "A", expected[3:]),
    ):
        cost = published_cost(2560, 5120, 128, heads=80, rule=rule)
        if tokens > 2**16:  # the enumeration of long streams takes seconds
            at = Plan(scheme, 64, tokens, block, chunk, None)
            near = [at._replace(layers=min(block + i, 64), chunk=chunk + 256 * j)
                    for i in (-1, 0, 1) for j in (-1, 0, 1)]  # fmt: skip
            best = min(near, key=lambda p: published(p, cost, rule))
            best = best._replace(temp=round(published(best, cost, rule)))
        else:
            best = plan(cost, layers=64, tokens=tokens, multiple=256, scheme=scheme, rule=rule)
        assert (best.chunk, best.layers) == (chunk, block)
        assert best.temp / 2**30 == pytest.approx(gib, abs=0.006 if gib < 20 else 0.05)


def test_a_plan_is_the_best_of_its_neighbours():
    cost = Cost(stream=256, state=10_112, inner=11_440)
    for scheme in SCHEMES:
        best = plan(cost, layers=12, tokens=10_000, multiple=64, scheme=scheme)
        assert best.chunk % 64 == 0 and best.temp == temp(best, cost)
        for chunk in (best.chunk - 64, best.chunk + 64):
            assert chunk < 64 or temp(best._replace(chunk=chunk), cost) >= best.temp
        assert best.forwards == 1 + WORDS[scheme].count("r")
    assert best.segments == pytest.approx((10_000 / best.chunk) ** 0.5, abs=1)


def test_a_plan_runs():
    """Sizes of a plan are what `grid` takes."""
    cost = costs("generic", 16)
    cell, *given = shapes("generic", 96, layers=6)
    for scheme in ("A", "D", "E"):
        best = plan(cost, layers=6, tokens=96, multiple=16, scheme=scheme)
        run = grid(cell, fill=0.0, **best.options)
        y, _ = jax.eval_shape(run, *given)
        assert y.shape == (96, 64)


def test_what_makes_no_sense_is_refused():
    cost = Cost(1, 1, 1)
    for given in ({"layers": 0, "tokens": 1}, {"layers": 1, "tokens": 0}):
        with pytest.raises(ValueError, match="must be positive, got 0"):
            plan(cost, **given)
    with pytest.raises(ValueError, match="one of off"):
        plan(cost, layers=1, tokens=1, scheme="F")
    with pytest.raises(ValueError, match="'D' and 'E', got 'A'"):
        temp(planned("A", 100), cost, inside=True)
