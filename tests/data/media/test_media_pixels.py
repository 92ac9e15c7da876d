"""Media: rotation, pixel formats, sizes and changes of them."""

from fractions import Fraction

import av
import numpy as np
import pytest
from media_clips import EVEN, MS, add_video, clip, level, mux, shown, video_packets

from jaxmem.data.media.media import open_media


def corners(frame):
    """Names of the quadrants' colours, row by row."""
    h, w, _ = frame.shape
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    points = [
        (h // 4, w // 4),
        (h // 4, 3 * w // 4),
        (3 * h // 4, w // 4),
        (3 * h // 4, 3 * w // 4),
    ]
    return "".join(names.get(tuple((frame[p] > 128).astype(int).tolist()), "?") for p in points)


def quadrants(h=48, w=64):
    image = np.zeros((h, w, 3), np.uint8)
    image[: h // 2, : w // 2] = 255, 0, 0
    image[: h // 2, w // 2 :] = 0, 255, 0
    image[h // 2 :, : w // 2] = 0, 0, 255
    image[h // 2 :, w // 2 :] = 255, 255, 255
    return image


# The matrix of a display, by QuickTime's definition: x' = a x + c y, y' = b x + d y, y down.
MATRICES = {
    "none": ((1, 0, 0, 1), "rgbw"),
    "clockwise": ((0, 1, -1, 0), "brwg"),
    "counter": ((0, -1, 1, 0), "gwrb"),
    "half": ((-1, 0, 0, -1), "wbgr"),
    "mirror": ((-1, 0, 0, 1), "grwb"),
    "transpose": ((0, 1, 1, 0), "rbgw"),
}


@pytest.mark.parametrize("name", MATRICES)
def test_rotation(tmp_path, name):
    (a, b, c, d), expected = MATRICES[name]
    out = av.open(str(tmp_path / "a.mp4"), "w")
    stream = add_video(out, "libx264", "yuv444p", (48, 64), 25, Fraction(1, 25), {"crf": "4"})
    one = 1 << 16
    stream.set_display_matrix([a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30])
    mux(out, video_packets(stream, EVEN[:25], Fraction(1, 25), quadrants()))
    with open_media(tmp_path / "a.mp4") as reader:
        piece = next(reader)
        turned = name in ("clockwise", "counter", "transpose")
        assert reader.info.native_size == ((64, 48) if turned else (48, 64))
        assert piece.frames.shape == (1, *reader.info.native_size, 3)
        assert corners(piece.frames[0]) == expected
    with open_media(tmp_path / "a.mp4", size=(20, 40)) as reader:
        assert corners(next(reader).frames[0]) == expected
        assert reader.info.size == (20, 40)


@pytest.mark.parametrize(
    "pix_fmt, codec, size",
    [
        ("yuv420p10le", "libx265", (64, 64)),
        ("yuv420p10le", "ffv1", (33, 47)),
        ("yuv444p", "libx264", (35, 51)),
        ("yuv420p", "ffv1", (17, 9)),
        ("gray", "ffv1", (10, 11)),
        ("bgra", "ffv1", (13, 21)),
    ],
)
def test_pixel_formats_and_odd_sizes(tmp_path, pix_fmt, codec, size):
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = clip(
        tmp_path / "a.mkv",
        EVEN[:25],
        video={"codec": codec, "pix_fmt": pix_fmt, "size": size, "options": quiet},
    )
    with open_media(path, fps=2) as reader:
        piece = next(reader)
    assert piece.frames.shape == (2, *size, 3)
    for frame, number in zip(piece.frames, (6, 18), strict=True):
        assert np.abs(frame.astype(int) - level(number)).max() <= 6


def test_size_by_function_and_resize(tmp_path):
    path = clip(tmp_path / "a.mkv", EVEN, video={"size": (30, 50)})
    asked = []

    def half(h, w):
        asked.append((h, w))
        return h // 2, w // 2

    with open_media(path, size=half) as reader:
        assert {p.frames.shape for p in reader} == {(1, 15, 25, 3)}
    assert asked == [(30, 50)]


def test_white_is_255(tmp_path):
    out = av.open(str(tmp_path / "a.mkv"), "w")
    stream = add_video(out, "ffv1", "yuv420p", (16, 16))
    mux(out, video_packets(stream, [0, 0.5], image=np.full((16, 16, 3), 255, np.uint8)))
    with open_media(tmp_path / "a.mkv") as reader:
        assert next(reader).frames.min() == 255


def test_resolution_change_in_mid_stream(tmp_path):
    out = av.open(str(tmp_path / "a.mkv"), "w")
    stream = add_video(out, "mjpeg", "yuvj420p", (32, 48))
    packets = list(video_packets(stream, [0.0, 0.5]))
    other = av.CodecContext.create("mjpeg", "w")
    other.height, other.width, other.pix_fmt, other.time_base = 64, 32, "yuvj420p", MS
    for i, t in enumerate([1.0, 1.5]):
        frame = av.VideoFrame.from_ndarray(np.full((64, 32, 3), level(i + 2), np.uint8), "rgb24")
        frame.pts, frame.time_base = round(t * 1000), MS
        packets += other.encode(frame)
    for packet in packets:
        packet.stream, packet.time_base = stream, MS
        out.mux(packet)
    out.close()
    with open_media(tmp_path / "a.mkv", fps=2) as reader:
        got, pieces = shown(reader)
    assert {p.frames.shape for p in pieces} == {(2, 32, 48, 3)}
    assert [abs(v - level(i)) <= 4 for i, (_, v) in enumerate(got)] == [True] * 4
    (event,) = [e for e in reader.events if e.kind == "resolution"]
    assert event.time == pytest.approx(1.0)
    assert "32x48 -> 64x32" in event.message
