"""Draw a stream of `world.world`: frames at any time and at any whole multiple of 48x48 pixels."""

from collections.abc import Callable
from functools import cache

import numpy as np

from jaxmem.data.world.scene import DECOYS, GRID, SHAPES, Events, Scenery, Stream

SIZE = 48
PATCH = SIZE // GRID
SMALL, LARGE = 5.0, 10.0  # radius in pixels of a 48x48 picture
GLIDE = 0.2  # a moving glyph travels during the last part of each second
PURE = np.array(
    [
        [0.90, 0.10, 0.10],
        [0.10, 0.80, 0.15],
        [0.12, 0.20, 0.95],
        [0.95, 0.88, 0.10],
        [0.80, 0.15, 0.85],
        [0.10, 0.85, 0.90],
    ],
    np.float32,
)  # one row per colour of `scene.COLOURS`


def frames(
    stream: Stream, times: np.ndarray | None = None, scale: int = 1, batch: int = 256
) -> np.ndarray:
    """The picture at each time.

    Args:
        stream: what to draw.
        times: [F] seconds; default the middle of every second. A reader of an encoded stream should
            take the frame nearest to the middle of the second as well: moving glyphs rest there.
        scale: pixels per pixel of the 48x48 picture.
        batch: frames drawn at once (bounds the memory).

    Returns:
        uint8 [F, 48 * scale, 48 * scale, 3].

    Raises:
        ValueError: a time outside the stream, or `scale` below 1.
    """
    if times is None:
        times = np.arange(stream.seconds) + 0.5
    times = np.asarray(times, np.float64)
    if times.size and not (times.min() >= 0 and times.max() < stream.seconds):
        raise ValueError(
            f"times must lie in 0 <= t < {stream.seconds} s, got {times.min()} to {times.max()}"
        )
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, got {scale}")
    parts = [_draw(stream, times[i : i + batch], scale) for i in range(0, len(times), batch)]
    side = SIZE * scale
    return np.concatenate(parts) if parts else np.zeros((0, side, side, 3), np.uint8)


def _draw(stream: Stream, times: np.ndarray, scale: int) -> np.ndarray:
    picture = _background(stream, times, scale)
    _draw_flashes(picture, stream, times, scale)
    _draw_glyphs(picture, stream.decoys, times, scale)
    _draw_glyphs(picture, stream.events, times, scale)
    _expose(picture, stream, times, scale)
    return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _background(stream: Stream, times: np.ndarray, scale: int) -> np.ndarray:
    """float32 [F, side, side, 3]: drifting colour, brightness slope, static textures."""
    at = np.searchsorted(stream.scenery.start, times, side="right") - 1
    shown, which = np.unique(at, return_inverse=True)  # only these scenes are prepared
    s = Scenery(*(field[shown] for field in stream.scenery))
    amplitude, speed, phase = np.moveaxis(s.drift[which], -1, 0)
    colour = s.base[which] + amplitude * np.sin(speed * times[:, None] + phase)
    ramp = np.linspace(-1, 1, SIZE * scale)
    slope = (
        s.gradient[:, 0, None, None] * ramp[None, :, None]
        + s.gradient[:, 1, None, None] * ramp[None, None, :]
    )
    cell = SIZE * scale // (GRID * 4)
    texture = np.kron(s.texture, np.ones((1, cell, cell)))
    mask = np.kron(s.clutter, np.ones((1, PATCH * scale, PATCH * scale))).astype(bool)
    fixed = np.where(mask, texture, slope).astype(np.float32)
    tinted = np.where(mask, 0, 1).astype(np.float32)
    colour = colour.astype(np.float32)
    fixed, tinted = (_panned(x[which], stream, times, scale) for x in (fixed, tinted))
    return fixed[..., None] + tinted[..., None] * colour[:, None, None, :]


def _panned(pictures: np.ndarray, stream: Stream, times: np.ndarray, scale: int) -> np.ndarray:
    """Move the scenery [F, side, side]; what leaves at one side comes in at the other."""
    if not stream.camera.pan.any():
        return pictures
    moved = np.rint(times[:, None] * stream.camera.pan * scale).astype(int)
    pairs = zip(pictures, moved, strict=True)
    return np.stack([np.roll(one, shift, (0, 1)) for one, shift in pairs])


def _expose(picture: np.ndarray, stream: Stream, times: np.ndarray, scale: int) -> None:
    """Add what light and sensor do, in place; the noise changes eight times a second."""
    camera = stream.camera
    if np.any(camera.light != 1):
        picture *= camera.light[np.floor(times).astype(int), None, None, None].astype(np.float32)
    if camera.grain:
        bank = noise_pictures()
        # 37 steps through the 64 pictures: neighbours in time do not resemble each other.
        which = (camera.first + 37 * np.floor(times * 8).astype(int)) % len(bank)
        noise = np.kron(bank[which], np.ones((1, scale, scale, 1), np.float32))
        picture += np.float32(camera.grain) * noise


