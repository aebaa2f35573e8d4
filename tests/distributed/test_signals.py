"""SIGTERM, as schedulers send it before they take a machine away: the run saves and ends, and goes on later."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.distributed.launching import CONFIGS, Run, build_inputs, write_recipe

GRACE_SECONDS = 20
DEADLINE = 120.0
STEPS = 40


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("signals"))


def start(recipe: Path, config: str, *options: str) -> subprocess.Popen[str]:
    """`alignkit train` on as many processes as the configuration has."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "alignkit", "train", str(recipe)),
            f"--config-file={CONFIGS / config}.yaml",
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def terminate(process: subprocess.Popen[str], folder: Path, words: str) -> str:
    """Send SIGTERM to that one process when the run's events say so; it must end within the grace time."""
    deadline = time.monotonic() + DEADLINE
    events = RunFolder(folder).events
    while not (events.exists() and words in events.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, words
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=GRACE_SECONDS)[0]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["single", "ddp", "zero2"])
def test_it_saves_and_ends_and_goes_on(inputs: Path, config: str) -> None:
    schedule = {"max_steps": STEPS, "save_steps": 1000, "eval_steps": 1000}
    stopped, alone = (
        write_recipe(inputs, inputs / f"{config}-{name}", "f_dpo", kind="full", **schedule)
        for name in ("stopped", "alone")
    )
    folder = Path(Recipe.load(stopped).output_dir)
    output = terminate(start(stopped, config), folder, "Step 3/")
    result = RunFolder(folder).read_result()
    assert result is not None, output
    assert result["status"] == "paused", output
    assert 3 <= result["steps"] < STEPS
    for recipe, options in ((stopped, ["--resume"]), (alone, [])):
        process = start(recipe, config, *options)
        assert process.wait() == 0, process.communicate()[0]
    found, expected = Run(folder), Run(folder.with_name(f"{config}-alone"))
    assert found.losses() == pytest.approx(expected.losses(), rel=1e-6)
    for name, weight in expected.weights().items():
        assert (found.weights()[name] - weight).norm() <= 1e-6 * weight.norm(), name


@pytest.mark.slow
def test_an_evaluation_is_cut_short_and_made_when_the_run_goes_on(inputs: Path) -> None:
    """One that takes longer than anybody waits: of 1,000 rows, one at a time."""
    rows = (inputs / "pairs-validation.jsonl").read_text(encoding="utf-8")
    (inputs / "many.jsonl").write_text(rows * 200, encoding="utf-8")
    path = write_recipe(inputs, inputs / "evaluating", "f_dpo", max_steps=3, eval_batch_size=1)
    recipe = Recipe.load(path, [f"data.validation={inputs / 'many.jsonl'}", "collapse_guard=null"])
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    folder = Path(recipe.output_dir)
    terminate(start(path, "single"), folder, "Step 2/3")
    assert RunFolder(folder).read_result() == {"status": "paused", "steps": 2}
    validation = f"data.validation={inputs / 'pairs-validation.jsonl'}"
    process = start(path, "single", "--resume", validation)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    events = [json.loads(line) for line in RunFolder(folder).events.read_text(encoding="utf-8").splitlines()]
    evaluated = [event["data"]["step"] for event in events if "valid_loss" in event["data"]]
    assert evaluated == [2, 3]


@pytest.mark.slow
def test_before_the_first_step_it_ends_at_once(inputs: Path) -> None:
    path = write_recipe(inputs, inputs / "early", "f_dpo", eval_on_start=True)
    folder = Path(Recipe.load(path).output_dir)
    terminate(start(path, "single"), folder, "Training started")
    assert RunFolder(folder).read_result() == {"status": "paused", "steps": 0}
