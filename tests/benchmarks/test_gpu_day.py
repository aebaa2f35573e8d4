"""The steps of a day with a GPU, where there is none: each is skipped with its reason, or runs on a tiny model."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alignkit.methods import METHODS
from alignkit.recipe import Recipe
from benchmarks import gpu_day
from benchmarks.gpu_day import Day, Step


@pytest.fixture
def day(tmp_path: Path) -> Day:
    """A day on a machine without a GPU, whose model is never read."""
    found = Day(tmp_path, tiny=False, gpus=0)
    found.__dict__["model"] = tmp_path / "model"
    return found


def test_every_method_has_a_recipe_of_two_steps(day: Day) -> None:
    steps = list(gpu_day.methods(day))
    assert [step.name for step in steps] == [f"train {name}" for name in METHODS]
    for step, name in zip(steps, METHODS, strict=True):
        _, _, command, recipe, *overrides = step.command
        loaded = Recipe.load(Path(recipe), overrides)
        assert (command, loaded.method.type) == ("train", name)
        assert (loaded.training.max_steps, loaded.training.mixed_precision) == (2, "bf16")
        assert loaded.model.path == str(day.model)
        assert str(getattr(loaded.method, "teacher", None) or day.model).count("models/") == 0


@pytest.mark.parametrize(
    ("stage", "reason"), [("nccl", "needs 2 GPUs, found 0"), ("nf4", "needs 1 GPU, found 0"), ("vllm", "GPU")]
)
def test_what_the_machine_lacks_is_skipped_with_the_reason(
    day: Day, stage: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_day.importlib.util, "find_spec", lambda _: object())
    (step,) = gpu_day.STAGES[stage](day)
    assert reason in step.skipped
    assert gpu_day.run(day, step) == {"name": step.name, "skipped": step.skipped}


def test_a_package_that_is_not_installed_is_named(day: Day) -> None:
    assert day.missing("no_such_package", gpus=0) == "not installed: no_such_package"


def test_a_failed_step_shows_the_end_of_its_output(day: Day) -> None:
    row = gpu_day.run(day, Step("a step", ("-c", "print('before'); raise SystemExit('no such kernel')")))
    assert (row["exit"], row["output"]) == (1, ["before", "no such kernel"])
    assert (day.out / "a-step.log").read_text() == "before\nno such kernel\n"


def test_a_step_that_takes_too_long_is_stopped(day: Day) -> None:
    row = gpu_day.run(day, Step("long", ("-c", "import time; time.sleep(60)"), seconds=0.5))
    assert row["exit"] == "stopped after 0.5 s"


def test_what_a_stopped_step_has_started_is_stopped_too(day: Day) -> None:
    started = "import os; os.system('sleep 60 & echo $!; wait')"
    row = gpu_day.run(day, Step("parent", ("-S", "-E", "-c", started), seconds=2))
    assert row["exit"] == "stopped after 2 s"
    status = Path("/proc", row["output"][0], "stat")

    def runs() -> bool:
        return status.exists() and status.read_text().split()[2] != "Z"

    end = time.monotonic() + 10
    while runs() and time.monotonic() < end:
        time.sleep(0.01)
    assert not runs()


def test_a_failure_does_not_end_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible(_: Day) -> Any:
        """No step at all."""
        raise ModuleNotFoundError("No module named 'transformers'")
        yield

    def stage(_: Day) -> Any:
        """Two steps."""
        yield Step("bad", ("-c", "raise SystemExit(3)"))
        yield Step("good", ("-c", "pass"))

    monkeypatch.setattr(gpu_day, "STAGES", {"none": impossible, "one": stage})
    monkeypatch.setattr(sys, "argv", ["gpu_day", "--tiny", "--only", "none,one", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu_day.main()
    assert ended.value.code == 1
    rows = json.loads((tmp_path / "gpu-day.json").read_text())
    assert [(row["name"], row["exit"]) for row in rows] == [("none", 1), ("bad", 3), ("good", 0)]
    assert rows[0]["output"] == ["ModuleNotFoundError: No module named 'transformers'"]


@pytest.mark.slow
def test_two_steps_of_a_method_run_on_a_tiny_model(tmp_path: Path) -> None:
    day = Day(tmp_path, tiny=True, gpus=0)
    row = gpu_day.run(day, gpu_day.training(day, "train supervised", "supervised"))
    assert row["exit"] == 0, row["output"]
    assert (tmp_path / "runs" / "train-supervised" / "adapter" / "adapter_model.safetensors").exists()
