"""What a run settles for itself: `auto` when it starts, and half the micro-batch after it ran out of memory."""

import json
import sys
from pathlib import Path

import pytest
import torch

from alignkit import launch, train
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.settling import halve, settle
from tests.estimate.recipes import recipe

AUTO = {"batch_size": 8, "micro_batch_size": "auto", "gradient_checkpointing": "auto"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def given(method: str = "f_dpo", **training: object) -> Recipe:
    model = {"path": "smollm2-135m", "dtype": "float32"}
    return recipe({"type": method}, "smollm2-135m", model=model, training=AUTO | training)


def events(folder: RunFolder) -> list[dict[str, object]]:
    return [json.loads(line) for line in folder.events.read_text(encoding="utf-8").splitlines()]


def test_a_run_settles_auto_and_says_so(folder: RunFolder) -> None:
    found = settle(given(), folder, resume=False, main=True)
    assert isinstance(found.training.micro_batch_size, int)
    assert found.training.gradient_checkpointing is False
    assert "micro_batch_size" in str(events(folder)[0]["message"])
    assert Recipe.load(folder.recipe).training.micro_batch_size == found.training.micro_batch_size


def test_a_resumed_run_goes_on_with_what_was_settled(folder: RunFolder) -> None:
    first = settle(given(), folder, resume=False, main=True)
    kept = json.loads(folder.settled.read_text(encoding="utf-8"))
    kept["training"]["micro_batch_size"] = 1
    folder.settled.write_text(json.dumps(kept), encoding="utf-8")
    again = settle(given(), folder, resume=True, main=True)
    assert (first.training.micro_batch_size, again.training.micro_batch_size) != (
        1,
        first.training.micro_batch_size,
    )
    assert again.training.micro_batch_size == 1


def test_half_the_micro_batch_is_kept_once(folder: RunFolder) -> None:
    run = given(micro_batch_size=4)
    assert halve(run, folder) == (4, 2)
    assert settle(run, folder, resume=True, main=True).training.micro_batch_size == 2
    assert halve(run, folder) is None


def test_a_single_row_cannot_be_halved(folder: RunFolder) -> None:
    assert halve(given(micro_batch_size=1), folder) is None


def test_the_new_micro_batch_divides_the_rows_of_a_step(folder: RunFolder) -> None:
    assert halve(given(batch_size=9, micro_batch_size=9), folder) == (9, 3)


def test_a_run_out_of_memory_asks_to_start_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder.path / "given.yaml"
    path.write_text(
        given(micro_batch_size=4, gradient_checkpointing=False)
        .model_copy(update={"output_dir": str(folder.path / "run")})
        .to_yaml(),
        encoding="utf-8",
    )

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(train, "run", full)
    run = RunFolder(folder.path / "run")
    assert train.main([str(path)]) == launch.RETRY_EXIT
    assert run.read_result() is None
    assert "micro_batch_size 4: resuming with 2" in str(events(run)[-1]["message"])
    assert train.main([str(path), "--resume"]) == 1
    assert (run.read_result() or {})["error"]["code"] == "out_of_memory"


def test_the_launcher_starts_such_a_run_again_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(launch, "_launch", lambda: launch.RETRY_EXIT)
    monkeypatch.setattr(launch.os, "execv", lambda _path, command: started.append(command))
    monkeypatch.setattr(sys, "argv", ["launch", "-m", "alignkit.train", "recipe.yaml"])
    with pytest.raises(SystemExit):
        launch._main()
    assert started[0][3:] == ["-m", "alignkit.train", "recipe.yaml", "--resume"]
