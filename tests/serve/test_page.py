"""The page without a browser: what it may contain, what it sends, and what its modules compute.

`tests/serve/test_page_browser.py` opens it (`pytest -m browser`).
"""

import ast
import colorsys
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxmem.kv import MODALITY_NAMES
from jaxmem.report.numbers import clock, milliseconds, size
from jaxmem.report.style import KIND_COLOURS

SOURCES = {".js", ".css", ".html", ".svg"}
NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
IMPORT = re.compile(r'^import \{([^}]+)\} from "\./([\w-]+\.js)";', re.MULTILINE)
MESSAGE = re.compile(r'"((?:session|source|video|audio|response|memory)\.[a-z.]+)"')
FORBIDDEN = "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval|new Function|srcdoc"


@pytest.fixture(scope="module")
def page(root):
    """Name -> text of every file of the page."""
    files = sorted((root / "jaxmem" / "serve" / "page").iterdir())
    assert {file.suffix for file in files} == SOURCES
    return {file.name: file.read_text() for file in files}


@pytest.fixture(scope="module")
def modules(page):
    return {name: text for name, text in page.items() if name.endswith(".js")}


def test_nothing_comes_from_elsewhere(page):
    for name, text in page.items():
        found = set(re.findall(r"(?:https?|wss?)://[\w.]+[\w./]*", text))
        assert found <= {"http://www.w3.org/2000/svg"}, name  # a name space, which nobody fetches
        assert not re.search(r"@import|url\(|@font-face", text), name
    links = re.findall(r'(?:src|href)="([^"]*)"', page["index.html"])
    assert links and all(re.fullmatch(r"static/[\w-]+\.\w+|#main", link) for link in links)
    assert {link.removeprefix("static/") for link in links} - {"#main"} <= set(page)


def test_text_of_others_is_never_markup(modules):
    for name, text in modules.items():
        assert not re.search(FORBIDDEN, text), name


def test_modules_import_what_is_exported(modules, page):
    for name, text in modules.items():
        assert len(IMPORT.findall(text)) == text.count("\nimport ") + text.startswith("import "), (
            name
        )
        for names, other in IMPORT.findall(text):
            exported = re.findall(r"^export (?:async )?\w+ (\w+)", modules[other], re.MULTILINE)
            assert {one.strip() for one in names.split(",")} <= set(exported), (name, other)
    ids = set(re.findall(r'id="([\w-]+)"', page["index.html"]))
    used = {x for text in modules.values() for x in re.findall(r'byId\("([\w-]+)"\)', text)}
    assert used and used <= ids


def test_messages_are_those_of_the_server(root, modules):
    """Every type that the page sends is taken by the server, and the other way round."""
    tree = ast.parse((root / "jaxmem" / "serve" / "socket.py").read_text())
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    known = {s for s in strings if isinstance(s, str) and MESSAGE.fullmatch(f'"{s}"')}
    mine = {s for text in modules.values() for s in MESSAGE.findall(text)}
    assert len(mine) > 15 and mine <= known, sorted(mine - known)
    handled = set(re.findall(r'^  "([a-z.]+)": \(stream', modules["handlers.js"], re.MULTILINE))
    from jaxmem.serve.socket import SENT

    assert handled == set(SENT) - {"error"}
    assert "error: (stream" in modules["handlers.js"]


