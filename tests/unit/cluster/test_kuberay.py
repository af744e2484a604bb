"""The Kubernetes manifests as kustomize renders them: against the operator's definitions, and for what keeps them safe.

The definitions are strict JSON Schemas of `ray.io/v1` beside the shared data.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT, SHARED_DATA

KUBERAY = ROOT / "cluster" / "kuberay"
SCHEMAS = SHARED_DATA.parent / "kuberay"
RENDERED = ("overlays/small", "overlays/gpu", "interactive")

Manifest = dict[str, Any]


def kustomize() -> list[str]:
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    pytest.skip("neither kustomize nor kubectl is here to render the overlays")


@lru_cache
def render(overlay: str) -> tuple[Manifest, ...]:
    command = [*kustomize(), str(KUBERAY / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str) -> Manifest:
    (found,) = [manifest for manifest in render(overlay) if manifest["kind"] == kind]
    return copy.deepcopy(found)


def schema(kind: str) -> Manifest:
    path = SCHEMAS / f"{kind.lower()}-v1.schema.json"
    if not path.is_file():
        pytest.skip(f"no {path}; set TRAINREF_SHARED_DATA")
    return json.loads(path.read_text())


def problems(manifest: Manifest) -> list[str]:
    validator = jsonschema.Draft7Validator(schema(manifest["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def clusters(overlay: str) -> Iterator[Manifest]:
    """The cluster specifications of an overlay: the job's, and the interactive one's."""
    for manifest in render(overlay):
        if manifest["kind"] == "RayJob":
            yield manifest["spec"]["rayClusterSpec"]
        if manifest["kind"] == "RayCluster":
            yield manifest["spec"]


def pods(overlay: str) -> Iterator[Manifest]:
    """Every pod template of an overlay."""
    for cluster in clusters(overlay):
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster["workerGroupSpecs"])
    for manifest in render(overlay):
        if manifest["kind"] == "RayJob":
            yield manifest["spec"]["submitterPodTemplate"]


def nodes(overlay: str) -> Iterator[Manifest]:
    """The pod templates of Ray's nodes alone."""
    return (pod for pod in pods(overlay) if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "submitter")


@pytest.mark.parametrize("overlay", RENDERED)
def test_manifests_fit_the_definitions(overlay: str) -> None:
    checked = [manifest for manifest in render(overlay) if manifest["apiVersion"] == "ray.io/v1"]
    assert checked
    assert [problem for manifest in checked for problem in problems(manifest)] == []


def _rename(manifest: Manifest, path: list[Any], new: str) -> None:
    for part in path[:-1]:
        manifest = manifest[part]
    manifest[new] = manifest.pop(path[-1])


