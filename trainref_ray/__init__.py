"""trainref_ray: curate large image sets with noisy labels from a tiny trusted reference set, on Ray.

    from trainref_ray import curate, curate_arrays, load_run, make_config, sweep

Neither Ray nor MLflow is loaded before `curate` or `sweep` is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainref_ray.arrays import Curation, curate_arrays
    from trainref_ray.config import Config, SweepSettings, make_config
    from trainref_ray.distributed.job import curate
    from trainref_ray.distributed.sweep import sweep
    from trainref_ray.results import CurationRun, CurationSweep, load_run, load_sweep

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Curation",
    "CurationRun",
    "CurationSweep",
    "SweepSettings",
    "curate",
    "curate_arrays",
    "load_run",
    "load_sweep",
    "make_config",
    "sweep",
]

_HOMES = {
    "Config": "trainref_ray.config",
    "Curation": "trainref_ray.arrays",
    "CurationRun": "trainref_ray.results",
    "CurationSweep": "trainref_ray.results",
    "SweepSettings": "trainref_ray.config",
    "curate": "trainref_ray.distributed.job",
    "curate_arrays": "trainref_ray.arrays",
    "load_run": "trainref_ray.results",
    "load_sweep": "trainref_ray.results",
    "make_config": "trainref_ray.config",
    "sweep": "trainref_ray.distributed.sweep",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trainref_ray' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
