"""How stages share a Ray: nothing that stays reserves what the tasks beside it need."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from trainref_ray.config import ResourceSettings
from trainref_ray.distributed.session import (
    Cluster,
    gpu_share,
    is_mixed,
    missing_resources,
    plan_cluster,
    wanted_bundles,
)
from trainref_ray.distributed.trainer import worker_resources
from trainref_ray.errors import ResourceError


def packed(bins: Sequence[float], items: Sequence[float]) -> bool:
    """Whether the items, all of one size, find a place in the bins."""
    return not items or sum(int(bin_ / items[0] + 1e-9) for bin_ in bins) >= len(items)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "trials"),
    list(itertools.product(range(1, 9), range(3), range(1, 4), range(1, 5))),
)
def test_residents_and_a_task_of_every_trial_fit_together(cpus: int, gpus: int, workers: int, trials: int) -> None:
    settings = ResourceSettings(train_workers=workers)
    available = {"CPU": float(cpus), "GPU": float(gpus)}
    if gpus and (gpus < workers or (workers > 1 and gpus < workers * trials)):
        with pytest.raises(ResourceError, match=str(workers)):
            plan_cluster(settings, available, trials)
        return
    cluster = plan_cluster(settings, available, trials)
    tasks = trials if cpus >= 2 * trials else 1  # with less, tasks of trials take turns
    assert trials * workers * cluster.train_cpus + tasks <= cpus + 1e-9
    assert trials * cluster.embed_workers * cluster.embed_cpus + tasks <= cpus + 1e-9
    if cpus < 2 * trials:
        assert cluster.train_cpus == cluster.embed_cpus == 0
    assert any(worker_resources(cluster).values())
    assert bool(cluster.train_gpus) == bool(cluster.embed_gpus) == bool(gpus)
    if gpus:
        assert packed([1.0] * gpus, [cluster.train_gpus] * (trials * workers))
        assert packed([1.0] * gpus, [cluster.embed_gpus] * (trials * cluster.embed_workers))
    assert cluster.train_threads * workers * trials <= max(cpus, workers * trials)
    assert cluster.embed_threads * cluster.embed_workers * trials <= max(cpus, cluster.embed_workers * trials)


@pytest.mark.parametrize("embed_workers", range(1, 9))
@pytest.mark.parametrize("cpus", range(1, 9))
def test_any_number_of_embedding_actors_leaves_a_task_its_cpu(cpus: int, embed_workers: int) -> None:
    cluster = plan_cluster(ResourceSettings(embed_workers=embed_workers), {"CPU": cpus})
    assert cluster.embed_workers == embed_workers
    assert embed_workers * cluster.embed_cpus + 1 <= cpus


@pytest.mark.parametrize(("gpus", "users"), list(itertools.product(range(1, 5), range(1, 10))))
def test_shares_of_gpus_find_a_place_on_whole_gpus(gpus: int, users: int) -> None:
    share = gpu_share(gpus, users)
    assert packed([1.0] * gpus, [share] * users)
    assert share == 1 or users > gpus


def plan(nodes: list[dict[str, float]], trials: int = 1, **settings: object) -> Cluster:
    available = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return plan_cluster(ResourceSettings(**settings), available, trials, nodes)


@pytest.mark.parametrize(
    ("nodes", "settings", "train_threads", "embed_threads"),
    [
        ([{"CPU": 2}], {}, 2, 2),
        ([{"CPU": 4}], {}, 4, 2),  # two embed
        ([{"CPU": 4}], {"train_workers": 2}, 2, 2),
        ([{"CPU": 0}, {"CPU": 1}, {"CPU": 1}], {}, 1, 1),  # two CPUs, but on two nodes
        ([{"CPU": 16}, {"CPU": 64}], {}, 64, 1),  # 40 embed
        ([{"CPU": 16}] * 4, {"train_workers": 4}, 4, 1),  # all four may be put on one node
        ([{"CPU": 64}, {"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], {"train_workers": 2}, 8, 8),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 2}], {"train_workers": 2}, 4, 4),
        ([{"CPU": 8, "GPU": 1}], {"embed_workers": 4}, 8, 2),
    ],
)
def test_threads_are_those_of_one_node(
    nodes: list[dict[str, float]], settings: dict[str, object], train_threads: int, embed_threads: int
) -> None:
    cluster = plan(nodes, **settings)
    assert (cluster.train_threads, cluster.embed_threads) == (train_threads, embed_threads)


def test_trials_divide_cpus_threads_and_gpus() -> None:
    cluster = plan([{"CPU": 8}], trials=2)
    assert (cluster.train_cpus, cluster.train_threads) == (1, 4)
    assert (cluster.embed_workers, cluster.embed_cpus, cluster.embed_threads) == (2, 1, 2)
    sharing = plan([{"CPU": 8, "GPU": 1}], trials=2)
    assert (sharing.train_gpus, sharing.embed_workers, sharing.embed_gpus, sharing.train_threads) == (0.5, 1, 0.5, 4)
    with pytest.raises(ResourceError, match="2 trials with 2 training workers each need 4 GPUs and Ray has 2"):
        plan([{"CPU": 8, "GPU": 2}], trials=2, train_workers=2)


def test_one_embedding_actor_a_gpu_unless_more_are_asked_for() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}]
    assert (plan(nodes).embed_workers, plan(nodes).embed_gpus) == (2, 1)
    assert plan(nodes, embed_workers=3).embed_gpus == 0.5


def test_what_is_missing_and_what_is_asked_for() -> None:
    gpus = ResourceSettings(train_workers=2, gpu=True)
    assert missing_resources(ResourceSettings(), {"CPU": 1}) is None
    assert missing_resources(ResourceSettings(), {}) == "1 CPU (there are 0)"
    assert missing_resources(gpus, {"GPU": 1}) == "1 CPU (there are 0) and 2 GPUs (there are 1)"
    assert missing_resources(gpus, {"CPU": 1, "GPU": 2}) is None
    assert wanted_bundles(gpus) == [{"CPU": 1}] * 3 + [{"GPU": 1}] * 2
    assert wanted_bundles(ResourceSettings(), trials=2) == [{"CPU": 1}] * 4


def test_a_cluster_is_mixed_if_nodes_with_cpus_differ_in_gpus() -> None:
    cpu, gpu, head = {"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 0.0}
    assert is_mixed([head, cpu, gpu])
    assert not is_mixed([head, gpu, gpu])
    assert not is_mixed([cpu, cpu])