@cache
def noise_pictures() -> np.ndarray:
    """Noise pictures to choose from, float32 [64, 48, 48, 3]: fine grain plus 4x4 blocks."""
    rng = np.random.default_rng(4)
    fine = rng.standard_normal((64, 48, 48, 3), np.float32)
    blocks = rng.standard_normal((64, 12, 12, 3), np.float32)
    return 0.8 * fine + 0.6 * np.kron(blocks, np.ones((1, 4, 4, 1), np.float32))


def _draw_flashes(picture: np.ndarray, stream: Stream, times: np.ndarray, scale: int) -> None:
    f = stream.flashes
    side, cell = PATCH * scale, PATCH * scale // 4
    second = np.floor(times).astype(int)
    for i in np.flatnonzero(np.isin(f.second, second)):
        texture = np.kron(f.texture[i], np.ones((cell, cell)))[..., None]
        y, x = f.row[i] * side, f.col[i] * side
        picture[second == f.second[i], y : y + side, x : x + side] = texture


def _draw_glyphs(picture: np.ndarray, events: Events, times: np.ndarray, scale: int) -> None:
    """Blend every glyph over the picture, in place."""
    on = (times[:, None] >= events.start[None, :]) & (times[:, None] < events.end[None, :])
    frame, which = np.nonzero(on & (events.glyph >= 0)[None, :])
    y, x, radius = _place(events, which, times[frame])
    colour = (PURE[events.colour[which]] + events.tint[which]).astype(np.float32)
    for large in (False, True):
        pick = np.flatnonzero(events.large[which] == large)
        if not len(pick):
            continue
        reach = (LARGE if large else SMALL) + 2
        side = int(2 * reach * scale)
        limit = SIZE * scale - side
        top = np.clip((y[pick] - reach) * scale, 0, limit).astype(int)
        left = np.clip((x[pick] - reach) * scale, 0, limit).astype(int)
        grid = np.arange(side) + 0.5
        v = (top[:, None] + grid[None, :]) / scale - y[pick][:, None]
        u = (left[:, None] + grid[None, :]) / scale - x[pick][:, None]
        v, u = v / radius[pick][:, None], u / radius[pick][:, None]
        shape = (len(pick), side, side)
        inside = _inside(
            events.glyph[which[pick]],
            np.broadcast_to(u[:, None, :], shape).astype(np.float32),
            np.broadcast_to(v[:, :, None], shape).astype(np.float32),
        )
        width = (radius[pick] * scale).astype(np.float32)
        alpha = (0.5 - inside * width[:, None, None]).clip(0, 1)[..., None]
        for j, i in enumerate(pick):  # overlapping glyphs must blend one after the other
            here = picture[frame[i], top[j] : top[j] + side, left[j] : left[j] + side]
            here += alpha[j] * (colour[i] - here)


def _place(
    events: Events, which: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (y, x) and radius in pixels of a 48x48 picture at the given times."""
    second = np.floor(times)
    step = (second - events.start[which]).astype(int)
    last = events.end[which] - events.start[which] - 1
    after = np.minimum(step + 1, last)
    s = ((times - second - (1 - GLIDE)) / GLIDE).clip(0, 1)
    s = s * s * (3 - 2 * s)
    row = (1 - s) * events.row[which, step] + s * events.row[which, after]
    col = (1 - s) * events.col[which, step] + s * events.col[which, after]
    large = events.large[which]
    centre = np.where(large, PATCH, PATCH / 2)
    y = row * PATCH + centre + events.shift[which, 0]
    x = col * PATCH + centre + events.shift[which, 1]
    return y, x, np.where(large, LARGE, SMALL)


def _inside(glyph: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """About the signed distance to the outline in radii, negative inside. u: right, v: down."""
    out = np.empty_like(u)
    for number in set(glyph.tolist()):
        rows = glyph == number
        out[rows] = _OUTLINES[(SHAPES + DECOYS)[number]](u[rows], v[rows])
    return out


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = abs(u), abs(v)
    return np.minimum(np.maximum(a - 0.95, b - 0.33), np.maximum(b - 0.95, a - 0.33))


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.maximum(abs(u), abs(v)) - 0.9, -0.2 * np.cos(1.25 * 2 * np.pi * v))


_OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.95,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - 0.82,
    "triangle": lambda u, v: np.maximum(v - 0.75, (1.75 * abs(u) - v - 1) / 2),
    "star": lambda u, v: (abs(u) ** 0.6 + abs(v) ** 0.6 - 1.05) * 0.5,
    "cross": _cross,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.72) - 0.24,
    "diamond": lambda u, v: (abs(u) + abs(v) - 1.05) * 0.7,
    "moon": lambda u, v: np.maximum(np.hypot(u, v) - 0.98, 0.72 - np.hypot(u - 0.5, v)),
    "dots": lambda u, v: np.hypot(abs(u) - 0.52, abs(v) - 0.52) - 0.3,
    "stripes": _stripes,
}
