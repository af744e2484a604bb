"""Real JPEGs in real shards: every one is read, and CIFAR's own superclasses are those written down here."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from trainref_ray.data.samples import SampleFormat, read_samples
from trainref_ray.data.shards import check_end, count_samples, open_shard, resolve_shards
from trainref_ray.data.sources.cifar import COARSE_100
from trainref_ray.data.tar_reader import iter_raw_samples

DATA = Path(os.environ.get("TRAINREF_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
pytestmark = pytest.mark.skipif(
    not (DATA / "clothing").is_dir(), reason=f"no real photographs in {DATA}; set TRAINREF_SHARED_DATA"
)


@pytest.mark.parametrize(
    ("name", "rows", "side", "stored"), [("clothing", 500, 224, 256), ("tinyimagenet", 2000, 32, 32)]
)
def test_photographs(name: str, rows: int, side: int, stored: int, record_property: pytest.RecordProperty) -> None:
    files = resolve_shards([str(DATA / name)])
    assert all(check_end(file.url, file.bytes) is None for file in files)
    assert sum(count_samples(file.url) for file in files) == rows
    classes = json.loads((DATA / name / "classes.json").read_text())
    expected = SampleFormat(classes=max(len(classes), 200), image_size=side)
    taken = min(rows, 300)
    start = time.perf_counter()
    with open_shard(files[0].url) as stream:
        samples = list(read_samples(stream, expected, limit=taken))
    record_property("images_per_second", taken / (time.perf_counter() - start))
    assert [sample.error for sample in samples] == [None] * taken
    assert all(sample.pixels is not None and sample.pixels.shape == (stored, stored, 3) for sample in samples)
    assert len({sample.sha256 for sample in samples}) == taken


def test_a_cut_real_shard_is_told(tmp_path: Path) -> None:
    data = (DATA / "clothing" / "clothing-00001.tar").read_bytes()
    whole = list(iter_raw_samples(open_shard(str(DATA / "clothing" / "clothing-00001.tar")), max_bytes=2**24))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(data[:2_000_000])
    with open_shard(str(cut)) as stream:
        *before, last = iter_raw_samples(stream, max_bytes=2**24)
    assert before == whole[: len(before)]
    assert f"after {len(before)} samples; sample {whole[len(before)].key!r} may be incomplete" in (last.error or "")
    assert "is cut off" in (check_end(str(cut), 2_000_000) or "")


def test_superclasses_of_cifar_100() -> None:
    with np.load(DATA / "cifar100" / "test.npz", allow_pickle=False) as test:
        fine, coarse = test["fine_label"], test["coarse_label"]
    assert np.array_equal(COARSE_100[fine], coarse)
