"""The manifests, rendered by kubectl's own kustomize: valid, whole, and pointing at what is there.

RayCluster and ServiceMonitor are not Kubernetes' own, so no schema of theirs comes with the validator: their pod
templates are checked as Kubernetes' own, and the rest by the checks below.
"""

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.rendering import (
    KUBERNETES,
    OVERLAYS,
    Object,
    find,
    pods,
    program,
    rendered,
    run,
    with_components,
)
from tests.packaging.environment import pins

VERSIONS = ("1.34", "1.37")
"""The oldest and the newest Kubernetes that the manifests are checked for."""
COMPONENTS = ("backup", "outside", "prometheus-operator", "redis")
CUSTOM = ("RayCluster", "ServiceMonitor")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    objects = with_components(overlay, *COMPONENTS)
    for item in objects:
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)
    for pod in pods(objects):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": pod.name}}
        kubernetes_validate.validate(
            template | {"template": {"metadata": pod.metadata, "spec": pod.spec}}, version, strict=True
        )


def test_the_validator_refuses_a_misspelt_field() -> None:
    server = find(rendered("kind"), "Deployment", "server")
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(server | {"spec": {**server["spec"], "replica": 2}}, "1.37", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ray_cluster_is_one(overlay: str) -> None:
    cluster = find(rendered(overlay), "RayCluster", "ray")
    assert cluster["apiVersion"] == "ray.io/v1"
    assert cluster["spec"].keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    head, groups = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    assert head.keys() == {"serviceType", "rayStartParams", "template"}
    for group in groups:
        assert group.keys() == {
            "groupName",
            "replicas",
            "minReplicas",
            "maxReplicas",
            "rayStartParams",
            "template",
        }
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"], "nothing grows the cluster"
    for part in (head, *groups):
        assert all(isinstance(value, str) for value in part["rayStartParams"].values())
    assert {pins(target)["ray"] for target in ("cpu", "cuda")} == {cluster["spec"]["rayVersion"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_is_referred_to_is_there(overlay: str) -> None:
    objects = rendered(overlay)
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        volumes |= {claim: {} for claim in _claimed(objects, pod.name)}
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in names
            if configured := volume.get("configMap"):
                assert ("ConfigMap", configured["name"]) in names
        for container in pod.containers:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
            for source in container.get("envFrom", ()):
                assert ("ConfigMap", source["configMapRef"]["name"]) in names


def _claimed(objects: tuple[Object, ...], name: str) -> list[str]:
    sets = [item for item in objects if item["kind"] == "StatefulSet" and item["metadata"]["name"] == name]
    return [claim["metadata"]["name"] for item in sets for claim in item["spec"]["volumeClaimTemplates"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_their_pods_and_services_their_ports(overlay: str) -> None:
    objects = rendered(overlay)
    known = {pod.name: pod for pod in pods(objects)}
    for item in objects:
        if item["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            selector = item["spec"]["selector"]["matchLabels"].items()
            assert selector <= known[item["metadata"]["name"]].metadata["labels"].items()
        if item["kind"] == "Service":
            (pod,) = (
                pod
                for pod in known.values()
                if item["spec"]["selector"].items() <= pod.metadata["labels"].items()
            )
            ports = {port["name"] for container in pod.containers for port in container.get("ports", ())}
            assert {port["targetPort"] for port in item["spec"]["ports"]} <= ports


def test_there_are_two_servers_of_which_one_always_stays() -> None:
    objects = rendered("cuda")
    assert find(objects, "Deployment", "server")["spec"]["replicas"] == 2
    assert find(objects, "PodDisruptionBudget", "server")["spec"]["minAvailable"] == 1


def test_every_file_is_part_of_a_kustomization() -> None:
    used: set[Path] = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        used.add(path)
        for name in _named(yaml.safe_load(path.read_text())):
            found = (path.parent / name).resolve()
            assert found.exists(), f"{path} names {name}, which is not there"
            used.add(found)
    files = {path for path in KUBERNETES.rglob("*") if path.is_file()}
    assert files - used == {KUBERNETES / "make-secrets.sh"}
    assert {path.name for path in (KUBERNETES / "components").iterdir()} == set(COMPONENTS)


def _named(kustomization: dict[str, Any]) -> list[str]:
    generators = kustomization.get("configMapGenerator", ())
    return [
        *kustomization["resources"],
        *(patch["path"] for patch in kustomization.get("patches", ())),
        *(name for generator in generators for name in generator.get("envs", ())),
        *(name.rpartition("=")[2] for generator in generators for name in generator.get("files", ())),
    ]


def test_the_monitor_reads_the_servers_metrics() -> None:
    objects = with_components("kind", "prometheus-operator")
    monitor, service = find(objects, "ServiceMonitor", "server"), find(objects, "Service", "server")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"


def test_a_component_gives_the_servers_one_redis_to_count_in() -> None:
    objects, without = with_components("kind", "redis"), rendered("kind")
    (server,), (before,) = (
        find(found, "Deployment", "server")["spec"]["template"]["spec"]["containers"]
        for found in (objects, without)
    )
    reference = {"secretKeyRef": {"name": "alignkit-redis", "key": "url"}}
    added = [variable for variable in server["env"] if variable not in before["env"]]
    assert added == [{"name": "ALIGNKIT_RATE_LIMIT_STORAGE", "valueFrom": reference}]
    assert len(server["env"]) == len(before["env"]) + 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_component_gives_runs_their_credentials_and_nobody_else(overlay: str) -> None:
    objects = with_components(overlay, "outside")
    given = {
        pod.name: source["secretRef"]
        for pod in pods(objects)
        for container in pod.containers
        for source in container.get("envFrom", ())
        if "secretRef" in source
    }
    assert given == {"ray-training": {"name": "alignkit-outside", "optional": True}}


def test_the_secrets_that_are_referred_to_are_made_and_never_written(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\n{program("kubectl")} "$@" --dry-run=client --output=yaml\necho ---\n')
    kubectl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    made, again = (
        list(yaml.safe_load_all(run(str(KUBERNETES / "make-secrets.sh"), "somewhere", PATH=path)))
        for _ in range(2)
    )
    secrets = {item["metadata"]["name"]: item for item in made if item}
    assert {item["metadata"]["namespace"] for item in secrets.values()} == {"somewhere"}
    for overlay in OVERLAYS:
        assert not [item for item in rendered(overlay) if item["kind"] == "Secret"]
        for name, key in _secrets(overlay):
            assert secrets[name]["data"][key]
    assert made != again, "the password must be another each time"


def _secrets(overlay: str) -> set[tuple[str, str]]:
    """Names and keys of the secrets that the pods need."""
    wanted = set()
    for pod in pods(rendered(overlay)):
        for volume in pod.spec["volumes"]:
            if secret := volume.get("secret"):
                wanted |= {(secret["secretName"], item["key"]) for item in secret["items"]}
        for container in pod.containers:
            for variable in container.get("env", ()):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    wanted.add((reference["name"], reference["key"]))
    assert len(wanted) == 3
    return wanted
