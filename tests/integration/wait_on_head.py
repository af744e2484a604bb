"""Connects to a head, waiting for resources as a curation does; `test_preflight.py` runs it in a process of its own.

python wait_on_head.py ADDRESS TIMEOUT: prints JSON with what was said, the CPUs planned for, and how many were left
some time after the request was withdrawn; or the error.
"""

from __future__ import annotations

import json
import sys
import time

import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.experimental import internal_kv

from trainref_ray.config import ResourceSettings
from trainref_ray.distributed.session import connect
from trainref_ray.errors import ResourceError

START_SECONDS = 60.0


def connect_when_it_answers(address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ray.init(address=address, log_to_driver=False)
            return
        except ConnectionError:
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.5)


def open_request() -> list[object]:
    """What the autoscaler is still asked for; while there is something, it keeps nodes that nobody uses."""
    return json.loads(internal_kv._internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]")


def main() -> None:
    address, timeout = sys.argv[1], float(sys.argv[2])
    connect_when_it_answers(address)
    said: list[str] = []
    started = time.monotonic()
    try:
        with connect(ResourceSettings(timeout=timeout), said.append) as cluster:
            print(json.dumps({"said": said, "cpus": cluster.cpus, "request": open_request()}))
    except ResourceError as error:
        print(json.dumps({"said": said, "error": str(error), "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
