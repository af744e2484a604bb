"""What several tests share: one local Ray for the whole session, and a tiny curation of the embedded digits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainref_ray.results import CurationRun

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("TRAINREF_SHARED_DATA", ROOT.parent / "shared" / "data"))

TINY: dict[str, Any] = {
    "data": ["sample:digits"],
    "test_data": ["sample:digits"],
    "reference_per_class": 3,
    "image_size": 8,
    "rounds": 1,
    "final_curation": False,
    "limit": 500,
    "pretrain": {"epochs": 3, "flip": False, "crop": False, "keep_best": True},
    "probe": {"learning_rate": 0.05},
    "vote": {"k": 10, "near_duplicate": 0.9999},
    "ood": {"quantile": 0.8},
    "finetune": {"epochs": 2, "flip": False, "crop": False},
    "evaluate": {"bootstrap": 20},
    "report": {"gallery": 6},
    "tracking": {"enabled": False},
}
"""A curation that takes seconds once Ray runs: a third of the digits, few epochs, one curation. After so few epochs
embeddings of a class lie closer together than a trained model's, a hundred members are enough for ten supporters, not
for twenty, and some eight samples pass to set the cut of foreign images on: enough for a quantile of 0.8, not 0.95."""


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray of two CPUs for every test of the session."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample as shards: train-*.tar, test-*.tar, classes.json."""
    from trainref_ray.data.prepare import prepare_digits

    folder = tmp_path_factory.mktemp("digits")
    prepare_digits(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> CurationRun:
    """An undisturbed run of the tiny curation, for every test that only looks at it."""
    from trainref_ray import curate, make_config

    return curate(make_config(TINY, {"out": str(tmp_path_factory.mktemp("runs") / "tiny")}))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket on an S3 server of this module's own; address and credentials stand in the environment."""
    from s3_server import BUCKET, s3_server

    from trainref_ray.stores import _open_store

    with pytest.MonkeyPatch.context() as patch, s3_server() as environment:
        for name in os.environ:
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        _open_store.cache_clear()
        yield f"s3://{BUCKET}"
    _open_store.cache_clear()
