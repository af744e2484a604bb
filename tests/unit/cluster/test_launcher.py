"""The files for Ray's cluster launcher, against the schema and the checks that Ray ships."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from conftest import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = sorted((ROOT / "cluster" / "launcher").glob("*.yaml"))
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_launcher_files_fit_rays_schema(path: Path) -> None:
    jsonschema.validate(load(path), SCHEMA)
    validate_config(prepare_config(load(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("place", [(), ("available_node_types", "cpu"), ("docker",), ("auth",)])
def test_a_slip_is_caught(path: Path, place: tuple[str, ...]) -> None:
    config = deepcopy(load(path))
    part = config
    for key in place:
        part = part[key]
    part["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(config, SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_clusters_are_guarded_and_scale_from_zero(path: Path) -> None:
    config = load(path)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    workers = {name: kind for name, kind in types.items() if name != config["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) == config["max_workers"]
    assert workers["gpu_spot"]["resources"]["GPU"] == 1
    assert "spot" in json.dumps(workers["gpu_spot"]["node_config"]).lower()
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert config[commands][-1].startswith("RAY_AUTH_MODE=token ray start ")
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
