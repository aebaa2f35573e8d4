"""Triton's interpreter replaces the compiler for a whole process: the kernels' tests, run again in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.kernels.backend import interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="this is that process")
FILES = ["test_linear_logprob.py"]


@pytest.mark.parametrize("name", FILES)
def test_the_same_tests_pass_in_triton(name: str) -> None:
    file = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (
        "[triton"
        in subprocess.run(
            [*command, "--collect-only"], env=environment, capture_output=True, text=True, check=True
        ).stdout
    )
