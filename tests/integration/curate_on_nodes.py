"""Curates on a Ray of several nodes on this machine, in a process of its own; `test_three_nodes.py` runs it.

python curate_on_nodes.py NODES SETTINGS: two JSON texts, the nodes' resources (the first is the head's) and the
settings. Prints the number of nodes on which actors of the curation ran.
"""

from __future__ import annotations

import json
import sys

import ray
from nodes import cluster_of_the_command_line

from trainref_ray import curate, make_config


def main() -> None:
    with cluster_of_the_command_line():
        curate(make_config(json.loads(sys.argv[2])))
        actors = ray._private.state.actors().values()
        print(len({actor["Address"]["NodeID"] for actor in actors} - {""}))


if __name__ == "__main__":
    main()
