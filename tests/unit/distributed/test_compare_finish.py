"""The pages that a comparison leaves: those of this start alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainref_ray.config import Config
from trainref_ray.distributed.compare import _finish
from trainref_ray.distributed.compare_checks import Request
from trainref_ray.report.comparison import Row
from trainref_ray.run import Storage

SETUP = {
    "samples": 10,
    "references": 2,
    "held_out": 1,
    "curating": 2,
    "tests": 5,
    "classes": 2,
    "image_passes": 10,
}


def test_a_page_of_an_earlier_start_that_this_one_has_not_is_removed(tmp_path: Path) -> None:
    """Methods or test images may be fewer now."""
    storage = Storage(str(tmp_path))
    storage.write_bytes("report/confidence.html", b"old")
    seed: Any = SimpleNamespace(rows=[Row("knn", 0, {"accuracy": 0.5})], setup=SETUP, confidence=lambda: None)
    _finish(storage, Config(), Request(("knn",), (0,)), [seed])
    assert storage.names("report") == ["compare.html"]
    assert "confidence.html" not in storage.read_bytes("report/compare.html").decode()
