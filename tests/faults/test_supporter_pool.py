"""The supporter pool: exact over its shards and replicas, also after an actor has died."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from trainref_ray.distributed.supporter_pool import supporter_pool
from trainref_ray.errors import ResourceError
from trainref_ray.method.influence import unit_rows
from trainref_ray.retrieval.index import SupporterIndex
from trainref_ray.run import Storage

pytestmark = pytest.mark.ray
VECTORS = unit_rows(np.random.default_rng(0).normal(size=(300, 16)).astype(np.float16))
UIDS = np.arange(300) * 7


def files(storage: Storage, shards: int) -> list[tuple[str, str]]:
    return [
        SupporterIndex.build(VECTORS[part::shards], UIDS[part::shards]).write(storage, f"index-{part}.faiss")
        for part in range(shards)
    ]


def test_a_killed_actor_is_started_again_and_the_answer_is_whole(local_ray: None, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    expected = SupporterIndex.build(VECTORS, UIDS).search(VECTORS[:40], 9)
    with supporter_pool(storage, files(storage, 3), replicas=1, gpus=0.0, timeout=300.0) as pool:
        for _ in range(2):
            similarity, uids = pool.search(VECTORS[:40], 9)
            assert (uids == expected[1]).all()
            np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
            ray.kill(pool.shards[1][0], no_restart=False)


def test_a_shard_that_is_gone_is_an_error_and_no_partial_answer(local_ray: None, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with supporter_pool(storage, files(storage, 2), replicas=1, gpus=0.0, timeout=300.0) as pool:
        pool.search(VECTORS[:2], 3)
        ray.kill(pool.shards[0][0], no_restart=True)
        with pytest.raises(ResourceError, match="did not answer"):
            pool.search(VECTORS[:2], 3)
