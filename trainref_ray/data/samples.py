"""Samples of a shard: image, given label and true label, or the reason why there is none. One row in, one row out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from trainref_ray.config import Config
from trainref_ray.data.images import EXTENSIONS, ImageError, decode, stored_size, to_square
from trainref_ray.data.tar_reader import RawSample, iter_raw_samples

LARGEST_LABEL = 2**31 - 1
"""Labels are int32 in the tables."""
DECODE_GAP = 2
"""A JPEG is decoded at no less than so many times the stored side, as Pillow's thumbnails are.

On 100 photographs of 400 to 888 px the squares of 32 px differ from those of a full decoding by 1.2 of 255 on average
(4.0 in the worst image), those of 64 px by 0.7; reading is 2.8 times as fast (1,480 for 520 images a second and core).
"""


@dataclass(frozen=True)
class SampleFormat:
    """Where labels are and what is accepted.

    Attributes:
        label_field: field of KEY.json with the given label; dots lead into nested objects. Else KEY.cls has it.
        truth_field: field with the true label, -1 = of no class; may be missing.
        classes: labels are 0 to `classes` - 1; None = any.
        class_names: a label may be one of these instead of its number.
        max_pixels: largest image, width times height.
        max_bytes: largest size of a sample's files.
        image_size: the model's image side; None = images are decoded to verify them, but no pixels are returned.
    """

    label_field: str = "label"
    truth_field: str = "true_label"
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    max_pixels: int = 64_000_000
    max_bytes: int = 64 * 2**20
    image_size: int | None = None


def sample_format(config: Config, class_names: Sequence[str] | None, *, image_size: int | None) -> SampleFormat:
    """How a run reads its samples.

    Args:
        config: the run's settings.
        class_names: C names, None = not known yet: any label from 0 is taken.
        image_size: side of the pixels wanted; None = none.
    """
    return SampleFormat(
        label_field=config.label_field,
        truth_field=config.truth_field,
        classes=len(class_names) if class_names else None,
        class_names=tuple(class_names or ()),
        max_pixels=config.read.max_pixels,
        max_bytes=config.read.max_bytes,
        image_size=image_size,
    )


@dataclass(frozen=True)
class Sample:
    """A row of a shard; what is not known is None.

    Attributes:
        row: number in the shard, from 0.
        key: name in the shard.
        label, true_label: given and true label.
        width, height: of the image when upright, pixels.
        sha256: of the image file, hexadecimal.
        pixels: uint8 [S', S', 3], S' = `stored_size` of the image size.
        image_bytes: the image file as stored.
        error: why the sample cannot be used; None if it can.
    """

    row: int
    key: str
    label: int | None = None
    true_label: int | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    pixels: np.ndarray | None = None
    image_bytes: bytes | None = None
    error: str | None = None


def read_samples(
    stream: BinaryIO, expected: SampleFormat, *, limit: int | None = None, wanted: frozenset[int] | None = None
) -> Iterator[Sample]:
    """The samples of a tar, in its order, bad ones with their `error` and all that is known of them.

    Args:
        stream: the tar, from its start.
        expected: where labels are and what is accepted.
        limit: stop after so many rows.
        wanted: decode these rows alone; the others are yielded with row and key only, so that rows are counted.

    Raises:
        OSError: the storage failed.
    """
    for row, raw in enumerate(iter_raw_samples(stream, max_bytes=expected.max_bytes)):
        yield _sample(row, raw, expected) if wanted is None or row in wanted else Sample(row, raw.key)
        if row + 1 == limit:
            return


def _sample(row: int, raw: RawSample, expected: SampleFormat) -> Sample:
    errors = [] if raw.error is None else [raw.error]
    known: dict[str, Any] = {}
    for part in (_read_image, _read_labels):
        try:
            part(raw.members, expected, known)
        except ValueError as error:
            if raw.error is None:  # else the parts may be missing for that very reason
                errors.append(str(error))
    return Sample(row, raw.key, **known, error="; ".join(errors) or None)


def _read_image(members: dict[str, bytes], expected: SampleFormat, known: dict[str, Any]) -> None:
    """Add size, digest, bytes and pixels to `known`; raises ValueError with the reason if there is no usable image."""
    found = [extension for extension in members if extension in EXTENSIONS]
    if not found:
        had = ", ".join(f".{extension}" for extension in members) or "none"
        raise ValueError(f"no image: one of .{', .'.join(EXTENSIONS)} is needed, the members are {had}")
    if len(found) > 1:
        raise ValueError(f"{len(found)} images: .{', .'.join(found)}")
    data = members[found[0]]
    known["image_bytes"] = data
    known["sha256"] = hashlib.sha256(data).hexdigest()
    size = None if expected.image_size is None else stored_size(expected.image_size)
    try:
        decoded = decode(data, max_pixels=expected.max_pixels, at_least=DECODE_GAP * size if size else 1)
    except ImageError as error:
        raise ValueError(f"image .{found[0]} {error}") from None
    known["width"], known["height"] = decoded.width, decoded.height
    if expected.image_size is not None:
        known["pixels"] = to_square(decoded.image, expected.image_size)


def _read_labels(members: dict[str, bytes], expected: SampleFormat, known: dict[str, Any]) -> None:
    """Add given and true label to `known`; raises ValueError with the reason if there is no usable label.

    A true label of a wrong kind is refused as well: left out silently, it would change what figures are computed on.
    """
    facts: Any = {}
    if "json" in members:
        try:
            facts = json.loads(members["json"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"member .json is no JSON: {error}") from None
        if not isinstance(facts, dict):
            raise ValueError(f"member .json is a {type(facts).__name__}, not an object")
    label = lookup(facts, expected.label_field)
    if label is None and "cls" in members:
        label = _text_label(members["cls"])
    if label is None:
        raise ValueError(f"no label: neither field {expected.label_field!r} in .json nor a member .cls")
    known["label"] = _check_label("label", label, expected, lowest=0)
    truth = lookup(facts, expected.truth_field)
    if truth is not None:
        known["true_label"] = _check_label("true label", truth, expected, lowest=-1)


def lookup(facts: Any, name: str) -> Any:
    """The value of a field of KEY.json, a nested one with dots; None where there is none."""
    for part in name.split("."):
        facts = facts.get(part) if isinstance(facts, dict) else None
    return facts


def _text_label(content: bytes) -> int | str:
    text = content[:200].decode("utf-8", "replace").strip()
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() else text


def _check_label(what: str, value: Any, expected: SampleFormat, *, lowest: int) -> int:
    if isinstance(value, str) and value in expected.class_names:
        return expected.class_names.index(value)
    if isinstance(value, bool) or not isinstance(value, int):
        also = " or a class name" if expected.class_names else ""
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        raise ValueError(f"{what} {shown} is a {type(value).__name__}, not an integer{also}")
    highest = LARGEST_LABEL if expected.classes is None else expected.classes - 1
    if not lowest <= value <= highest:
        raise ValueError(f"{what} {value} is outside {lowest} to {highest}")
    return value
