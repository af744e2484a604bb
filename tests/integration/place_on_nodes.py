"""Tasks of a stage on a node with a (fake) GPU and one without; `test_preflight.py` runs it in a process of its own.

Prints JSON: how many of four tasks ran on which.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import ray
from ray.cluster_utils import Cluster

from trainref_ray.config import ResourceSettings
from trainref_ray.distributed.session import connect


def where(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.3)  # so that none takes the place of another
    return {"node": [ray.get_runtime_context().get_node_id()]}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        # Ray Data reads in four tasks of their own, whose CPUs still count while it asks for those of the four behind
        cluster.add_node(num_cpus=8)
        cluster.add_node(num_cpus=4, num_gpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        kinds = {node["NodeID"]: "gpu" if node["Resources"].get("GPU") else "cpu" for node in ray.nodes()}
        with connect(ResourceSettings()):
            rows = ray.data.range(4, override_num_blocks=4).map_batches(where, batch_size=1).take_all()
        print(json.dumps(Counter(kinds[row["node"]] for row in rows)))
        ray.shutdown()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
