"""docs/deploy.md: what it names is there, and what it shows renders."""

import os
import re
from pathlib import Path

import kubernetes_validate
import yaml

from tests.deploy.rendering import (
    COMPOSITIONS,
    KUBERNETES,
    ROOT,
    find,
    kustomize,
    laid_over,
    pods,
    rendered,
)

PAGE = (ROOT / "docs" / "deploy.md").read_text()


def test_every_file_that_it_names_is_there() -> None:
    for name in set(re.findall(r"\bdeploy/[\w./-]+\w", PAGE)):
        assert (ROOT / name).exists(), name
    for name in set(re.findall(r"`((?:base|overlays|components)[\w./-]*)`", PAGE)):
        assert (KUBERNETES / name).exists(), name
    for link in set(re.findall(r"\]\(([\w.]+)(?:#[\w-]+)?\)", PAGE)):
        assert (ROOT / "docs" / link).exists(), link


def test_every_composition_that_it_shows_is_tested() -> None:
    named = set(re.findall(r"compose\.([\w.]+)\.yaml", PAGE))
    assert named == {part for parts in COMPOSITIONS for part in parts}


OVERLAY, POLICY, NODES = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
"""What it shows, in its order."""


def test_the_overlay_that_it_shows_renders(tmp_path: Path) -> None:
    overlay = OVERLAY | {
        key: [os.path.relpath(ROOT / name.removeprefix("../"), tmp_path) for name in OVERLAY[key]]
        for key in ("resources", "components")
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    objects = tuple(kustomize(tmp_path))
    assert find(objects, "PersistentVolumeClaim", "home")["spec"]["storageClassName"] == "shared"
    assert find(objects, "NetworkPolicy", "ray-outside")
    ours = {item["image"] for pod in pods(objects) for item in pod.containers if "alignkit" in item["image"]}
    assert ours == {f"registry.example/alignkit-{target}:0.2.0" for target in ("cpu", "cuda")}


def test_the_policy_that_it_shows_is_valid_and_speaks_of_pods_that_are_there() -> None:
    kubernetes_validate.validate(POLICY, "1.37", strict=True)
    selected = POLICY["spec"]["podSelector"]["matchLabels"].items()
    found = {pod.name for pod in pods(rendered("cuda")) if selected <= pod.metadata["labels"].items()}
    assert found == {"ray-head", "ray-training"}


def test_more_nodes_are_had_as_it_says() -> None:
    objects = laid_over("cuda", **NODES)
    (group,) = find(objects, "RayCluster", "ray")["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] == 4
    slots, one = (
        int(find(found, "ConfigMap", "server")["data"]["ALIGNKIT_TRAINING_SLOTS"])
        for found in (objects, rendered("cuda"))
    )
    assert slots == 4 * one
