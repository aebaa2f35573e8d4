"""The soak runs, and what it says of growth is that of its samples."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import soak


def test_growth_is_that_after_the_warm_up() -> None:
    samples = [
        {"seconds": seconds} | {name: [max(100, seconds), 7.0] for name in soak.MEASURES}
        for seconds in range(0, 601, 10)
    ]
    found = soak.growth(samples, 600)
    assert set(found) == set(soak.MEASURES)
    assert all(values == [pytest.approx(3600), 0.0] for values in found.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_soak_does_every_kind_of_work(tmp_path: Path) -> None:
    options = ["--minutes", "0.5", "--every", "2", "--pause", "0.1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["failed"] == {}
    assert found["unended_jobs"] == 0
    assert set(found["done"]) == {"train", "chat", "stream", "upload", "upload_in_parts", "read"}
    assert len(found["samples"]) >= 5
    assert (tmp_path / "soak.png").stat().st_size > 10_000
