"""No pod of the manifests may do more than it must: the restricted profile, and a little less."""

import re
from pathlib import Path

import pytest

from alignkit_server.settings import Settings
from tests.deploy.rendering import OVERLAYS, Pod, find, pods, rendered, with_components

PODS = [
    pytest.param(pod, id=f"{overlay}-{pod.name}")
    for overlay in OVERLAYS
    for pod in pods(with_components(overlay, "backup"))
]
PINNED = re.compile(r"alignkit-(cpu|cuda):\d[\w.-]+|[a-z0-9./-]+:\d[\w.-]+@sha256:[0-9a-f]{64}")
"""An image of this tree by version, any other by digest too."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_enforces_the_restricted_profile(overlay: str) -> None:
    labels = find(rendered(overlay), "Namespace", "alignkit")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_is_nobody_special(pod: Pod) -> None:
    security = pod.spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["runAsGroup"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod.spec["automountServiceAccountToken"] is False
    # Else a service named "alignkit" would put ALIGNKIT_PORT=tcp://… into the server's settings.
    assert pod.spec["enableServiceLinks"] is False
    assert not pod.spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert not [volume for volume in pod.spec["volumes"] if "hostPath" in volume]


@pytest.mark.parametrize("pod", PODS)
def test_a_container_writes_only_where_it_is_given_room(pod: Pod) -> None:
    for container in pod.containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for volume in pod.spec["volumes"]:
        assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize("pod", PODS)
def test_a_container_is_pinned_bounded_and_watched(pod: Pod) -> None:
    for container in pod.containers:
        assert PINNED.fullmatch(container["image"])
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][bound].keys()
    if pod.component in {"model", "backup"}:  # it ends by itself
        return
    for container in pod.spec["containers"]:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe].keys() & {"httpGet", "exec"}
        named = {port["name"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            port = container[probe].get("httpGet", {}).get("port")
            assert port is None or isinstance(port, int) or port in named


def test_the_engine_reads_the_home_and_is_not_its_owner() -> None:
    by_name = {pod.name: pod for pod in pods(rendered("cuda"))}
    engine, server = by_name["vllm"], by_name["server"]
    assert engine.spec["securityContext"]["runAsUser"] != server.spec["securityContext"]["runAsUser"]
    assert engine.spec["securityContext"]["runAsGroup"] == server.spec["securityContext"]["runAsGroup"]
    homes = [m for c in engine.containers for m in c["volumeMounts"] if m["name"] == "home"]
    assert homes
    assert all(mount["readOnly"] for mount in homes)


READ = {"files", "models", "adapters", "weights", "chat_templates"}
WRITTEN = {"jobs", "references", "tokens"}


@pytest.mark.parametrize("pod", [one for one in PODS if one.values[0].component == "ray"])
def test_a_training_node_sees_of_the_home_what_runs_read_and_write(pod: Pod) -> None:
    """Neither `first-key` and `secret-key`, nor databases, uploads or exports."""
    (training,) = pod.spec["containers"]
    homes = [mount for mount in training["volumeMounts"] if mount["name"] == "home"]
    assert {mount.get("subPath") for mount in homes} == READ | WRITTEN
    assert {mount["subPath"] for mount in homes if not mount.get("readOnly")} == WRITTEN
    assert all(mount["mountPath"] == f"/var/lib/alignkit/{mount['subPath']}" for mount in homes)
    (folders,) = pod.spec["initContainers"]
    (made,) = folders["args"]
    assert set(made.removeprefix("mkdir -p ").split()) == READ | WRITTEN
    settings = Settings(home=Path("/var/lib/alignkit"))
    assert {getattr(settings, name).name for name in dir(Settings) if name.endswith("_dir")} >= READ | WRITTEN
