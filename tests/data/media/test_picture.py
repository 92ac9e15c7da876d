"""Single pictures in bytes are those that a file of them would show."""

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest

from jaxmem.data.media.media import open_media
from jaxmem.data.media.picture import decode_picture, encode_png, fitted

CODECS = {"mjpeg": "yuvj420p", "png": "rgb24", "libwebp": "yuv420p"}


def drawn(size=(30, 40)):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([3 * x, 5 * y, 2 * (x + y)], -1).astype(np.uint8)


def encoded(picture, codec):
    try:
        context = av.CodecContext.create(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this library has no {codec}")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base = CODECS[codec], Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=CODECS[codec])
    frame.pts = 0
    return b"".join(bytes(x) for x in [*context.encode(frame), *context.encode(None)])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [(30, 40), (48, 48), (7, 5)])
def test_a_picture_is_decoded_and_fitted_as_a_files_frames_are(codec, size):
    data = encoded(drawn(), codec)
    with open_media(io.BytesIO(data), size=size) as reader:
        frame = next(iter(reader)).frames[0]
    np.testing.assert_array_equal(decode_picture(data, size), frame)
    assert np.abs(frame.astype(int) - fitted(drawn(), size)).mean() < 12


def test_png_keeps_every_pixel():
    picture = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_picture(encode_png(picture), (9, 7)), picture)
    assert fitted(picture, (9, 7)) is picture


@pytest.mark.parametrize("codec", CODECS)
def test_pixels_are_counted_before_anything_is_decoded(codec):
    data = encoded(drawn(), codec)
    assert decode_picture(data, (3, 4), most=4000).shape == (3, 4, 3)
    with pytest.raises(ValueError, match="1,199 pixels"):
        decode_picture(data, (3, 4), most=1199)


def test_a_bomb_takes_no_memory():
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    with pytest.raises(ValueError, match="pixels"):
        decode_picture(data, (3, 4))


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(99)]
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ValueError, match=r"no JPEG, PNG or WebP|cannot be decoded|holds nothing"):
        decode_picture(data, (3, 4))
