"""What deploy/ says to the server and to vLLM is what they understand, and the same as they do by themselves."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import BaseModel
from safetensors.numpy import save_file

from alignkit_server.engines import command
from alignkit_server.engines.command import vllm_command
from alignkit_server.engines.sizes import sequences_at_once
from alignkit_server.settings import Settings
from tests.deploy.rendering import (
    COMPOSITIONS,
    DEPLOY,
    OVERLAYS,
    Object,
    composed,
    environment,
    expand,
    find,
    rendered,
)

CLIENTS = {"ALIGNKIT_API_KEY", "ALIGNKIT_BASE_URL"}
"""Read by the command line's client, not by the server."""
MODEL = "smollm2-135m-instruct"
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def settable(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The variable of every setting."""
    for name, field in model.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        yield variable
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settable(field.annotation, f"{variable}__")


@pytest.mark.parametrize("place", [DEPLOY, DEPLOY.parent / "docs" / "deploy.md"])
def test_every_variable_is_a_setting(place: Path) -> None:
    files = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    named = {
        name for path in files for name in re.findall(r"\bALIGNKIT_[A-Z0-9_]*[A-Z0-9]\b", path.read_text())
    }
    assert named
    assert named <= set(settable(Settings, "ALIGNKIT_")) | CLIENTS


def test_a_misspelt_variable_would_be_found() -> None:
    assert "ALIGNKIT_ENGINE__DTYPE" in set(settable(Settings, "ALIGNKIT_"))
    assert "ALIGNKIT_ENGINE_DTYPE" not in set(settable(Settings, "ALIGNKIT_"))


def read_settings(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    """The server's settings with these variables and the image's."""
    image = dict(re.findall(r"(ALIGNKIT_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text()))
    for name, value in (image | variables).items():
        if name.startswith("ALIGNKIT_"):
            monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_clusters_server_reads_its_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = rendered(overlay)
    (server,) = find(objects, "Deployment", "server")["spec"]["template"]["spec"]["containers"]
    settings = read_settings(monkeypatch, environment(objects, server))
    homes = [mount["mountPath"] for mount in server["volumeMounts"] if mount["name"] == "home"]
    assert homes == [str(settings.home)]
    assert [port["containerPort"] for port in server["ports"]] == [settings.port]
    assert settings.host == "0.0.0.0"
    assert settings.engine.urls == {MODEL: "http://vllm:8000"}
    ray = find(objects, "RayCluster", "ray")["metadata"]["name"]
    assert settings.ray.address == f"http://{ray}-head-svc:8265"  # as KubeRay names it
    groups = find(objects, "RayCluster", "ray")["spec"]["workerGroupSpecs"]
    (group,) = groups
    worker = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    fit = int(worker["cpu"]) // settings.ray.cpus
    if gpus := settings.ray.gpus:
        fit = min(fit, int(worker["nvidia.com/gpu"]) // gpus)
    assert settings.training_slots == fit * group["replicas"], "no more nodes come than there are"


@pytest.mark.parametrize("parts", COMPOSITIONS, ids="+".join)
def test_the_composed_server_reads_its_settings(
    parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = composed(parts)["services"]
    settings = read_settings(monkeypatch, services["server"]["environment"])
    assert (settings.database_url or "").startswith("postgresql+psycopg://alignkit:")
    assert settings.engine.urls == ({MODEL: "http://vllm:8000"} if "vllm" in parts else {})
    assert (settings.executor == "ray") == ("ray" in parts)
    if "ray" in parts:
        assert settings.ray.address == "http://ray:8265"
        assert settings.ray.gpus <= int("ray.cuda" in parts)


def engines() -> Iterator[Any]:
    """Each vLLM of deploy/: its options and variables, and what the server is told of engines."""
    for overlay in OVERLAYS:
        objects = rendered(overlay)
        (server,) = find(objects, "Deployment", "server")["spec"]["template"]["spec"]["containers"]
        (engine,) = find(objects, "Deployment", "vllm")["spec"]["template"]["spec"]["containers"]
        variables = environment(objects, engine)
        arguments = [expand(argument, variables) for argument in engine["args"]]
        config = find(objects, "ConfigMap", "vllm")["data"]["vllm.yaml"]
        told = engine_variables(environment(objects, server))
        yield pytest.param(arguments, config, variables, engine["workingDir"], told, id=overlay)
    for parts in COMPOSITIONS:
        composition: Object = composed(parts)
        if "vllm" in parts:
            engine = composition["services"]["vllm"]
            config = (DEPLOY / "compose" / composition["configs"]["vllm"]["file"]).read_text()
            told = engine_variables(composition["services"]["server"]["environment"])
            arguments = [part for part in engine["command"] if part.startswith("--")]
            place = engine["working_dir"]
            yield pytest.param(
                arguments, config, engine["environment"], place, told, id="+".join(parts) or "plain"
            )


def engine_variables(environment: dict[str, Any]) -> dict[str, str]:
    """The server's settings of engines' options; not where its engines are."""
    names = ("ALIGNKIT_ENGINE__DTYPE", "ALIGNKIT_ENGINE__MAX_NUM_SEQS")
    return {name: str(environment[name]) for name in names if name in environment}


@pytest.mark.parametrize(("arguments", "config", "variables", "place", "told"), list(engines()))
def test_vllm_is_started_as_the_server_would_start_it(
    arguments: list[str],
    config: str,
    variables: dict[str, str],
    place: str,
    told: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm", reason="the server's own command needs vLLM")
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    assert given.pop("config").endswith("/vllm.yaml")
    assert (given.pop("host"), given.pop("port")) == ("0.0.0.0", "8000")
    found = given | {name: _plain(value) for name, value in yaml.safe_load(config).items()}

    gpu = found["dtype"] != "float32"
    monkeypatch.setattr(command, "runs_on_gpu", lambda: gpu)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = Settings(home=tmp_path)
    # the server, which sees no GPU, sends as many sequences at once as the engine decodes
    assert sequences_at_once(settings.engine, gpu=False) == int(found["max-num-seqs"])
    _add_llama(settings.models_dir / MODEL)
    # an engine of its own grows by a restart, which the server cannot ask of this one
    own = vllm_command(settings, MODEL, 8000, settings.engine.max_lora_rank)
    expected = _options(own.arguments[own.arguments.index("--model") :])
    expected.pop("host"), expected.pop("port")
    # the engine's own process computes on all cores only where it is told their number, as by the server
    expected.pop("distributed-executor-backend", None)
    if gpu:  # one engine alone, whose share depends on what else uses its GPU
        assert 0 < float(found.pop("gpu-memory-utilization")) <= 0.9
        expected.pop("gpu-memory-utilization")
    assert found == expected

    assert place == "/var/lib/alignkit/models"
    passed = {name: value for name, value in own.environment.items() if not name.startswith("OMP_")}
    passed.pop("VLLM_CACHE_ROOT", None)  # in the server's home, which this vLLM may only read
    adapters = passed.pop("VLLM_LORA_RESOLVER_CACHE_DIR").replace(str(tmp_path), "/var/lib/alignkit")
    assert passed.items() <= variables.items()
    assert variables.get("TORCH_COMPILE_DISABLE", "0") == str(int(not gpu))  # the CPU image has no compiler
    assert variables["VLLM_LORA_RESOLVER_CACHE_DIR"] == adapters


def _options(arguments: list[str]) -> dict[str, str]:
    """A command line as names and values; a flag's value is "true"."""
    options: dict[str, list[str]] = {}
    for argument in arguments:
        if argument.startswith("--"):
            options[argument.removeprefix("--")] = []
        else:
            list(options.values())[-1].append(argument)
    return {name: " ".join(sorted(values)) or "true" for name, values in options.items()}


def _plain(value: Any) -> str:
    return " ".join(sorted(value)) if isinstance(value, list) else str(value).lower().replace("'", "")


def _add_llama(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 8192}))
    names = (*(f"model.layers.0.x.{name}" for name in LLAMA), "model.embed_tokens")
    save_file({f"{name}.weight": np.zeros((1, 1)) for name in names}, folder / "model.safetensors")
