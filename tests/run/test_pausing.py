"""A run that is paused and resumed, as a real process under the executor: nothing is trained twice or lost."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import alignkit
from alignkit import train
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit_server.executors.local import LocalExecutor
from tests.preference import write_pairs
from tests.tiny import build_tiny_model

STEPS = 16
DEADLINE = 120.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("pausing")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl", 24)
    return Recipe.parse(
        {
            "model": {"path": str(path / "model")},
            "data": {"train": str(path / "train.jsonl"), "max_length": 128},
            "method": {"type": "f_dpo"},
            "training": {"max_steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "save_steps": 1000},
            "seed": 5,
            "output_dir": str(path / "job"),
        }
    )


def interpreter(folder: Path) -> str:
    """An interpreter that takes alignkit from where this test takes it, wherever that is installed."""
    program = folder / "python"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={Path(alignkit.__file__).parents[1]} exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def losses(folder: RunFolder) -> list[tuple[int, float]]:
    """(step, loss) in the order they were reported."""
    if not folder.events.exists():
        return []
    events: list[dict[str, Any]] = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return [
        (event["data"]["step"], event["data"]["train_loss"])
        for event in events
        if "train_loss" in event["data"]
    ]


class Terminated(TrainerCallback):
    """Sends this process SIGTERM in the middle of a step, as whoever pauses the run does."""

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_terminated_run_saves_its_step_and_resumes_to_the_same_losses(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = train.build_trainer

    def deadly(*arguments: Any) -> Any:
        trainer = build(*arguments)
        trainer.add_callback(Terminated())
        return trainer

    short = recipe.training.model_copy(update={"max_steps": 4})
    paused, whole = (tmp_path / "paused.yaml", tmp_path / "whole.yaml")
    for path in (paused, whole):
        update = {"output_dir": str(path.with_suffix("")), "training": short}
        path.write_text(recipe.model_copy(update=update).to_yaml())
    with monkeypatch.context() as patch:
        patch.setattr(train, "build_trainer", deadly)
        assert train.main([str(paused)]) == 0
    folder = RunFolder(tmp_path / "paused")
    assert folder.read_result() == {"status": "paused", "steps": 3}
    assert [path.name for path in folder.checkpoints.glob("checkpoint-*")] == ["checkpoint-3"]
    assert train.main([str(paused), "--resume"]) == 0
    assert train.main([str(whole)]) == 0
    assert losses(folder) == losses(RunFolder(tmp_path / "whole"))


@pytest.mark.slow
def test_a_paused_run_goes_on_where_it_stopped(recipe: Recipe, tmp_path: Path) -> None:
    folder = RunFolder(Path(recipe.output_dir))
    folder.path.mkdir()
    folder.recipe.write_text(recipe.to_yaml())
    executor = LocalExecutor(grace_seconds=10, python=interpreter(tmp_path))
    assert folder.last_checkpoint() is None
    executor.start(folder.path, resume=False)
    until(lambda: len(losses(folder)) >= 2, "two steps")
    executor.interrupt(folder.path)
    until(lambda: not executor.running(folder.path), "the run pauses")
    result = folder.read_result()
    assert result is not None, folder.log_tail()
    assert result["status"] == "paused"
    assert 2 <= result["steps"] < STEPS
    checkpoint = folder.last_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{result['steps']}"
    assert not folder.adapter.exists()
    executor.start(folder.path, resume=True)
    until(lambda: not executor.running(folder.path), "the run ends")
    done = folder.read_result()
    assert done is not None, folder.log_tail()
    assert (done["status"], done["steps"]) == ("succeeded", STEPS), folder.log_tail()
    assert [step for step, _ in losses(folder)] == list(range(1, STEPS + 1))
    assert folder.adapter.is_dir()
    assert not list(folder.path.glob("repeat-*"))
    undisturbed = recipe.model_copy(update={"output_dir": str(tmp_path / "undisturbed")})
    (tmp_path / "undisturbed.yaml").write_text(undisturbed.to_yaml())
    assert train.main([str(tmp_path / "undisturbed.yaml")]) == 0
    whole = RunFolder(tmp_path / "undisturbed").read_result() or {}
    assert done["trained_tokens"] == whole["trained_tokens"] > result["steps"]


def test_a_run_pauses_after_a_given_step_evaluated_and_goes_on_as_if_it_had_not(
    recipe: Recipe, tmp_path: Path
) -> None:
    def run(name: str, *options: str) -> RunFolder:
        held_out = recipe.data.model_copy(update={"validation": recipe.data.train})
        training = recipe.training.model_copy(update={"max_steps": 5})
        given = recipe.model_copy(
            update={"data": held_out, "training": training, "output_dir": str(tmp_path / name)}
        )
        path = tmp_path / f"{name}.yaml"
        path.write_text(given.to_yaml(), encoding="utf-8")
        assert train.main([str(path), *options]) == 0
        return RunFolder(tmp_path / name)

    paused = run("paused", "training.pause_at=2")
    assert paused.read_result() == {"status": "paused", "steps": 2}
    events = [json.loads(line)["data"] for line in paused.events.read_text().splitlines()]
    assert [data["step"] for data in events if "valid_loss" in data] == [2]
    assert (paused.checkpoints / "checkpoint-2").is_dir()
    resumed = run("paused", "--resume", "training.pause_at=null")
    assert losses(resumed) == losses(run("whole"))
    assert (resumed.read_result() or {})["status"] == "succeeded"
