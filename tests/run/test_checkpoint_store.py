"""Copies of checkpoints, in a folder and in a real S3-compatible server where one is installed."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from alignkit.errors import AlignkitError
from alignkit.run.checkpoint_store import CheckpointStore, inside
from alignkit.run.checkpoints import ASIDE, damage, seal
from alignkit_server.engines.process import free_port

S3 = Path(sys.prefix) / "s3"
"""moto's server with what it needs, apart from the environment: it wants an older python-dateutil."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket."""
    if not S3.is_dir():
        pytest.skip("needs moto's server: make install puts it into .venv/s3")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        env={"PYTHONPATH": str(S3)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        httpx.put(f"http://127.0.0.1:{port}/checkpoints", trust_env=False).raise_for_status()
        yield f"s3://key:secret@checkpoints?region=us-east-1&endpoint_override=http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code)
    except httpx.HTTPError:
        return False


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        return inside(request.getfixturevalue("bucket"), tmp_path.name)
    return str(tmp_path / "store")


def checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    written = folder / ASIDE / f"checkpoint-{step}"
    (written / "shards").mkdir(parents=True)
    (written / "model.safetensors").write_bytes(bytes([step]) * 100_000)
    (written / "shards" / "optimizer.pt").write_bytes(b"state")
    seal(written, folder / written.name, {"best_step": best})
    return folder / written.name


def test_a_lost_checkpoint_comes_back_whole(url: str, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for step in (2, 10):
        checkpoint(here, step)
    store = CheckpointStore(url)
    assert store.sync(here) == ["checkpoint-2", "checkpoint-10"]
    assert store.sync(here) == []
    assert CheckpointStore(url).fetch(elsewhere) == "checkpoint-10"
    assert damage(elsewhere / "checkpoint-10") is None
    assert CheckpointStore(url).fetch(elsewhere) is None
    assert store.fetch(here) is None


def test_a_half_copied_checkpoint_is_passed_over_and_a_rotated_one_dropped(url: str, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    first = checkpoint(here, 2)
    checkpoint(here, 4)
    store = CheckpointStore(url)
    store.sync(here)
    store._files.delete_file(f"{store._root}/checkpoint-4/manifest.json")
    assert store.steps() == ["checkpoint-2"]
    with store._files.open_output_stream(f"{store._root}/checkpoint-2/model.safetensors") as file:
        file.write(b"damaged")
    assert store.fetch(elsewhere) is None
    first.rename(tmp_path / "rotated")
    assert store.sync(here) == ["checkpoint-4"]
    assert store.steps() == ["checkpoint-4"]


def test_a_url_that_names_no_storage_is_refused() -> None:
    with pytest.raises(
        AlignkitError, match=r"storage: expected a URL such as s3://bucket/folder, found nfs://host/a"
    ):
        CheckpointStore("nfs://host/a")


def test_a_name_goes_into_the_url_s_path() -> None:
    assert inside("s3://b/p?region=x", "job") == "s3://b/p/job?region=x"
    assert inside("/shared", "job") == "/shared/job"


def test_the_checkpoint_of_the_best_step_comes_back_with_the_newest(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for step in (2, 4, 6):
        checkpoint(here, step, best=4)
    store = CheckpointStore(str(tmp_path / "store"))
    store.sync(here)
    assert store.fetch(elsewhere) == "checkpoint-6"
    assert {path.name for path in elsewhere.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    assert damage(elsewhere / "checkpoint-4") is None
