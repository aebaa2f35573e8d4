"""The lower bounds of pyproject.toml: with the oldest versions that it allows, the library trains as ever."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.packaging.lowest import build
from tests.tree import PYTHONPATH, ROOT

TESTS = (
    "tests/test_upstream.py",
    "tests/methods/test_own_method.py",
    "tests/trainers/test_signatures.py",
)
"""Each hook is called in a two-step run of every trainer; a recipe trains, resumes and saves."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has them."""
    return build(tmp_path_factory.mktemp("lowest") / "venv")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", TESTS)
def test_the_lowest_versions_pass_the_tests_of_what_is_relied_on(python: Path, file: str) -> None:
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=900", file],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
