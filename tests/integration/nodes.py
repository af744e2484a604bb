"""A Ray of several nodes on this machine, for scripts that run in a process of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster


@contextmanager
def cluster_of_the_command_line() -> Iterator[None]:
    """Connected to nodes whose arguments are the first word of the command line, a JSON list; the first is the head."""
    head, *others = json.loads(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    try:
        for node in others:
            cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len(ray.nodes()) == 1 + len(others)
        yield
        ray.shutdown()
    finally:
        cluster.shutdown()
