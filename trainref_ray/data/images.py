"""Image files to square RGB pixels, with limits: three formats, a size known before it is decoded, whole files only."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
EXTENSIONS = ("jpg", "jpeg", "png", "webp")
PNG_END = b"IEND\xaeB`\x82"
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright; 1, and any other value, is upright."""


class ImageError(ValueError):
    """An image that cannot be used, and why."""


@dataclass(frozen=True)
class Decoded:
    """An upright RGB image, and the width and height of the file's image (upright too), pixels.

    The image is smaller than that if `decode` was allowed to shrink it.
    """

    image: Image.Image
    width: int
    height: int


def decode(data: bytes, *, max_pixels: int, at_least: int | None = None) -> Decoded:
    """Decode a JPEG, PNG or WebP file.

    Greyscale, palette, CMYK and 16-bit images become 8-bit RGB, transparent ones stand on white, EXIF orientation is
    applied; of an animation it is the first picture.

    Args:
        data: the file.
        max_pixels: largest width times height; checked before any pixel is decoded.
        at_least: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as no side falls below this.

    Raises:
        ImageError: another format, damaged, cut off, or too large.
    """
    try:
        return _decode(data, max_pixels, at_least)
    except ImageError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise any of a dozen kinds
        raise ImageError(f"cannot be decoded: {error}") from None


def _decode(data: bytes, max_pixels: int, at_least: int | None) -> Decoded:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(f"is no {', '.join(FORMATS)} image, or its start is damaged") from None
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(f"has {width} x {height} pixels; the limit is {max_pixels:,} (read.max_pixels)")
        if at_least is not None:
            image.draft(None, (min(at_least, width), min(at_least, height)))
        image.load()
        if image.format == "PNG" and PNG_END not in data:  # Pillow is content once it has all rows
            raise ImageError("is cut off: a PNG's last chunk is missing")
        turn = UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
    if turn is None:
        return Decoded(rgb, width, height)
    swapped = turn in (UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8])
    return Decoded(rgb.transpose(turn), height if swapped else width, width if swapped else height)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # camera data are often broken; the pixels are fine, and 1 is what viewers assume
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255, not scale
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # What transparent pixels hide is arbitrary; a page would show white there.
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def stored_size(image_size: int) -> int:
    """Side of the squares that are kept for a model of `image_size` pixels.

    Small images are padded before a random crop, so they are kept at `image_size`. From 96 px on a crop is taken out of
    a larger square, 8/7 of the side as in 256 to 224, rounded up to a multiple of 16.
    """
    return image_size if image_size < 96 else math.ceil(image_size * 8 / 7 / 16) * 16


def to_square(image: Image.Image, image_size: int) -> np.ndarray:
    """The centre square of an RGB image, scaled to `stored_size(image_size)`: uint8 [S', S', 3].

    Bicubic; smaller sizes are filtered over all pixels they stand for (antialias).
    """
    size = stored_size(image_size)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(square, np.uint8)
