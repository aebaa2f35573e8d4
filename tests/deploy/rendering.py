"""What is in deploy/, as the tools that would apply it see it: kubectl's kustomize, and docker compose."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("cuda", "kind")
COMPOSITIONS = (
    (),
    ("vllm",),
    ("ray",),
    ("cuda",),
    ("vllm", "ray"),
    ("cuda", "vllm", "vllm.cuda", "ray", "ray.cuda"),
)
"""The files that docs/deploy.md lays over compose.yaml."""
COMPONENT = "app.kubernetes.io/component"
PASSWORD = "a-password"

Object = dict[str, Any]


def program(name: str) -> str:
    """A program of the dev extra."""
    return str(Path(sys.executable).with_name(name))


def run(*command: str, **environment: str) -> str:
    """What a command printed; it must succeed."""
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert result.returncode == 0, f"{command[0]}: {result.stderr or result.stdout}"
    return result.stdout


def kustomize(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    return [item for item in yaml.safe_load_all(run(program("kubectl"), "kustomize", str(folder))) if item]


@functools.cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """The objects of an overlay."""
    return tuple(kustomize(KUBERNETES / "overlays" / overlay))


def laid_over(overlay: str, *, components: tuple[str, ...] = (), **more: Any) -> tuple[Object, ...]:
    """The objects of somebody's own overlay, which lies over one of ours and takes some of our components."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()

        def relative(path: str) -> str:  # kustomize knows no other
            return os.path.relpath(KUBERNETES / path, place)

        own = {
            "resources": [relative(f"overlays/{overlay}")],
            "components": [relative(f"components/{name}") for name in components],
        }
        (place / "kustomization.yaml").write_text(yaml.safe_dump(own | more))
        return tuple(kustomize(place))


@functools.cache
def with_components(overlay: str, *names: str) -> tuple[Object, ...]:
    """The objects of an overlay with some of our components."""
    return laid_over(overlay, components=names)


@dataclass(frozen=True)
class Pod:
    """A pod's template, and what it is a template of."""

    name: str
    metadata: Object
    spec: Object

    @property
    def component(self) -> str:
        component: str = self.metadata["labels"][COMPONENT]
        return component

    @property
    def containers(self) -> list[Object]:
        """Those that start the pod too."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def pods(objects: tuple[Object, ...]) -> Iterator[Pod]:
    """Every pod that the objects would start."""
    for item in objects:
        for name, template in _templates(item):
            yield Pod(name, template["metadata"], template["spec"])


def _templates(item: Object) -> Iterator[tuple[str, Object]]:
    if item["kind"] in {"Deployment", "StatefulSet", "Job"}:
        yield item["metadata"]["name"], item["spec"]["template"]
    elif item["kind"] == "CronJob":
        yield item["metadata"]["name"], item["spec"]["jobTemplate"]["spec"]["template"]
    elif item["kind"] == "RayCluster":
        yield "ray-head", item["spec"]["headGroupSpec"]["template"]
        for group in item["spec"]["workerGroupSpecs"]:
            yield f"ray-{group['groupName']}", group["template"]


def find(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    """The object of that kind and name; a generated name's hash is no part of it."""
    (found,) = (
        item
        for item in objects
        if item["kind"] == kind
        and (item["metadata"]["name"] == name or item["metadata"]["name"].rpartition("-")[0] == name)
    )
    return found


def environment(objects: tuple[Object, ...], container: Object) -> dict[str, str]:
    """A container's variables, with what they refer to put in; those of secrets are `PASSWORD`."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        name = source["configMapRef"]["name"]
        (data,) = (
            item["data"]
            for item in objects
            if item["kind"] == "ConfigMap" and item["metadata"]["name"] == name
        )
        values |= data
    for variable in container.get("env", ()):
        values[variable["name"]] = expand(variable.get("value", PASSWORD), values)
    return values


def expand(text: str, values: dict[str, str]) -> str:
    """`text` with each $(NAME) replaced, as Kubernetes does."""
    for name, value in values.items():
        text = text.replace(f"$({name})", value)
    return text


@functools.cache
def composed(parts: tuple[str, ...]) -> Object:
    """compose.yaml with the named files over it, as docker compose understands it."""
    files = ["compose.yaml", *(f"compose.{part}.yaml" for part in parts)]
    options = [option for file in files for option in ("-f", str(DEPLOY / "compose" / file))]
    command = (program("docker-compose"), *options, "config", "--format", "json", "--no-path-resolution")
    composition: Object = json.loads(run(*command, POSTGRES_PASSWORD=PASSWORD, RAY_TOKEN=PASSWORD))
    return composition
