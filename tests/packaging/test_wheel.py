"""The built wheel, installed where nothing is but what it asks for: it is whole, and works without the tree."""

import os
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from alignkit import __version__
from tests.packaging.environment import closure, link, requirements
from tests.tree import ROOT

PACKAGES = {"alignkit": ROOT / "alignkit", "alignkit_server": ROOT / "server" / "alignkit_server"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, since a build leaves files in its tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("alignkit", "server"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder)], check=True)
    (built,) = folder.glob("*.whl")
    return built


class Environment:
    """A virtual environment with the wheel and what the named extras bring, and nothing else."""

    def __init__(self, folder: Path, wheel: Path, *extras: str) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        self.variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"} | {
            "ALIGNKIT_HOME": str(folder / "home"),
            "COLUMNS": "160",
        }
        # Elsewhere and without the tree's path: an editable install leaves its metadata there, and pip would take
        # the wheel for installed.
        python = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        subprocess.run(
            [*python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
            check=True,
            cwd=folder,
            env=self.variables,
        )
        (site,) = folder.glob("lib/python3*/site-packages")
        link(closure(requirements(*extras)), site)
        self.elsewhere = folder / "elsewhere"
        (self.elsewhere / "server").mkdir(parents=True)
        (self.elsewhere / "server" / "__init__.py").write_text("raise ImportError('the wrong server')\n")

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `alignkit` in a folder that has a package called `server` of its own."""
        return subprocess.run(
            [str(self.bin / "alignkit"), *arguments],
            cwd=self.elsewhere,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def serve(self) -> "subprocess.Popen[str]":
        """Start `alignkit serve` there, on a free port."""
        return subprocess.Popen(
            [str(self.bin / "python"), "-m", "alignkit", "serve", "--port", "0"],
            cwd=self.elsewhere,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    return Environment(tmp_path_factory.mktemp("library"), wheel)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[str]:
    """The address of the service, started from an environment with the extra `serve`."""
    process = Environment(tmp_path_factory.mktemp("service"), wheel, "serve").serve()
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "alignkit serves" in line or "error" in line), "")
        assert "alignkit serves http://" in line, line + process.stdout.read()
        yield line.split()[2].removesuffix("/v1")
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_the_wheel_holds_every_file_of_both_packages_and_no_other_package(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {
        f"{package}/{path.relative_to(folder)}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_library_alone_tells_its_version(library: Environment) -> None:
    done = library.run("--version")
    assert (done.returncode, done.stdout) == (0, f"alignkit {__version__}\n"), done.stderr


def test_the_library_alone_estimates_for_a_known_device(library: Environment) -> None:
    recipe = str(ROOT / "recipes" / "f_dpo" / "llama-3.1-8b.yaml")
    done = library.run("estimate", recipe, "--device", "h100", "--rows", "1000")
    assert done.returncode == 0, done.stderr
    assert "h100" in done.stdout.lower()


@pytest.mark.slow
def test_the_library_alone_imports_its_trainers(library: Environment) -> None:
    code = "from alignkit import FDPOTrainer, kernels, losses, methods, data, evaluate"
    done = subprocess.run(
        [str(library.bin / "python"), "-c", code],
        cwd=library.elsewhere,
        env=library.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_alone_says_what_the_service_needs(library: Environment) -> None:
    done = library.run("serve")
    assert done.returncode == 1
    assert "error: alignkit serve needs the package" in done.stderr
    assert "pip install 'alignkit[serve]'" in done.stderr


@pytest.mark.slow
def test_the_service_is_ready_with_the_extra(service: str) -> None:
    deadline = time.monotonic() + 60
    while (answer := httpx.get(f"{service}/readyz", trust_env=False)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    assert answer.json() == {"status": "ready"}
