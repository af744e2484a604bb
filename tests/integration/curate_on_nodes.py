"""Curates on a Ray of several nodes on this machine, in a process of its own; `test_three_nodes.py` runs it.

python curate_on_nodes.py NODES SETTINGS: two JSON texts, the nodes' resources (the first is the head's) and the
settings. Prints the number of nodes on which actors of the curation ran.
"""

from __future__ import annotations

import json
import sys

import ray
from ray.cluster_utils import Cluster

from trainref_ray import curate, make_config


def main() -> None:
    head, *others = json.loads(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    try:
        for node in others:
            cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len(ray.nodes()) == 1 + len(others)
        curate(make_config(json.loads(sys.argv[2])))
        actors = ray._private.state.actors().values()
        print(len({actor["Address"]["NodeID"] for actor in actors} - {""}))
        ray.shutdown()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
