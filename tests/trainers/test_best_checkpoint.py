"""Runs that keep their best step or stop early: what is published and said, and that a resume changes nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignkit import train
from alignkit.errors import RecipeError
from alignkit.evaluate_run import evaluate_run
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.preference import write_pairs
from tests.tiny import build_tiny_model

STEPS = 6


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("best")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=4, start=100)
    rows = [json.loads(line) for line in (path / "validation.jsonl").read_text().splitlines()]
    first = rows[0]  # against the training data, so that a large margin costs more than it gains
    first["preferred_output"], first["non_preferred_output"] = (
        first["non_preferred_output"],
        first["preferred_output"],
    )
    (path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(workplace: Path, output: Path, **sections: Any) -> Recipe:
    """Six steps at a rate that overshoots, each evaluated."""
    training = {"max_steps": STEPS, "batch_size": 4, "learning_rate": 0.02, "eval_steps": 1, "save_steps": 2}
    return Recipe.parse(
        {
            "model": {"path": str(workplace / "model")},
            "data": {
                "train": str(workplace / "train.jsonl"),
                "validation": str(workplace / "validation.jsonl"),
                "max_length": 96,
            },
            "method": {"type": "f_dpo", "beta": 0.5},
            "training": training | sections.pop("training", {}),
            "lora": {"r": 4, "alpha": 8},
            "collapse_guard": None,
            "seed": 5,
            "output_dir": str(output),
            **sections,
        }
    )


def run(workplace: Path, name: str, *arguments: str, **sections: Any) -> RunFolder:
    output = workplace / name
    path = output.with_suffix(".yaml")
    path.write_text(recipe(workplace, output, **sections).to_yaml())
    assert train.main([str(path), *arguments]) == 0
    return RunFolder(output)


def adapter_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = adapter_of(one), adapter_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def result_of(folder: RunFolder) -> dict[str, Any]:
    result = folder.read_result()
    assert result is not None
    assert result["status"] == "succeeded"
    return result


def losses_of(folder: RunFolder) -> dict[int, float]:
    """The held-out loss of each step, from the events."""
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return {
        event["data"]["step"]: event["data"]["valid_loss"]
        for event in events
        if event["type"] == "metrics" and "valid_loss" in event["data"]
    }


def messages_of(folder: RunFolder) -> list[str]:
    return [json.loads(line)["message"] for line in folder.events.read_text().splitlines()]


@pytest.fixture(scope="module")
def best(workplace: Path) -> RunFolder:
    return run(workplace, "best", training={"save_total_limit": 1})


def test_the_result_is_the_step_with_the_best_held_out_loss(best: RunFolder) -> None:
    losses, result = losses_of(best), result_of(best)
    step = min(losses, key=lambda step: losses[step])
    assert 0 < step < STEPS  # else this run shows nothing
    assert (result["steps"], result["result_step"]) == (STEPS, step)
    assert result["best"] == {"step": step, "metric": "valid_loss", "value": losses[step]}
    assert result["metrics"]["valid_loss"] == losses[step]
    assert same(best.adapter, best.checkpoints / f"checkpoint-{step}")


def test_the_metrics_are_those_of_the_published_weights(best: RunFolder) -> None:
    measured = evaluate_run(best.path).after
    assert measured["valid_loss"] == pytest.approx(result_of(best)["metrics"]["valid_loss"], abs=1e-6)


def test_the_best_checkpoint_outlives_the_limit(best: RunFolder) -> None:
    step = result_of(best)["result_step"]
    kept = {path.name for path in best.checkpoints.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{step}", f"checkpoint-{STEPS}"}


def test_events_and_card_say_which_step_it_is(best: RunFolder) -> None:
    step = result_of(best)["result_step"]
    assert any(f"The result is the best of {STEPS} evaluated steps: " in said for said in messages_of(best))
    card = (best.adapter / "README.md").read_text()
    assert f"The weights are those after step {step} of {STEPS}, the best by `valid_loss`" in card


def test_steps_after_training_change_the_best_step_and_are_measured(workplace: Path, best: RunFolder) -> None:
    folder = run(workplace, "half", after=[{"type": "interpolate", "amount": 0.5}])
    result, whole = result_of(folder), adapter_of(best.adapter)
    assert result["result_step"] == result_of(best)["result_step"]
    assert result["metrics"]["valid_loss"] != result["best"]["value"]
    assert result["metrics"]["train_loss"] == result_of(best)["metrics"]["train_loss"]
    for name, weight in adapter_of(folder.adapter).items():
        assert torch.equal(weight, whole[name] * 0.5 if "lora_B" in name else whole[name])


@pytest.fixture(scope="module")
def stopped(workplace: Path) -> RunFolder:
    return run(workplace, "stopped", training={"early_stopping": {"patience": 1}, "max_steps": 20})


def test_a_run_without_a_gain_stops_early(stopped: RunFolder) -> None:
    losses, result = losses_of(stopped), result_of(stopped)
    assert result["stopped_early"]
    assert result["steps"] == max(losses) < 20
    assert result["result_step"] == result["steps"] - 1
    assert any(
        said.startswith(f"Training stops early at step {result['steps']} of 20")
        for said in messages_of(stopped)
    )


@pytest.mark.parametrize("deleted", ["last", "all but first"])
def test_a_resumed_run_stops_and_keeps_as_an_uninterrupted_one(
    stopped: RunFolder, workplace: Path, deleted: str
) -> None:
    """The last steps are lost with their checkpoints, or the run was killed just after it had stopped."""
    copy = RunFolder(workplace / f"resumed-{deleted.replace(' ', '-')}")
    shutil.copytree(stopped.path, copy.path)
    copy.result.unlink()
    shutil.rmtree(copy.adapter)
    found = sorted(copy.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    for path in found[1:] if deleted == "all but first" else found[:0]:
        shutil.rmtree(path)
    assert train.main([str(copy.recipe), "--resume", f"output_dir={copy.path}"]) == 0
    ours, theirs = result_of(copy), result_of(stopped)
    for name in ("steps", "result_step", "best", "stopped_early", "metrics", "trained_tokens"):
        assert ours[name] == theirs[name]
    assert same(copy.adapter, stopped.adapter)


def test_a_best_step_whose_checkpoint_is_gone_is_not_chosen(best: RunFolder, workplace: Path) -> None:
    copy = RunFolder(workplace / "lost")
    shutil.copytree(best.path, copy.path)
    step = result_of(best)["result_step"]
    copy.result.unlink()
    shutil.rmtree(copy.checkpoints / f"checkpoint-{step}")
    assert train.main([str(copy.recipe), "--resume", f"output_dir={copy.path}"]) == 0
    result = result_of(copy)
    assert result["result_step"] == STEPS
    assert result["metrics"]["valid_loss"] == losses_of(best)[STEPS]
    assert f"Step {step} is the best, but its checkpoint cannot be used" in "".join(messages_of(copy))


def test_without_keep_best_the_last_step_is_the_result(workplace: Path, best: RunFolder) -> None:
    folder = run(workplace, "last", training={"keep_best": False})
    result = result_of(folder)
    assert (result["result_step"], result["best"]) == (STEPS, None)
    assert result["metrics"]["valid_loss"] == losses_of(best)[STEPS]
    assert same(folder.adapter, best.checkpoints / f"checkpoint-{STEPS}")


def test_a_run_too_short_to_evaluate_often_keeps_its_last_step_and_resumes_alike(workplace: Path) -> None:
    folder = run(
        workplace,
        "once",
        training={"eval_steps": "auto", "save_steps": 3},
        collapse_guard={"prompts": 1},
    )
    settled = Recipe.load(folder.recipe)
    assert (settled.training.eval_steps, settled.collapse_guard.max_new_tokens) == (STEPS, 16)
    assert list(losses_of(folder)) == [STEPS]
    assert result_of(folder)["result_step"] == STEPS
    assert any(
        said.startswith("The run is evaluated once, at its end, so that") for said in messages_of(folder)
    )
    copy = RunFolder(workplace / "once-resumed")
    shutil.copytree(folder.path, copy.path)
    copy.result.unlink()
    shutil.rmtree(copy.checkpoints / f"checkpoint-{STEPS}")
    given = folder.path.with_suffix(".yaml")
    assert train.main([str(given), "--resume", f"output_dir={copy.path}"]) == 0
    assert result_of(copy)["metrics"] == result_of(folder)["metrics"]
    assert same(copy.adapter, folder.adapter)


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (
            {"data": {"train": "t.jsonl"}, "training": {"early_stopping": {}}},
            "training.early_stopping",
            "data.validation",
        ),
        (
            {"data": {"train": "t.jsonl"}, "training": {"keep_best": True}},
            "training.keep_best",
            "data.validation",
        ),
        (
            {"training": {"eval_steps": None, "early_stopping": {}}},
            "training.early_stopping",
            "expected training.eval_steps",
        ),
        ({"training": {"best_metric": "valid_bleu"}}, "training.best_metric", "expected one of valid_loss"),
        (
            {"method": {"type": "supervised"}, "training": {"best_metric": "valid_rewards_margins"}},
            "training.best_metric",
            "expected a metric of supervised, valid_loss, valid_mean_token_accuracy",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(
    workplace: Path, change: dict[str, Any], path: str, words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(workplace, workplace / "none", **change)
    (issue,) = caught.value.issues
    assert issue.path == path
    assert words in issue.message
