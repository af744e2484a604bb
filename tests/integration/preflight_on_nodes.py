"""`doctor` on a Ray of several nodes on this machine, in a process of its own; `test_preflight.py` runs it.

python preflight_on_nodes.py NODES SETTINGS: two JSON texts, the arguments of each node (the first is the head's) and
the settings. Prints the checks as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from nodes import cluster_of_the_command_line

from trainref_ray import make_config
from trainref_ray.distributed.job import doctor


def main() -> None:
    with cluster_of_the_command_line():
        print(json.dumps([asdict(check) for check in doctor(make_config(json.loads(sys.argv[2])))]))


if __name__ == "__main__":
    main()
