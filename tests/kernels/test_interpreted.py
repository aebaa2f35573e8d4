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


@pytest.mark.timeout(900)
def test_the_same_tests_pass_in_triton() -> None:
    files = [file for op in OPS for file in Path(__file__).with_name(op).glob("test_*.py")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
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
    for op in OPS:
        assert len(re.findall(rf"kernels/{op}/.* PASSED", done.stdout)) > 20, op
