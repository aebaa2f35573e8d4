"""The compositions, as docker compose itself understands them (it refuses what its schema does not know)."""

import re
import subprocess

import pytest

from tests.deploy.rendering import COMPOSITIONS, DEPLOY, composed, program, run
from tests.deploy.test_security import READ, WRITTEN

PINNED = re.compile(r"alignkit-(cpu|cuda):\d[\w.-]+|[a-z0-9-]+:\d[\w.-]+@sha256:[0-9a-f]{64}")
"""Images of this tree by version, all others by digest too."""


@pytest.mark.parametrize("parts", COMPOSITIONS, ids="+".join)
def test_no_container_may_more_than_it_must(parts: tuple[str, ...]) -> None:
    composition = composed(parts)
    for name, service in composition["services"].items():
        assert PINNED.fullmatch(service["image"]), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["logging"]["options"] == {"max-size": "20m", "max-file": "5"}, name
        assert "privileged" not in service, name
        assert service.get("user", "10001").partition(":")[0] != "0", name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ())), name


@pytest.mark.parametrize("parts", COMPOSITIONS, ids="+".join)
def test_only_the_server_is_between_inside_and_outside(parts: tuple[str, ...]) -> None:
    composition = composed(parts)
    assert composition["networks"]["inside"]["internal"] is True
    networks = {name: set(service["networks"]) for name, service in composition["services"].items()}
    assert networks.pop("server") == {"inside", "outside"}
    assert networks.pop("model") == {"outside"}
    assert all(places == {"inside"} for places in networks.values())
    published = {name for name, service in composition["services"].items() if service.get("ports")}
    assert published == {"server"}


@pytest.mark.parametrize("parts", COMPOSITIONS, ids="+".join)
def test_what_runs_on_is_watched(parts: tuple[str, ...]) -> None:
    services = composed(parts)["services"]
    assert services["model"]["restart"] == "no"
    for name in services.keys() - {"model", "server"}:  # the server's is in its image
        assert services[name]["healthcheck"]["test"], name
        assert services[name]["restart"] == "unless-stopped", name
    assert services["server"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["server"]["depends_on"]["model"]["condition"] == "service_completed_successfully"
    assert services["server"]["hostname"] == "server", "its jobs wait for a server of the same name"


@pytest.mark.parametrize("parts", [one for one in COMPOSITIONS if "ray" in one], ids="+".join)
def test_ray_sees_of_the_home_what_runs_read_and_write(parts: tuple[str, ...]) -> None:
    services = composed(parts)["services"]
    homes = [volume for volume in services["ray"]["volumes"] if volume["source"] == "home"]
    assert {volume["volume"]["subpath"] for volume in homes} == READ | WRITTEN
    assert {v["volume"]["subpath"] for v in homes if not v.get("read_only")} == WRITTEN
    assert services["ray"]["depends_on"]["model"]["condition"] == "service_completed_successfully"
    made = services["model"]["command"][-1].partition(" && ")[0].split()
    assert set(made) >= {*READ, *WRITTEN} - {"adapters"}, "a part that is mounted must be there"
    assert any(one.startswith('"adapters/') for one in made)


def test_on_gpus_the_cuda_build_is_all_that_must_be_built() -> None:
    for parts in COMPOSITIONS:
        if "cuda" in parts:
            images = {service["image"] for service in composed(parts)["services"].values()}
            assert {image.partition(":")[0] for image in images} == {"alignkit-cuda", "postgres"}


def test_every_file_takes_part() -> None:
    files = {path.name for path in (DEPLOY / "compose").glob("*.yaml")}
    assert files == {"compose.yaml", *(f"compose.{part}.yaml" for parts in COMPOSITIONS for part in parts)}


def test_without_a_password_nothing_starts_and_with_the_example_filled_in_it_does() -> None:
    file = str(DEPLOY / "compose" / "compose.yaml")
    command = [program("docker-compose"), "-f", file, "--env-file", "/dev/null", "config", "--quiet"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, env={})
    assert refused.returncode != 0
    assert "env.example" in refused.stderr
    example = (DEPLOY / "compose" / "env.example").read_text()
    names = re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE)
    secrets = {name for name, value in names if not value}
    assert secrets == {"POSTGRES_PASSWORD", "RAY_TOKEN"}, "the example holds no secret's value"
    filled = {name: value or "x" for name, value in names}
    run(program("docker-compose"), "-f", file, "config", "--quiet", **filled)


def test_a_misspelt_key_would_be_refused() -> None:
    result = subprocess.run(
        [program("docker-compose"), "-f", "-", "config", "--quiet"],
        input="services: {server: {image: x:1, read_onyl: true}}",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "read_onyl" in result.stderr
