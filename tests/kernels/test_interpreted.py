"""Triton's interpreter replaces the compiler for a whole process: the kernels' tests, run again in one of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.kernels.backend import interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="this is that process")
OPS = ("linear_logprob", "linear_divergence", "pairwise_l1", "sinkhorn")


@pytest.mark.parametrize("op", OPS)
def test_the_same_tests_pass_in_triton(op: str) -> None:
    files = Path(__file__).with_name(op).glob("test_*.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "triton",
        *map(str, files),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 20
