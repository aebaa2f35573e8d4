"""Trackers for real: a tiny run, interrupted and resumed, and what the tracker holds of it afterwards."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from alignkit import train
from alignkit.errors import RecipeError
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.tracker_callbacks import tracker_callbacks
from alignkit.tracking import installed, without_secrets
from alignkit_server.engines.process import free_port
from tests.preference import write_pairs
from tests.server.support import wait_until
from tests.tiny import build_tiny_model

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tracked")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl", count=8)
    return path


def run(workplace: Path, output: Path, tracker: dict[str, Any], steps: int = 2, *flags: str) -> RunFolder:
    """Run or resume a recipe that reports to `tracker`."""
    assert train.main([str(recipe(workplace, output, tracker, steps)), *flags]) == 0
    return RunFolder(output)


def recipe(workplace: Path, output: Path, tracker: dict[str, Any], steps: int) -> Path:
    """A recipe's file."""
    values = {
        "model": {"path": str(workplace / "model")},
        "data": {"train": str(workplace / "train.jsonl"), "max_length": 64},
        "method": {"type": "f_dpo"},
        "training": {"max_steps": steps, "batch_size": 2, "save_steps": 1, "report_to": [tracker]},
        "collapse_guard": None,
        "output_dir": str(output),
    }
    path = output.with_suffix(".yaml")
    path.write_text(Recipe.parse(values).to_yaml())
    return path


def warnings(folder: RunFolder) -> list[str]:
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return [event["message"] for event in events if event["level"] == "warn"]


def test_tensorboard_holds_every_step_of_a_resumed_run_once(workplace: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = run(workplace, tmp_path / "run", {"type": "tensorboard"})
    run(workplace, tmp_path / "run", {"type": "tensorboard"}, 4, "--resume")
    assert len(list((folder.path / "tensorboard").glob("events.out.tfevents.*"))) == 2
    written = accumulator.EventAccumulator(str(folder.path / "tensorboard"))
    written.Reload()
    losses = {event.step: event.value for event in written.Scalars("train/loss")}
    events = [json.loads(line)["data"] for line in folder.events.read_text().splitlines()]
    reported = {data["step"]: data["train_loss"] for data in events if "train_loss" in data}
    assert losses == pytest.approx(reported, rel=1e-6)
    assert list(losses) == [1, 2, 3, 4]


@pytest.mark.skipif(not installed("wandb"), reason="wandb is not installed: the extra `trackers`")
def test_wandb_takes_the_run_with_its_names_and_no_key(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = {"type": "wandb", "project": "aligned", "name": "first", "entity": "team", "tags": ["mine"]}
    folder = run(workplace, tmp_path / "run", tracker)
    wandb.finish()
    (written,) = folder.path.glob("wandb/offline-run-*/*.wandb")
    deadline, records = time.monotonic() + 30, list[Any]()
    while "exit" not in {record.WhichOneof("record_type") for record in records}:
        assert time.monotonic() < deadline, "wandb's own process writes the file"
        records = wandb_records(written.read_bytes())
    begun = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (begun.project, begun.display_name, begun.entity) == ("aligned", "first", "team")
    assert begun.run_id == json.loads((folder.path / "trackers.json").read_text())["wandb"]
    assert {"mine", "alignkit/finetune", "alignkit/model", "alignkit/run"} == set(begun.tags)
    history = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    items = [{"/".join(i.nested_key) or i.key: i.value_json for i in row.item} for row in history]
    assert [row["train/global_step"] for row in items if "train/loss" in row] == ["1", "2"]
    assert warnings(folder) == []
    assert not any(KEY.encode() in path.read_bytes() for path in folder.path.rglob("*") if path.is_file())


def wandb_records(content: bytes) -> list[Any]:
    """The records of an offline run: LevelDB's log format, in blocks of 32 KiB behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    found, pending, at = [], b"", 7
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(pending))
            pending = b""
    return found


@pytest.mark.slow
@pytest.mark.skipif(not installed("trackio"), reason="trackio is not installed: the extra `trackers`")
def test_trackio_goes_on_with_the_run(workplace: Path, tmp_path: Path) -> None:
    """In processes of its own, as it looks for its folder once, when it is loaded."""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    read = "import json, trackio.sqlite_storage as s; print(json.dumps(s.SQLiteStorage.get_logs('aligned', 'first')))"
    tracker = {"type": "trackio", "project": "aligned", "name": "first"}
    folder, output = RunFolder(tmp_path / "run"), ""
    for command in (
        ["-m", "alignkit.train", recipe(workplace, folder.path, tracker, 2)],
        ["-m", "alignkit.train", folder.path.with_suffix(".yaml"), "--resume", "training.max_steps=4"],
        ["-c", read],
    ):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        output = done.stdout
    logs = json.loads(output.splitlines()[-1])
    assert [row["train/global_step"] for row in logs if "train/loss" in row] == [1, 2, 3, 4]
    assert warnings(folder) == []


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of a real MLflow server."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = ["--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or answers(f"{address}/health"), 120)
        assert process.poll() is None, (folder / "server.log").read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def mlflow_file(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'mlflow.db'}"


@pytest.mark.timeout(300)
@pytest.mark.skipif(not installed("mlflow"), reason="mlflow is not installed: the extra `trackers`")
@pytest.mark.parametrize("place", [mlflow_file, pytest.param(mlflow_server, marks=pytest.mark.slow)])
def test_mlflow_goes_on_with_the_run(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[Path], AbstractContextManager[str]],
) -> None:
    import mlflow

    with place(tmp_path) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        tracker = {"type": "mlflow", "project": "aligned", "name": "first"}
        folder = run(workplace, tmp_path / "run", tracker)
        mlflow.end_run()
        run(workplace, tmp_path / "run", tracker, 4, "--resume")
        mlflow.end_run()
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("aligned")
        (found,) = client.search_runs([experiment.experiment_id])
        assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
        steps = [point.step for point in client.get_metric_history(found.info.run_id, "loss")]
    assert steps == [1, 2, 3, 4]
    assert warnings(folder) == []


def test_a_tracker_that_fails_is_told_of_and_does_not_end_the_run(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    folder = run(workplace, tmp_path / "run", {"type": "tensorboard"})
    assert (folder.read_result() or {})["status"] == "succeeded"
    (warning,) = warnings(folder)
    assert warning.startswith(
        "The tracker tensorboard failed, and the run continues without it: FileExistsError"
    )


def test_a_tracker_that_is_not_installed_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.tracker_callbacks.installed", lambda name: False)
    values = {
        "model": {"path": "nowhere"},
        "data": {"train": "nowhere"},
        "method": {"type": "f_dpo"},
        "training": {"report_to": ["tensorboard"]},
        "output_dir": str(tmp_path),
    }
    with pytest.raises(RecipeError, match=r"training\.report_to\.0: tensorboard is not installed"):
        tracker_callbacks(Recipe.parse(values), RunFolder(tmp_path))


def test_secrets_are_taken_out_of_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    told = f"no access with {KEY} at https://me:secret@host:5000/api"
    assert without_secrets(told) == "no access with *** at https://***@host:5000/api"
