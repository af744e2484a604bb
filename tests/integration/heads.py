"""A Ray head in a process group of its own: `ray stop` would end every Ray of the machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)
"""Ports of a head that have fixed defaults, which another Ray on this machine may hold."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all open at once so that none comes twice."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def clean_environment(home: Path) -> dict[str, str]:
    """The environment without settings of another Ray, and with a home of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return environment | {"HOME": str(home), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def running_head(home: Path, *options: str, autoscaling: dict[str, Any] | None = None) -> Iterator[str]:
    """Address of a head without a dashboard; it and all nodes it has started are ended with the context.

    Args:
        home: a folder of the test; the log goes there.
        options: of `ray start`.
        autoscaling: configuration of an autoscaler whose nodes are processes of this machine.
    """
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    address = f"127.0.0.1:{ports['port']}"
    variables = {}
    if autoscaling is not None:
        config = home / "autoscaling.yaml"
        provider = {"type": "fake_multinode", "gcs_address": address}
        config.write_text(json.dumps({**autoscaling, "provider": provider}))
        options = (*options, f"--autoscaling-config={config}")
        variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:  # for paths of sockets
        command = [str(BIN / "ray"), "start", "--head", "--block", f"--temp-dir={short}", "--node-ip-address=127.0.0.1"]
        with (home / "head.log").open("wb") as output:
            process = subprocess.Popen(
                [
                    *command,
                    "--include-dashboard=false",
                    *(f"--{name}={port}" for name, port in ports.items()),
                    *options,
                ],
                env=clean_environment(home) | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
