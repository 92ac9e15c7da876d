"""What clients of a server send and hear."""

import json
import urllib.error
import urllib.request

import jax
import numpy as np

from jaxmem.serve.gathering import Gatherer
from jaxmem.serve.wanting import Wanted

LAST, COUNT = "what was the last shape", "how many shapes were there"
RECENT = Wanted("recent", "24")


def picture(seed, size=(30, 40)):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def sound(seed, seconds=1.0):
    noise = np.random.default_rng(seed).normal(size=round(16_000 * seconds))
    return (3000 * noise).clip(-32768, 32767).astype("<i2")


def pieces(pictures, sounds, media):
    """What pictures and sounds of a second each become."""
    gatherer, out = Gatherer(media), []
    for i, (frame, samples) in enumerate(zip(pictures, sounds, strict=True)):
        out += gatherer.picture(frame, 0.0, float(i))
        if samples is not None:
            out += gatherer.sound(samples.astype(np.float32) / 32768, 0.0, float(i))
    return out + gatherer.flush()


def same(a, b):
    """Order, modality and every other integer bit by bit, floats to 1e-5 of the largest."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if x.dtype.kind in "iub" and x.ndim:
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, atol=1e-5 * max(float(np.abs(x).max(initial=1)), 1))


class Socket:
    """A WebSocket that speaks JSON and waits for what it is told to wait for."""

    def __init__(self, session):
        self.session, self.heard = session, []

    def say(self, type, **more):
        self.session.send_text(json.dumps({"type": type, **more}))

    def wait(self, type, count=1, **like):
        """Return the next message of a type, or a list of several."""
        found = []
        while len(found) < count:
            message = self.session.receive_json()
            self.heard.append(message)
            same = all(message.get(key) == value for key, value in like.items())
            if message["type"] == type and same:
                found.append(message)
            elif message["type"] == "error":
                raise AssertionError(message)
        return found[0] if count == 1 else found


class Refused(Exception):  # noqa: N818  it says what it is
    """A status and the words with it."""


def call(address, path="", body=None, method=None, timeout=300.0):
    """Ask a server at an address about its sessions; return its JSON, or raise `Refused`."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{address}/v1/streaming/sessions{path}", data, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as found:
            return json.loads(found.read() or "{}")
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read().decode()) from error
