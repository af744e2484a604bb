"""Decoding with limits, and squares."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainref_ray.data.images import ImageError, decode, stored_size, to_square

LIMIT = 10_000


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5, y * 7, (x + y) * 3], axis=2).astype(np.uint8))


def pixel(image: Image.Image, **options: object) -> tuple[int, ...]:
    decoded = decode(encode(image, **options), max_pixels=LIMIT).image  # type: ignore[arg-type]
    assert decoded.mode == "RGB"
    return decoded.getpixel((0, 0))  # type: ignore[return-value]


def test_lossless_pixels_are_unchanged() -> None:
    decoded = decode(encode(picture()), max_pixels=LIMIT)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(picture()))
    assert (decoded.width, decoded.height) == (40, 30)


def test_every_mode_becomes_rgb() -> None:
    assert pixel(Image.new("L", (4, 4), 77)) == (77, 77, 77)
    assert pixel(Image.new("1", (4, 4), 1)) == (255, 255, 255)
    assert pixel(Image.new("RGB", (4, 4), (1, 2, 3)).quantize(4)) == (1, 2, 3)
    assert pixel(Image.fromarray(np.full((4, 4), 0x8012, np.uint16))) == (0x80, 0x80, 0x80)
    assert pixel(Image.new("RGBA", (4, 4), (9, 9, 9, 0))) == (255, 255, 255)
    assert pixel(Image.new("RGBA", (4, 4), (9, 8, 7, 255))) == (9, 8, 7)
    assert pixel(Image.new("LA", (4, 4), (0, 0))) == (255, 255, 255)
    assert pixel(Image.new("P", (4, 4), 0), transparency=0) == (255, 255, 255)
    assert pixel(Image.new("CMYK", (4, 4)), kind="JPEG") == (255, 255, 255)
    assert pixel(Image.new("RGB", (4, 4), (200, 10, 10)), kind="WEBP", lossless=True) == (200, 10, 10)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = picture()
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(stored, exif=exif), max_pixels=LIMIT)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(upright))
    assert (decoded.width, decoded.height) == (40, 30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_camera_data_do_not_lose_the_image() -> None:
    data = encode(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff")
    assert decode(data, max_pixels=LIMIT).width == 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 0.97))
def test_cut_files_are_refused(kind: str, share: float) -> None:
    data = encode(picture(), kind)
    for at_least in (None, 1):
        with pytest.raises(ImageError):
            decode(data[: int(len(data) * share)], max_pixels=LIMIT, at_least=at_least)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 600))
def test_damage_gives_an_image_or_an_image_error(noise: bytes, kind: str, position: int) -> None:
    data = encode(picture(), kind)
    with contextlib.suppress(ImageError):
        decoded = decode(data[:position] + noise + data[position + len(noise) :], max_pixels=LIMIT)
        assert decoded.image.size == (decoded.width, decoded.height)


def test_size_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (200, 51)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(ImageError, match=r"200 x 51 pixels; the limit is 10,000"):
        decode(data, max_pixels=LIMIT)


def test_other_formats_are_refused() -> None:
    for kind in ("GIF", "BMP", "TIFF"):
        with pytest.raises(ImageError, match="JPEG, PNG, WEBP"):
            decode(encode(picture(), kind), max_pixels=LIMIT)


def test_a_jpeg_may_be_decoded_smaller_but_not_below_the_bound() -> None:
    data = encode(picture(160, 120).resize((160, 120)), "JPEG")
    shrunk = decode(data, max_pixels=10**6, at_least=30)
    assert (shrunk.width, shrunk.height) == (160, 120)
    assert shrunk.image.size == (40, 30)
    assert decode(data, max_pixels=10**6, at_least=500).image.size == (160, 120)


@pytest.mark.parametrize(("size", "stored"), [(8, 8), (32, 32), (95, 95), (96, 112), (224, 256), (384, 448)])
def test_stored_size(size: int, stored: int) -> None:
    assert stored_size(size) == stored


def test_square_is_the_centre() -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    square = to_square(Image.fromarray(wide), 8)
    assert square.dtype == np.uint8
    assert np.array_equal(square, wide[:, 4:12])
    assert np.array_equal(to_square(Image.fromarray(wide.transpose(1, 0, 2)), 8), wide[:, 4:12].transpose(1, 0, 2))


def test_downscaling_is_filtered_and_upscaling_fits() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    small = to_square(Image.fromarray(stripes), 8)
    assert small.shape == (8, 8, 3)
    assert np.abs(small.astype(int) - 127).max() <= 6  # without the filter it would be all 0 or all 254
    assert to_square(picture(3, 5), 224).shape == (256, 256, 3)
    assert to_square(Image.new("RGB", (1, 400)), 8).shape == (8, 8, 3)
