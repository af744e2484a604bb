"""The layers of the package: imports point down only, and Ray stays in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "trainref_ray"
LAYERS = {
    "cli": 1,
    "distributed": 2,
    "report": 2,
    "mlflow_model": 2,
    "arrays": 3,
    "results": 3,
    "trials": 3,
    "data": 3,
    "models": 3,
    "method": 3,
    "retrieval": 3,
    "training": 3,
    "baselines": 3,
    "evaluate": 3,
    "run": 4,
    "tracking": 4,
    "progress": 4,
    "stores": 5,
    "config": 5,
    "search_space": 5,
    "schemas": 5,
    "errors": 5,
    "version": 5,
    "files": 5,
}
SIBLINGS = {
    ("training", "models"),
    ("models", "data"),
    ("baselines", "models"),
    ("baselines", "training"),
    ("arrays", "method"),
    ("arrays", "models"),
    ("arrays", "retrieval"),
    ("results", "models"),
    ("results", "training"),
    ("trials", "evaluate"),
}
"""What packages of the third layer may use of each other: what the data flow needs, and no more."""
PLAIN = {"method", "retrieval", "models", "training", "evaluate"}
PLAIN_LIBRARIES = {"numpy", "torch", "torchvision", "safetensors", "faiss"}

MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = part(path)
    for name in imported(path):
        pieces = name.split(".")
        if pieces[0] == "ray":
            assert own == "distributed", f"{path} imports Ray"
        if pieces[0] == "mlflow":
            assert own in ("tracking", "mlflow_model"), f"{path} imports MLflow"
        if pieces[0] == "trainref_ray":
            other = pieces[1]
            down = LAYERS[other] > LAYERS[own]
            same = other == own or (own, other) in SIBLINGS or (LAYERS[own] != 3 and LAYERS[other] == LAYERS[own])
            assert down or same, f"{path} (layer {LAYERS[own]}) imports {name} (layer {LAYERS[other]})"
        elif own in PLAIN:
            known = pieces[0] in sys.stdlib_module_names or pieces[0] in PLAIN_LIBRARIES
            assert known, f"{path} imports {name}; allowed there: {sorted(PLAIN_LIBRARIES)}"


def test_every_part_has_a_layer() -> None:
    assert {part(path) for path in MODULES} <= set(LAYERS)


def test_importing_the_package_loads_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys, trainref_ray; trainref_ray.curate_arrays, trainref_ray.load_run, trainref_ray.make_config;"
        "assert not {'ray', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
