"""Numbers behind the report's figures, on values worked out by hand, and thumbnails of real encoders."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from trainref_ray.evaluate.metrics import ReliabilityBins
from trainref_ray.report.content import ReportContent, Table
from trainref_ray.report.figures import best_rows, class_changes, decision_segments, reliability_bars, thumbnail


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def decode_uri(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_small_images_keep_their_pixels_and_grow_by_a_whole_factor() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20, 3), np.uint8)
    found = thumbnail(encode(pixels), 160)
    assert found is not None
    assert found.sharp
    assert (found.width, found.height) == (100, 140)  # 160 // 28 = 5 times
    assert found.uri.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(decode_uri(found.uri)), pixels)


def test_photographs_shrink_to_twice_the_box_and_never_beyond_256() -> None:
    photo = encode(np.full((400, 800, 3), 90, np.uint8), "JPEG")
    small = thumbnail(photo, 80)
    large = thumbnail(photo, 200)
    assert small is not None
    assert large is not None
    assert not small.sharp
    assert (small.width, small.height) == (80, 40)
    assert decode_uri(small.uri).size == (160, 80)
    assert (large.width, large.height) == (200, 100)
    assert decode_uri(large.uri).size == (256, 128)
    assert decode_uri(large.uri).format == "JPEG"


def test_an_image_between_is_not_enlarged() -> None:
    found = thumbnail(encode(np.zeros((65, 65, 3), np.uint8)), 160)
    assert found is not None
    assert (found.width, found.height, found.sharp) == (65, 65, False)


def test_extreme_shapes_keep_a_pixel() -> None:
    found = thumbnail(encode(np.zeros((1, 900, 3), np.uint8)), 80)
    assert found is not None
    assert found.height == 1


@pytest.mark.parametrize("data", [b"", b"no image", encode(np.zeros((9, 9, 3), np.uint8))[:40]])
def test_what_cannot_be_decoded_has_no_thumbnail(data: bytes) -> None:
    assert thumbnail(data, 80) is None


def test_segments_follow_each_other_and_include_decisions_without_samples() -> None:
    found = decision_segments({"samples": 10, "keep": 5, "relabel": 3, "ood": 2})
    assert [(part.name, part.count, part.start, part.share) for part in found] == [
        ("keep", 5, 0, 50),
        ("soften", 0, 50, 0),
        ("relabel", 3, 50, 30),
        ("ood", 2, 80, 20),
        ("quarantined", 0, 100, 0),
    ]
    assert decision_segments({"samples": 0, "keep": 0}) == []


def test_few_classes_keep_their_order_and_many_are_ranked_by_change() -> None:
    content = ReportContent(
        "t",
        "c",
        class_names=["a", "b", "c"],
        noisy_counts=[10, 20, 30],
        curated_counts=[11, 14.5, 33],
        true_counts=None,
    )
    every = class_changes(content)
    assert [(row.name, row.change, row.truth) for row in every.rows] == [
        ("a", 1, None),
        ("b", -5.5, None),
        ("c", 3, None),
    ]
    assert (every.hidden, every.largest) == (0, 33)
    some = class_changes(content, limit=2)
    assert [row.name for row in some.rows] == ["b", "c"]
    assert (some.hidden, some.hidden_change) == (1, 1)


def test_counts_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        class_changes(ReportContent("t", "c", class_names=["a", "b"], noisy_counts=[1, 2], curated_counts=[1]))


def test_reliability_bars_stand_in_the_bin_of_their_confidence() -> None:
    bins = ReliabilityBins(np.array([0.5, 10 / 15, 1.0]), np.array([0.4, 0.7, 1.0]), np.array([2, 4, 8]))
    bars = reliability_bars(bins)
    assert [round(bar.position * 15) for bar in bars] == [7, 9, 14]  # ]7/15, 8/15], ]9/15, 10/15], ]14/15, 1]
    assert [bar.height for bar in bars] == [0.25, 0.5, 1.0]
    assert [bar.overconfident for bar in bars] == [True, False, False]
    assert reliability_bars(ReliabilityBins(np.array([]), np.array([]), np.array([], np.int64))) == []


def test_best_values_follow_the_direction_and_equal_looks_share_the_place() -> None:
    table = Table(
        ["up", "down", "free", "single"],
        [("a", [0.9, 0.1, 1, None]), ("b", [0.9004, 0.2, 2, 5]), ("c", [None, 0.3, 3, None])],
        ["higher", "lower", None, "higher"],
    )
    shown = [["0.900", "0.100", "1", "–"], ["0.900", "0.200", "2", "5"], ["–", "0.300", "3", "–"]]
    assert best_rows(table, shown) == {(0, 0), (1, 0), (0, 1)}