def pairs(css):
    """Name -> colours in the light and in the dark."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    return {name: (light, dark) for name, light, dark in found}


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def hue(colour):
    return colorsys.rgb_to_hls(*rgb(colour))[0]


def luminance(colour):
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = rgb(colour)
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_are_those_of_the_reports_and_can_be_read(page):
    colours = pairs(page["style.css"])
    for kind, colour in KIND_COLOURS.items():
        light, dark = colours[MODALITY_NAMES[kind]]
        assert light.lower() == colour.lower()
        hues = [
            colorsys.rgb_to_hls(*(int(c[i : i + 2], 16) for i in (1, 3, 5)))[0]
            for c in (light, dark)
        ]
        assert abs(hues[0] - hues[1]) < 0.03  # a lighter one of the same colour
    for theme in (0, 1):
        of = lambda name: colours[name][theme]  # noqa: B023
        for text in ("ink", "faint", "accent", "bad"):
            for ground in ("surface", "ground"):
                assert contrast(of(text), of(ground)) >= 4.5, (theme, text, ground)
        assert contrast(of("on-accent"), of("accent")) >= 4.5
        assert (
            contrast(of("ink"), of("bad-ground")) >= 4.5 <= contrast(of("ink"), of("good-ground"))
        )
        for kind in ("vision", "audio", "text"):
            for ground in ("surface", "lane"):
                assert contrast(of(kind), of(ground)) >= 3.0, (theme, kind, ground)


@pytest.fixture(scope="module")
def node(modules, tmp_path_factory):
    """Return a function that runs a script beside the modules and returns the JSON it prints."""
    folder = tmp_path_factory.mktemp("modules")
    for name, text in modules.items():
        (folder / name).with_suffix(".mjs").write_text(
            re.sub(r'(from "\./[\w-]+)\.js"', r'\1.mjs"', text)
        )

    def run(script):
        (folder / "script.mjs").write_text(script)
        line = ["node", "--experimental-vm-modules", str(folder / "script.mjs")]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run.folder = folder
    return run


PARSE = """
import { readdirSync, readFileSync } from "node:fs";
import { SourceTextModule } from "node:vm";
const folder = new URL(".", import.meta.url);
const names = readdirSync(folder).filter((name) => name.endsWith(".mjs"));
for (const identifier of names) {
  new SourceTextModule(readFileSync(new URL(identifier, folder), "utf8"), { identifier });
}
console.log(names.length);
"""


@NODE
def test_modules_parse(node, modules):
    assert node(PARSE) == len(modules) + 1
    (node.folder / "broken.mjs").write_text("const = 1;")
    with pytest.raises(AssertionError, match="broken"):
        node(PARSE)


@NODE
def test_numbers_are_written_as_in_the_reports(node):
    times = [0, 0.25, 59.999, 61, 3599.5, 3600, 36610.04, -2.5]
    counts = [0, 900, 1024, 3 << 20, 5 << 30]
    lags = [None, 0.0123, 2.5, 23.4567, 123.4, 999.4, 1204.6]
    found = node(
        f"""
        import {{ clock, milliseconds, seconds, size }} from "./format.mjs";
        console.log(JSON.stringify([
          {json.dumps(times)}.map(clock), {json.dumps(counts)}.map(size),
          {json.dumps(lags)}.map(milliseconds),
          ["90", "1:30", "1:02:03", " 0:05.5 ", "1:99", "1:70:00", "soon", ""].map(seconds),
        ]));
        """
    )
    assert found[0] == [clock(t) for t in times]
    assert found[1] == [size(n) for n in counts]
    assert found[2] == [milliseconds(t) for t in lags]
    assert found[3] == [90, 90, 3723, 5.5, None, None, None, None]


MAP = {
    "seconds": 6,
    "layers": [
        {"layer": 0, "slots": 8, "held": [
            {"start": 4, "end": 5, "modality": "audio", "count": 2},
            {"start": 1, "end": 2, "modality": "video", "count": 9},
            {"start": 4, "end": 5, "modality": "video", "count": 4},
        ]},
        {"layer": 1, "slots": 8, "held": [{"start": 4, "end": 5, "modality": "text", "count": 1}]},
        {"layer": 2, "slots": 8, "held": []},
    ],
}  # fmt: skip


@NODE
def test_what_a_map_holds(node):
    totals, moments, scale, empty, step = node(
        f"""
        import {{ columnsOf, momentsOf, scaleOf, tickStep, totals }} from "./held.mjs";
        const map = {json.dumps(MAP)};
        const none = {{ seconds: 0, layers: [] }};
        console.log(JSON.stringify([
          totals(map), momentsOf(map), scaleOf(map.layers.map(columnsOf)), totals(none),
          [tickStep(60, 10), tickStep(61, 10), tickStep(1e6, 10)],
        ]));
        """
    )
    assert totals == {"vision": 13, "audio": 2, "text": 1, "summary": 0, "oldest": 1}
    first = {"start": 1, "end": 2, "layers": 1, "vision": 9, "audio": 0, "text": 0, "summary": 0}
    assert moments[0] == first
    assert moments[1] == first | {
        "start": 4,
        "end": 5,
        "layers": 2,
        "vision": 4,
        "audio": 2,
        "text": 1,
    }
    assert scale["above"] == 9 and scale["scale"] == pytest.approx(0.9 / (3 + 2**0.5))
    assert empty["oldest"] is None
    assert step == [10, 10, 360000]


@NODE
@pytest.mark.parametrize("rate", [48_000, 44_100, 16_000, 8_000])
def test_sound_is_resampled(node, rate):
    """A tone keeps its frequency and length, whatever the blocks that it comes in."""
    values = node(
        f"""
        import {{ Resampler, base64, toInt16 }} from "./pcm.mjs";
        const resampler = new Resampler({rate});
        const all = [];
        for (let at = 0; at < {rate}; at += 128) {{
          const block = Float32Array.from({{ length: Math.min(128, {rate} - at) }},
            (_, i) => 0.5 * Math.sin((2 * Math.PI * 440 * (at + i)) / {rate}));
          all.push(...resampler.push(block));
        }}
        const loud = [...toInt16([2, -2, 0.5, 0])];
        console.log(JSON.stringify([all, loud, base64(Uint8Array.of(0, 255, 7))]));
        """
    )
    wave = np.array(values[0])
    assert abs(len(wave) - 16_000) <= 4
    power = np.abs(np.fft.rfft(wave, 16_000)) ** 2
    assert power.argmax() == 440 and np.abs(wave).max() == pytest.approx(0.5, abs=0.02)
    assert power[438:443].sum() > 0.99 * power.sum()
    assert values[1:] == [[32767, -32767, 16384, 0], "AP8H"]
