"""Estimated needs against nodes: by hand, and what each shortage is called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trainref_ray.config import Config, make_config
from trainref_ray.distributed.needs import (
    ERROR,
    GIB,
    GPU_PROCESS_BYTES,
    OK,
    PROCESS_BYTES,
    WARNING,
    Check,
    Data,
    Models,
    Node,
    all_fit,
    check_all,
    disk_check,
    driver_check,
    estimate_models,
    index_bytes,
    residents_on,
    room,
    shard_task_bytes,
    training_bytes,
)
from trainref_ray.distributed.session import plan_cluster
from trainref_ray.models.memory import ModelMemory

CPU_NODE = Node("10.0.0.1", 4, 0, 16 * GIB, 4 * GIB)
GPU_NODE = Node("10.0.0.2", 8, 1, 32 * GIB, 8 * GIB, (24 * GIB,))
DATA = Data(samples=10_000, test_samples=1_000, largest_shard=1_000, classes=10)
SMALL = ModelMemory(width=256, parameters=10**6, state=8 * 10**6, peak=10**8)
MODELS = Models(training=SMALL, embedding=SMALL, train_batch=128, embed_batch=256)


def settings(**changes: Any) -> Config:
    return make_config({"data": ["x"], "reference_per_class": 10}, changes)


def checked(nodes: list[Node], config: Config, data: Data = DATA, models: Models = MODELS) -> dict[str, Check]:
    resources = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
    available = {name: sum(node[name] for node in resources) for name in ("CPU", "GPU")}
    cluster = plan_cluster(config.resources, available, 1, resources)
    return {check.name: check for check in check_all(config, cluster, nodes, data, models)}


def test_all_is_well_on_nodes_that_have_enough() -> None:
    for nodes in ([CPU_NODE], [GPU_NODE], [CPU_NODE, GPU_NODE]):
        assert {check.verdict for check in checked(nodes, settings()).values()} == {OK}
    assert "GPU memory, training" not in checked([CPU_NODE], settings())


def test_main_memory_by_hand() -> None:
    config = settings(image_size=32, resources={"train_workers": 2, "cache_bytes": 2**30})
    images = 2 * 5_000 * (32 * 32 * 3 + 4 * 10)
    assert training_bytes(config, DATA, MODELS, on_gpu=False) == PROCESS_BYTES + images + SMALL.peak
    assert training_bytes(config, DATA, MODELS, on_gpu=True) == PROCESS_BYTES + images + SMALL.state
    streamed = settings(image_size=32, resources={"train_workers": 1, "cache_bytes": 0})
    buffer = 2 * (8192 + 512) * (32 * 32 * 3 + 4 * 10)
    assert training_bytes(streamed, DATA, MODELS, on_gpu=True) == PROCESS_BYTES + buffer + SMALL.state
    # 10 classes of 10 references and 200 more: 2,100 members, twice while the files are read, in two actors
    assert index_bytes(settings(), DATA, 256) == 2 * 2_100 * 256 * 4 + 2 * PROCESS_BYTES
    # three checkpoints of the probe; evidence, vote and mean; the head's, as float16 and float32
    # and twice as float64 between (scaled, exponentials): 5.5 float32 ones, rounded up
    assert shard_task_bytes(settings(), DATA, 256) == PROCESS_BYTES + 1_000 * (14 * 256 + 4 * 10 * (3 + 3 + 6))


def test_memory_is_that_of_the_node_that_a_stage_runs_on() -> None:
    head = Node("10.0.0.9", 0, 0, 512 * GIB, GIB)
    huge = replace(DATA, samples=30_000_000)
    assert checked([head, CPU_NODE], settings(), huge)["memory, probe"].there == "16.0 GiB on 10.0.0.1"
    assert checked([CPU_NODE, GPU_NODE], settings(), huge)["memory, probe"].there == "32.0 GiB on 10.0.0.2"


def test_too_little_memory_is_a_warning_with_both_figures_and_advice() -> None:
    check = checked([CPU_NODE], settings(), replace(DATA, samples=10_000_000))["memory, probe"]
    assert check.verdict == WARNING
    assert check.needed == "about 19.6 GiB (about 10,000,000 x 256 embeddings)"  # 10^7 x 256 x 8 bytes and a process
    assert check.line == f"memory, probe: needed {check.needed}, there 16.0 GiB on 10.0.0.1; {check.advice}"
    large_shards = checked([CPU_NODE], settings(), replace(DATA, largest_shard=1_000_000))
    assert large_shards["memory, tables of a shard"].verdict == WARNING
    tiny_store = replace(CPU_NODE, object_store=2**20)
    assert checked([tiny_store], settings())["Ray's object store"].verdict == WARNING


@pytest.mark.parametrize(("share", "verdict"), [(0.99, OK), (1.01, WARNING), (1.49, WARNING), (1.51, ERROR)])
def test_a_batch_that_cannot_fit_is_an_error_and_one_that_may_not_a_warning(share: float, verdict: str) -> None:
    peak = int(share * 24 * GIB) - GPU_PROCESS_BYTES
    models = replace(MODELS, training=replace(SMALL, peak=peak))
    check = checked([GPU_NODE], settings(), models=models)["GPU memory, training"]
    assert check.verdict == verdict
    assert bool(check.advice) == (verdict != OK)
    assert "128 images a worker" in check.needed


def test_actors_that_share_a_gpu_need_it_together() -> None:
    models = replace(MODELS, embedding=replace(SMALL, peak=8 * GIB, state=GIB))

    def verdict(**resources: Any) -> str:
        return checked([GPU_NODE], settings(resources=resources), models=models)["GPU memory, embedding"].verdict

    assert verdict(embed_batch=256, embed_workers=2) == OK
    assert verdict(embed_batch=256, embed_workers=3) == WARNING
    assert verdict(embed_batch=256, embed_workers=5) == ERROR
    assert verdict(embed_workers=5) == OK  # the probe takes what fits beside the models


def test_residents_on_a_node() -> None:
    assert residents_on(CPU_NODE, 8, 1.0, 0.0) == 4
    assert residents_on(CPU_NODE, 2, 1.0, 0.0) == 2
    assert residents_on(GPU_NODE, 8, 1.0, 0.5) == 2
    assert residents_on(CPU_NODE, 3, 0.0, 0.0) == 3


def test_bundles_are_packed() -> None:
    two = [Node("a", 1, 0, 0, 0), Node("b", 1, 0, 0, 0)]
    half, task = {"CPU": 0.5}, {"CPU": 1.0}
    assert all_fit(two, [half, half, task])  # both halves on one node
    assert not all_fit(two, [half, half, half, task])
    assert not all_fit(two, [{"CPU": 2.0}])
    mixed = [Node("a", 1, 1, 0, 0), Node("b", 1, 0, 0, 0)]
    assert all_fit(mixed, [task, {"CPU": 1.0, "GPU": 1.0}])  # the task leaves the GPU's node alone
    assert not all_fit(mixed, [{"CPU": 1.0, "GPU": 1.0}, task, task])


def test_no_room_beside_training_is_an_error() -> None:
    config = settings(resources={"train_workers": 1})
    two = [Node("a", 1, 0, 0, 0), Node("b", 1, 0, 0, 0)]
    cluster = plan_cluster(config.resources, {"CPU": 2})
    assert room(config, cluster, two).verdict == OK
    full = room(config, replace(cluster, train_cpus=1.5), two)
    assert (full.verdict, full.name) == (ERROR, "room for training")
    assert full.needed == "1 x 1.5 CPU, and 1 CPU for a task beside them"
    greedy = room(config, replace(cluster, embed_workers=2), two)
    assert (greedy.verdict, greedy.name) == (ERROR, "room for embedding")


def test_driver_and_disk() -> None:
    assert driver_check(settings(), DATA, 256, 16 * GIB).verdict == OK
    assert driver_check(settings(), replace(DATA, samples=10**9), 256, 16 * GIB).verdict == WARNING
    assert disk_check(settings(), DATA, MODELS, 10 * GIB).verdict == OK
    short = disk_check(settings(), replace(DATA, samples=10**8), MODELS, 10 * GIB)
    assert (short.verdict, short.there) == (WARNING, "10.0 GiB free")


def test_models_are_counted_for_the_larger_training() -> None:
    config = settings(
        pretrain={"batch_size": 64}, finetune={"batch_size": 256}, resources={"train_workers": 2, "embed_batch": 32}
    )
    models = estimate_models(config, 10, bf16=False)
    assert (models.train_batch, models.embed_batch) == (128, 32)
    assert models.training.width == 256
    without = estimate_models(config.model_copy(update={"finetune_model": False}), 10, bf16=False)
    assert without.train_batch == 32


def test_a_contrastive_step_has_two_views_of_each_image() -> None:
    settings = {"image_size": 8, "finetune_model": False, "pretrain": {"batch_size": 32}}
    plain = estimate_models(make_config(settings), 10, bf16=False)
    paired = estimate_models(make_config(settings, {"pretrain": {"objective": "contrastive"}}), 10, bf16=False)
    assert (plain.train_batch, paired.train_batch) == (32, 64)
    assert paired.training.peak > 1.5 * plain.training.peak - plain.training.state