WRONG: dict[str, Callable[[Manifest], Any]] = {
    "a field of the job": lambda m: _rename(m["spec"], ["backoffLimit"], "backOffLimit"),
    "a field of the cluster": lambda m: _rename(
        m["spec"]["rayClusterSpec"], ["enableInTreeAutoscaling"], "enableInTreeAutoScaling"
    ),
    "a field deep in a pod": lambda m: _rename(
        m["spec"]["rayClusterSpec"],
        ["workerGroupSpecs", 1, "template", "spec", "containers", 0, "volumeMounts", 0, "mountPath"],
        "mountpath",
    ),
    "a text for a number": lambda m: m["spec"].update(ttlSecondsAfterFinished="600"),
    "a number for a text": lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(
        {"num-cpus": 0}
    ),
    "an unknown mode": lambda m: m["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
    "a group without a largest size": lambda m: m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_slip_is_caught(mistake: str) -> None:
    manifest = one("overlays/gpu", "RayJob")
    WRONG[mistake](manifest)
    assert len(problems(manifest)) >= 1


@pytest.mark.parametrize("overlay", RENDERED)
def test_a_job_ends_and_is_tried_again(overlay: str) -> None:
    spec = one(overlay, "RayJob")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1
    assert spec["activeDeadlineSeconds"] > 3600
    assert spec.get("suspend", False) is (overlay == "interactive")


@pytest.mark.parametrize("overlay", RENDERED)
def test_clusters_are_guarded_and_scale_from_zero(overlay: str) -> None:
    for cluster in clusters(overlay):
        assert cluster["rayVersion"] == version("ray")
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        assert set(groups) == ({"cpu"} if overlay == "overlays/small" else {"cpu", "gpu-spot"})
        assert all(group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"] for group in groups.values())


def test_gpu_workers_are_spot_and_enough_for_the_training() -> None:
    job = one("overlays/gpu", "RayJob")["spec"]
    (group,) = [g for g in job["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == "gpu-spot"]
    pod = group["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    values = {term["matchExpressions"][0]["key"]: term["matchExpressions"][0]["values"] for term in terms}
    assert values == {
        "cloud.google.com/gke-spot": ["true"],
        "eks.amazonaws.com/capacityType": ["SPOT"],
        "karpenter.sh/capacity-type": ["spot"],
    }
    assert "nvidia.com/gpu" in {toleration["key"] for toleration in pod["tolerations"]}
    assert f"--resources.train-workers {group['maxReplicas']} " in job["entrypoint"]
    assert f"--resources.embed-workers {group['maxReplicas']} " in job["entrypoint"]


def _gib(text: str) -> float:
    assert text.endswith("Gi"), text
    return float(text.removesuffix("Gi"))


@pytest.mark.parametrize("overlay", RENDERED)
def test_nodes_have_shared_memory_for_the_object_store(overlay: str) -> None:
    for pod in nodes(overlay):
        (container,) = pod["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == mounts["/dev/shm"]]
        assert volume["emptyDir"]["medium"] == "Memory"
        memory = _gib(container["resources"]["limits"]["memory"])
        assert 0.3 * memory <= _gib(volume["emptyDir"]["sizeLimit"]) <= 0.4 * memory  # Ray's store takes 30 %
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("overlay", RENDERED)
def test_pods_have_no_more_rights_than_they_need(overlay: str) -> None:
    for pod in pods(overlay):
        spec, labels = pod["spec"], pod["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "trainref"
        assert spec["restartPolicy"] == "Never"  # the autoscaler replaces nodes, a restarted one is a stranger to it
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        is_head = labels["app.kubernetes.io/component"] == "head"
        assert spec.get("automountServiceAccountToken", True) is is_head
    for cluster in clusters(overlay):
        assert cluster["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("overlay", RENDERED)
def test_data_is_reached_by_the_service_account_alone(overlay: str) -> None:
    account = one(overlay, "ServiceAccount")
    assert {"eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account"} <= set(account["metadata"]["annotations"])
    for pod in nodes(overlay):
        assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert not any(manifest["kind"] == "Secret" for manifest in render(overlay))
    assert "AWS_SECRET" not in str(render(overlay))


@pytest.mark.parametrize("overlay", RENDERED)
def test_the_network_policy_closes_every_node(overlay: str) -> None:
    policy = one(overlay, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    closed = policy["podSelector"]["matchLabels"]
    assert closed.pop("ray.io/is-ray-node") == "yes"  # the operator's own label
    assert closed == {"app.kubernetes.io/part-of": "trainref"}
    for pod in pods(overlay):
        assert closed.items() <= pod["metadata"]["labels"].items()
    between, dashboard = policy["ingress"]
    assert [source["podSelector"] for source in between["from"]] == [
        {"matchLabels": {**closed, "ray.io/is-ray-node": "yes"}}
    ]
    assert dashboard["ports"] == [{"port": 8265, "protocol": "TCP"}]
    submitter, operator = dashboard["from"]
    job = one(overlay, "RayJob")["spec"]
    labels = job["submitterPodTemplate"]["metadata"]["labels"]
    assert submitter["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(operator) == {"namespaceSelector", "podSelector"}


@pytest.mark.parametrize("overlay", RENDERED)
def test_everything_is_in_the_one_namespace(overlay: str) -> None:
    name = one(overlay, "Namespace")["metadata"]["name"]
    others = [manifest for manifest in render(overlay) if manifest["kind"] != "Namespace"]
    assert {manifest["metadata"]["namespace"] for manifest in others} == {name}


@pytest.mark.parametrize("overlay", RENDERED)
def test_every_image_is_one_that_the_dockerfile_makes(overlay: str) -> None:
    release = version("trainref-ray")
    images = {container["image"] for pod in pods(overlay) for container in pod["spec"]["containers"]}
    assert images <= {f"registry.example.com/trainref:{release}-{kind}" for kind in ("cpu", "gpu")}


def test_the_interactive_cluster_is_the_one_of_the_job() -> None:
    cluster = one("interactive", "RayCluster")["spec"]
    assert cluster == one("overlays/gpu", "RayJob")["spec"]["rayClusterSpec"]
    assert Path(KUBERAY / "interactive" / "raycluster.yaml").read_text().count("spec: {}") == 1
