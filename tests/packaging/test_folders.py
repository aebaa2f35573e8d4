"""alignkit as it is installed: beside a user's own packages, whatever they are called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit import __version__
from tests.tree import PYTHONPATH


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A project that has a package called `server` of its own."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise ImportError('the wrong server')\n")
    return tmp_path


def alignkit(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), PYTHONPATH]), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_is_shown_in_a_folder_with_a_server_package(elsewhere: Path) -> None:
    done = alignkit(elsewhere, "-m", "alignkit", "--version")
    assert (done.returncode, done.stdout) == (0, f"alignkit {__version__}\n"), done.stderr


def test_the_service_is_found_in_a_folder_with_a_server_package(elsewhere: Path) -> None:
    done = alignkit(elsewhere, "-m", "alignkit", "serve", "--help")
    assert done.returncode == 0, done.stderr
    assert "Start the service." in done.stdout


@pytest.mark.slow
def test_the_service_imports_nothing_called_server(elsewhere: Path) -> None:
    code = "import sys, alignkit_server.main; sys.exit('server' in sys.modules)"
    done = alignkit(elsewhere, "-c", code)
    assert done.returncode == 0, done.stderr
