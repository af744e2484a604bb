"""The image files of chosen samples of a finished run, for its pages."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainref_ray.config import make_config
from trainref_ray.data.samples import read_samples, sample_format
from trainref_ray.data.shards import open_shard
from trainref_ray.errors import ShardError
from trainref_ray.results import CurationRun
from trainref_ray.run import INVENTORY_FILE
from trainref_ray.schemas import SHARD_BITS


def read_image_files(run: CurationRun, uids: np.ndarray, *, test: bool = False) -> dict[int, bytes]:
    """Image files by uid, one shard after another, each up to the last sample wanted.

    Args:
        run: the run.
        uids: int64 [n], usable samples.
        test: whether they are of the test shards.

    Raises:
        ShardError: a shard is gone, or does not hold these images any more.
    """
    urls = {row["shard_id"]: row["url"] for row in run.tables.read_table(INVENTORY_FILE).to_pylist()}
    expected = sample_format(make_config(run.settings), run.class_names, image_size=None)
    samples = run.samples(test=test).select(["uid", "sha256"])
    samples = samples.filter(pc.is_in(samples["uid"], pa.array(uids)))
    digests = dict(zip(samples["uid"].to_pylist(), samples["sha256"].to_pylist(), strict=True))
    images: dict[int, bytes] = {}
    for shard in np.unique(uids >> SHARD_BITS).tolist():
        rows = frozenset((uids[uids >> SHARD_BITS == shard] - (shard << SHARD_BITS)).tolist())
        try:
            with open_shard(urls[shard]) as stream:
                for sample in read_samples(stream, expected, limit=max(rows) + 1, wanted=rows):
                    uid = (shard << SHARD_BITS) + sample.row
                    if sample.row in rows and sample.image_bytes is not None and sample.sha256 == digests[uid]:
                        images[uid] = sample.image_bytes
        except OSError as error:
            raise ShardError(f"{urls[shard]} cannot be read: {error}") from None
        if not images.keys() >= {(shard << SHARD_BITS) + row for row in rows}:
            raise ShardError(f"{urls[shard]} has changed since the run: start the curation again with the same --out")
    return images
