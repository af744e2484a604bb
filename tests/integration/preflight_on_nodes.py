"""`doctor` on a Ray of several nodes on this machine, in a process of its own; `test_preflight.py` runs it.

python preflight_on_nodes.py NODES SETTINGS: two JSON texts, the arguments of each node (the first is the head's) and
the settings. Prints the checks as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import ray
from ray.cluster_utils import Cluster

from trainref_ray import make_config
from trainref_ray.distributed.job import doctor


def main() -> None:
    head, *others = json.loads(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    try:
        for node in others:
            cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        print(json.dumps([asdict(check) for check in doctor(make_config(json.loads(sys.argv[2])))]))
        ray.shutdown()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
