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


def run(marked: str) -> dict[str, int]:
    """Run the tests of Triton's kernels with these marks; the number that passed for each op."""
    files = [file for op in OPS for file in Path(__file__).with_name(op).glob("test_*.py")]
    options = ("-v", "-p", "no:cacheprovider", "-k", "triton", "-m", marked)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, files)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return {op: len(re.findall(rf"kernels/{op}/.* PASSED", done.stdout)) for op in OPS}


@pytest.mark.timeout(900)
def test_the_same_tests_pass_in_triton() -> None:
    assert all(count > 14 for count in run("not slow").values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_so_do_all_combinations_of_their_options() -> None:
    assert all(count > 5 for count in run("slow").values())
