"""A server as a process, a browser that looks at its page, and a clip for its camera."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

import numpy as np

from jaxmem.data.world.render import frames
from jaxmem.data.world.scene import SHAPES
from jaxmem.data.world.world import world

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
)
SLOW = 240_000
"""Milliseconds that a page is waited for; a memory that is new is compiled first."""
OPTIONS = ("--budget", "64")
"""Of a server; memories of few slots compile no faster, but step faster."""
HANGS = 600
"""Seconds after which a server that was told to end hangs: a busy machine takes minutes."""
ADDRESS = re.compile(r"http://[\w.]+:\d+")


def chromium() -> str | None:
    """The program of the system's browser; None: there is none."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return os.environ.get("JAXMEM_CHROMIUM") or next(filter(None, found), None)


def write_clip(path) -> str:
    """Write a y4m file of the synthetic world that shows one shape again and again; return which.

    Args:
      path: of the file.
    """
    stream = world((2, 3), 120, "easy")
    events = stream.events
    lasting = (events.glyph >= 0) & (events.glyph < len(SHAPES)) & (events.end - events.start >= 2)
    row = next(i for i in np.flatnonzero(lasting) if alone(events, i))
    times = np.arange(events.start[row], events.end[row], 1 / 8)
    with open(path, "wb") as file:
        pictures = frames(stream, times, scale=4)
        height, width = pictures.shape[1:3]
        file.write(f"YUV4MPEG2 W{width} H{height} F8:1 Ip A1:1 C420jpeg\n".encode())
        for picture in pictures:
            file.write(b"FRAME\n" + yuv(picture).tobytes())
    return SHAPES[events.glyph[row]]


def alone(events, row) -> bool:
    """Whether nothing else is shown while an event lasts."""
    meets = (events.start < events.end[row]) & (events.end > events.start[row])
    return int((meets & (events.glyph >= 0)).sum()) == 1


def yuv(picture):
    """The planes of a picture uint8 [h, w, 3] in BT.601, limited range, colour at half the size."""
    red, green, blue = np.moveaxis(picture / 255, -1, 0)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = np.stack([(blue - y) / 1.772, (red - y) / 1.402])
    small = colours.reshape(2, len(y) // 2, 2, -1, 2).mean((2, 4))
    planes = np.concatenate([16 + 219 * y.ravel(), 128 + 224 * small.ravel()])
    return planes.round().astype(np.uint8)


@contextmanager
def serving(*options: str, cwd, port: int = 0):
    """Run a server; yield its address. A signal ends it, as it does outside of tests."""
    line = [sys.executable, "-m", "jaxmem.experiments.serve", "--port", str(port), *options]
    flags = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(line, cwd=cwd, env=os.environ | {"PYTHONUNBUFFERED": "1"}, **flags)
    said = []
    with process.stdout as out:
        try:
            for line in out:
                said.append(line)
                if found := ADDRESS.search(line):
                    break
            else:
                raise AssertionError("".join(said))
            # What it says later is read, too, so that it never waits for a reader.
            reader = threading.Thread(target=said.extend, args=(out,))
            reader.start()
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(HANGS)
        reader.join()
    assert "Traceback" not in "".join(said), "".join(said)[-3000:]


def demo(address: str) -> str:
    """Begin a session that reads the demo, over HTTP; return its id."""
    body = json.dumps({"source": "demo"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/streaming/sessions", body, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["id"]


def is_error(entry) -> bool:
    """Whether an entry of the console tells of an error; a branch has no picture at first."""
    return entry.type == "error" and "/picture" not in entry.location["url"]


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def panels(page):
    return page.locator(".panel")


def seconds(page):
    """Where the map of the first memory ends."""
    return int(page.get_by_role("slider").first.get_attribute("aria-valuemax") or 0)


def wait_for_map(page, at_least):
    """Wait until every memory holds something, and the stream has so many seconds."""
    script = """least => {
      const maps = [...document.querySelectorAll(".map")];
      const holds = (map) => map.ariaValueMax >= least && map.querySelector(".empty").hidden;
      return maps.length > 0 && maps.every(holds);
    }"""
    page.wait_for_function(script, arg=at_least)


def ask(page, text):
    page.get_by_label("Question", exact=True).fill(text)
    button(page, "Ask").click()
    return page.locator(".history .asked").first


@contextmanager
def visiting(browser):
    """Yield a function that opens pages; what they load from elsewhere or log fails the test."""
    contexts, wrong = [], []

    def visit(address, *, quiet=True, **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SLOW)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if quiet:
            page.on("console", lambda entry: wrong.append(entry.text) if is_error(entry) else None)
        own = (re.match(r"http://[^/]+/", address)[0], "blob:", "data:")
        page.on("request", lambda one: None if one.url.startswith(own) else wrong.append(one.url))
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong
