"""The benchmark of the service runs and measures everything it names."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quick_run_measures_everything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.server", "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for what in (
        "chat added",
        "16 streams through",
        "job creation",
        "process start",
        "SQLite",
        "Postgres",
        "upload",
    ):
        assert what in done.stdout
