"""docs/deploy.md: what it names is there, and what it shows renders."""

import os
import re
from pathlib import Path

import yaml

from tests.deploy.rendering import COMPOSITIONS, KUBERNETES, ROOT, find, kustomize, pods

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


def test_the_overlay_that_it_shows_renders(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    overlay = yaml.safe_load(block)
    (base,) = overlay["resources"]
    overlay["resources"] = [os.path.relpath(ROOT / base.removeprefix("../"), tmp_path)]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    objects = tuple(kustomize(tmp_path))
    assert find(objects, "PersistentVolumeClaim", "home")["spec"]["storageClassName"] == "shared"
    ours = {item["image"] for pod in pods(objects) for item in pod.containers if "alignkit" in item["image"]}
    assert ours == {f"registry.example/alignkit-{target}:0.1.0" for target in ("cpu", "cuda")}
