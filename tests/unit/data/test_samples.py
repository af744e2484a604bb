"""Rows of a shard: labels, images, and a reason for each that cannot be used."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainref_ray.data.samples import Sample, SampleFormat, read_samples
from trainref_ray.data.shards import write_tar

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read(samples: list[tuple[str, dict[str, bytes]]], **options: Any) -> list[Sample]:
    stream = io.BytesIO()
    write_tar(stream, samples)
    stream.seek(0)
    reading = {name: options.pop(name) for name in ("limit", "wanted") if name in options}
    return list(read_samples(stream, SampleFormat(**options), **reading))


def one(members: dict[str, Any], **options: Any) -> Sample:
    content = {k: v if isinstance(v, bytes) else json.dumps(v).encode() for k, v in members.items()}
    (sample,) = read([("k", content)], **options)
    return sample


def test_a_good_sample() -> None:
    sample = one({"png": png(), "json": {"label": 3, "true_label": -1}}, classes=4, image_size=8)
    assert (sample.row, sample.key, sample.label, sample.true_label) == (0, "k", 3, -1)
    assert (sample.width, sample.height, sample.error) == (12, 10, None)
    assert sample.sha256 == hashlib.sha256(png()).hexdigest()
    assert sample.image_bytes == png()
    assert sample.pixels is not None
    assert sample.pixels.shape == (8, 8, 3)


def test_without_image_size_pixels_are_verified_only() -> None:
    assert one({"png": png(), "cls": b"0"}).pixels is None
    assert "cannot be decoded" in (one({"png": png()[:-200], "cls": b"0"}).error or "")


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"json": {"label": 0}}, 0),
        ({"cls": b"2\n"}, 2),
        ({"json": {"caption": "x"}, "cls": b"1"}, 1),
        ({"json": {"label": 1}, "cls": b"2"}, 1),
        ({"json": {"label": "dog"}}, 2),
        ({"cls": b"cat"}, 1),
    ],
)
def test_where_labels_come_from(members: dict[str, Any], label: int) -> None:
    sample = one({"png": png(), **members}, classes=3, class_names=("ant", "cat", "dog"))
    assert (sample.label, sample.true_label, sample.error) == (label, None, None)


def test_fields_may_be_nested() -> None:
    facts = {"meta": {"given": 1, "deep": {"truth": 2}}}
    sample = one({"png": png(), "json": facts}, label_field="meta.given", truth_field="meta.deep.truth")
    assert (sample.label, sample.true_label) == (1, 2)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"json": {"label": 0}}, "no image: one of .jpg, .jpeg, .png, .webp is needed, the members are .json"),
        ({"png": b"x", "jpg": b"x", "cls": b"0"}, "2 images: .jpg, .png"),
        ({"png": b"junk", "cls": b"0"}, "image .png is no JPEG, PNG, WEBP image"),
        ({"png": png()}, "no label: neither field 'label' in .json nor a member .cls"),
        ({"png": png(), "json": {"label": None}}, "no label"),
        ({"png": png(), "json": {"label": True}}, "label True is a bool, not an integer"),
        ({"png": png(), "json": {"label": 1.0}}, "label 1.0 is a float, not an integer"),
        ({"png": png(), "json": {"label": "1"}}, "label '1' is a str, not an integer"),
        ({"png": png(), "json": {"label": [1]}}, "label [1] is a list"),
        ({"png": png(), "json": {"label": 3}}, "label 3 is outside 0 to 2"),
        ({"png": png(), "json": {"label": -1}}, "label -1 is outside 0 to 2"),
        ({"png": png(), "cls": b"two"}, "label 'two' is a str"),
        ({"png": png(), "json": b"{"}, "member .json is no JSON"),
        ({"png": png(), "json": b"\xff\xfe"}, "member .json is no JSON"),
        ({"png": png(), "json": b"[" * 100_000}, "member .json is no JSON"),
        ({"png": png(), "json": [1]}, "member .json is a list, not an object"),
        ({"png": png(), "json": {"label": 1, "true_label": 3}}, "true label 3 is outside -1 to 2"),
        ({"png": png(), "json": {"label": 1, "true_label": "x"}}, "true label 'x' is a str"),
    ],
)
def test_reasons(members: dict[str, Any], reason: str) -> None:
    sample = one(members, classes=3)
    assert reason in (sample.error or "")
    assert sample.pixels is None


def test_labels_that_no_table_could_hold() -> None:
    assert "outside 0 to 2147483647" in (one({"png": png(), "cls": b"2147483648"}).error or "")


def test_an_error_row_keeps_what_is_known() -> None:
    broken = png()[:-200]
    sample = one({"png": broken, "json": {"label": 1}})
    assert (sample.label, sample.sha256) == (1, hashlib.sha256(broken).hexdigest())
    assert (sample.width, sample.pixels) == (None, None)
    sample = one({"png": png(), "json": {"label": "x"}})
    assert (sample.label, sample.width) == (None, 12)
    both = one({"png": broken, "json": {"label": "x"}})
    assert "cannot be decoded" in (both.error or "")
    assert "label 'x'" in (both.error or "")


def test_limits_are_passed_on() -> None:
    assert "12 x 10 pixels" in (one({"png": png(), "cls": b"0"}, max_pixels=100).error or "")
    sample = one({"png": png(), "cls": b"1"}, max_bytes=50)
    assert (sample.label, "bytes" in (sample.error or ""), "no image" in (sample.error or "")) == (1, True, False)


def test_one_row_in_one_row_out_in_order_and_only_wanted_rows_are_decoded() -> None:
    shards = [(f"k{n}", {"png": png() if n % 2 else b"junk", "cls": b"0"}) for n in range(6)]
    rows = read(shards)
    assert [(sample.row, sample.key, sample.error is None) for sample in rows] == [
        (n, f"k{n}", bool(n % 2)) for n in range(6)
    ]
    some = read(shards, wanted=frozenset({3, 4}), limit=5)
    assert [sample.sha256 is not None for sample in some] == [False, False, False, True, True]
    assert [sample.key for sample in some] == [f"k{n}" for n in range(5)]
