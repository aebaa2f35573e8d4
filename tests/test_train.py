"""A run from a recipe: the content of its folder, repeats, and failures."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from alignkit import train
from alignkit.cli import app
from alignkit.errors import DataError, RecipeError
from alignkit.evaluate_run import evaluate_run
from alignkit.launch import launch_command
from alignkit.models.chat_templates import read_template
from alignkit.models.trainable import ends_in
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.trainers.exact_resume import _last_sound
from tests.completion import write_completions
from tests.preference import write_pairs
from tests.tiny import PAD_TOKEN, build_tiny_model


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=5, start=100)
    return path


def recipe_file(workplace: Path, output: Path, **changes: Any) -> Path:
    values = {
        "model": {"path": str(workplace / "model")},
        "data": {
            "train": str(workplace / "train.jsonl"),
            "validation": str(workplace / "validation.jsonl"),
            "max_length": 128,
        },
        "method": {"type": "f_dpo", "divergence": "js_divergence", "beta": 0.5},
        "training": {
            "max_steps": 4,
            "batch_size": 4,
            "learning_rate": 5e-3,
            "eval_steps": 2,
            "eval_on_start": True,
            "save_steps": 2,
        },
        "seed": 5,
        "output_dir": str(output),
        **changes,
    }
    path = output.with_suffix(".yaml")
    path.write_text(Recipe.parse(values).to_yaml())
    return path


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    output = workplace / "finished"
    assert train.main([str(recipe_file(workplace, output))]) == 0
    return output


def test_the_folder_holds_the_whole_run(finished: Path) -> None:
    folder = RunFolder(finished)
    result = folder.read_result()
    assert result is not None
    assert (result["status"], result["steps"]) == ("succeeded", 4)
    assert result["trained_tokens"] > 0
    assert result["metrics"]["valid_rewards_accuracies"] >= 0.5
    assert {path.name for path in folder.checkpoints.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert (folder.adapter / "adapter_model.safetensors").is_file()
    assert not (folder.adapter / "training_args.bin").exists()
    assert Recipe.load(folder.recipe).method.divergence == "js_divergence"


def test_the_card_beside_the_adapter_tells_what_was_trained(finished: Path, workplace: Path) -> None:
    card = (finished / "adapter" / "README.md").read_text()
    assert "A LoRA adapter of `model`." in card
    assert "Trained with f_dpo ([arXiv 2309.16240]" in card
    assert "- training: train.jsonl, " in card
    assert "- validation: validation.jsonl" in card
    assert "| `valid_rewards_accuracies` |" in card
    assert str(workplace) not in card


def test_the_phases_after_the_last_step_are_named_with_their_own_clocks(finished: Path) -> None:
    named = [event["data"]["phase"] for event in events(finished) if "phase" in event.get("data", {})]
    assert named == ["evaluation", "saving", "canary"]
    result = RunFolder(finished).read_result()
    assert result is not None
    assert list(result["phases"]) == named


def test_events_tell_steps_metrics_and_time_left(finished: Path) -> None:
    found = events(finished)
    metrics = [event["data"] for event in found if event["type"] == "metrics"]
    assert [data["step"] for data in metrics if "train_loss" in data] == [1, 2, 3, 4]
    assert [data["step"] for data in metrics if "valid_loss" in data] == [0, 2, 4]
    assert all(data["total_steps"] == 4 for data in metrics)
    assert all(data["seconds_remaining"] >= 0 for data in metrics if data["step"])
    assert [event["data"]["step"] for event in found if event["type"] == "checkpoint"] == [2, 4]


def test_the_canary_is_what_peft_and_transformers_compute(finished: Path, workplace: Path) -> None:
    canary = json.loads((finished / "canary.json").read_text())
    prompt, completion = canary["prompt_token_ids"], canary["completion_token_ids"]
    ids = torch.tensor([prompt + completion])
    base = AutoModelForCausalLM.from_pretrained(workplace / "model")

    def logps(model: Any) -> list[float]:
        with torch.no_grad():
            scores = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return scores.gather(1, ids[0, len(prompt) :, None]).squeeze(1).tolist()

    assert canary["base_logprobs"] == pytest.approx(logps(base), abs=1e-4)
    adapted = PeftModel.from_pretrained(base, finished / "adapter")
    assert canary["adapter_logprobs"] == pytest.approx(logps(adapted), abs=1e-4)
    assert canary["adapter_logprobs"] != pytest.approx(canary["base_logprobs"], abs=1e-2)


@pytest.mark.slow
def test_accelerate_repeats_the_written_recipe_exactly(finished: Path) -> None:
    done = subprocess.run(
        launch_command(finished / "recipe.yaml"), check=False, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    repeat = finished / "repeat-1"
    first, second = (
        [event["data"]["train_loss"] for event in events(folder) if "train_loss" in event["data"]]
        for folder in (finished, repeat)
    )
    assert second == pytest.approx(first, rel=1e-5)
    assert (finished / "result.json").exists()


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["lora", "full"])
def test_supervised(workplace: Path, lora: dict[str, Any] | None) -> None:
    output = workplace / f"supervised-{'lora' if lora else 'full'}"
    files = {
        "train": str(write_completions(workplace / "chat.jsonl")),
        "validation": str(write_completions(workplace / "chat-held-out.jsonl", count=3, start=50)),
        "max_length": 128,
    }
    path = recipe_file(workplace, output, data=files, method={"type": "supervised"}, lora=lora)
    assert train.main([str(path)]) == 0
    losses = [event["data"]["valid_loss"] for event in events(output) if "valid_loss" in event["data"]]
    assert losses[-1] < losses[0]
    result = RunFolder(output).read_result()
    assert result is not None
    assert {"valid_loss", "valid_mean_token_accuracy", "valid_entropy"} <= result["metrics"].keys()
    canary = json.loads((output / "canary.json").read_text())
    assert len(canary["adapter_logprobs"]) == len(canary["completion_token_ids"]) > 0
    assert (canary["base_logprobs"] is None) == (lora is None)


def test_a_named_template_is_kept_with_the_adapter_and_its_checkpoints(workplace: Path) -> None:
    output = workplace / "templated"
    model = {"path": str(workplace / "model"), "chat_template": "qwen3"}
    training = {"max_steps": 1, "batch_size": 2}
    assert train.main([str(recipe_file(workplace, output, model=model, training=training))]) == 0
    kept = [output / "adapter", output / "checkpoints" / "checkpoint-1"]
    template = read_template("qwen3")
    assert [(folder / "chat_template.jinja").read_text() for folder in kept] == [template, template]


def test_rows_are_checked_before_a_model_is_loaded(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = workplace / "bad.jsonl"
    bad.write_text('{"prompt": "q", "chosen": "a"}\n')
    loaded: list[str] = []
    monkeypatch.setattr(train, "load_model", lambda _: loaded.append("weights"))
    output = workplace / "bad"
    assert train.main([str(recipe_file(workplace, output, data={"train": str(bad)}))]) == 1
    assert "bad.jsonl: 1 of 1 rows cannot be used" in capsys.readouterr().err
    assert loaded == []


def test_the_token_that_ends_a_trained_answer_ends_every_answer(workplace: Path) -> None:
    folder = workplace / "other-end"
    shutil.copytree(workplace / "model", folder)
    for name in (
        "tokenizer_config.json",
        "generation_config.json",
        "config.json",
    ):  # ends as a base model does
        path = folder / name
        values = json.loads(path.read_text())
        end = PAD_TOKEN if name.startswith("tokenizer") else 0
        values |= {"eos_token": end} if name.startswith("tokenizer") else {"eos_token_id": end}
        path.write_text(json.dumps(values))
    output = workplace / "ended"
    training = {"max_steps": 1, "batch_size": 2}
    recipe = recipe_file(workplace, output, model={"path": str(folder)}, training=training)
    assert train.main([str(recipe)]) == 0
    assert ends_in(output / "adapter") == [0, 2]
    assert any("An answer ends with <|im_end|>" in event["message"] for event in events(output))


def test_full_weights_give_a_model(workplace: Path) -> None:
    output = workplace / "full"
    training = {"max_steps": 3, "batch_size": 4, "save_steps": 1, "save_total_limit": 1}
    path = recipe_file(workplace, output, lora=None, training=training)
    assert train.main([str(path)]) == 0
    assert (output / "model" / "config.json").is_file()
    assert not (output / "adapter").exists()
    kept = [path.name for path in RunFolder(output).checkpoints.glob("checkpoint-*")]
    assert kept == ["checkpoint-3"]


def test_the_sound_checkpoint_is_kept_however_old(tmp_path: Path) -> None:
    assert _last_sound(tmp_path / "checkpoints") is None
    (tmp_path / "collapse_guard.json").write_text('{"baseline": {}, "sound_steps": [2, 4]}')
    assert _last_sound(tmp_path / "checkpoints") == str(tmp_path / "checkpoints" / "checkpoint-4")


def test_a_full_disk_is_reported_and_leaves_no_partial_adapter(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = workplace / "full-disk"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.Trainer.save_model", full)
    path = recipe_file(workplace, output, training={"max_steps": 1, "batch_size": 4})
    assert train.main([str(path)]) == 1
    result = RunFolder(output).read_result()
    assert result is not None
    assert result["error"]["code"] == "disk_full"
    assert "free some space" in result["error"]["message"]
    assert not (output / "adapter").exists()
    assert events(output)[-1]["level"] == "error"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": {"path": "no/such/model"}}, "invalid_recipe", "model.path: cannot load"),
        ({"data": {"train": "no-such-file.jsonl"}}, "invalid_recipe", "no-such-file.jsonl"),
        ({"training": {"batch_size": 4, "micro_batch_size": 3}}, "invalid_recipe", "training.batch_size"),
    ],
)
def test_a_run_that_cannot_train_reports_why(
    workplace: Path, change: dict[str, Any], code: str, words: str
) -> None:
    output = workplace / f"bad-{next(iter(change))}"
    assert train.main([str(recipe_file(workplace, output, **change))]) == 1
    result = RunFolder(output).read_result()
    assert result is not None
    assert result["error"]["code"] == code
    assert words in result["error"]["message"]


def test_a_refused_resume_leaves_the_run_unchanged(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: (finished / name).read_bytes() for name in ("recipe.yaml", "result.json", "events.jsonl")}
    recipe = finished.with_suffix(".yaml")
    assert train.main([str(recipe), "--resume", "method.beta=0.1"]) == 1
    told = capsys.readouterr().err
    assert "error: checkpoint-4 belongs to another recipe" in told
    assert "method.beta was 0.5, now 0.1" in told
    assert "Traceback" not in told
    assert {name: (finished / name).read_bytes() for name in kept} == kept


GLOO = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:62122."
NCCL = "NCCL error: remote process exited or there was a network error, ncclRemoteError"


@pytest.mark.parametrize("message", [GLOO, NCCL])
def test_a_process_that_loses_a_peer_leaves_the_run_resumable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str
) -> None:
    folder = RunFolder(tmp_path)
    train.report_failure(folder, RuntimeError(message))
    assert not folder.result.exists()
    assert not folder.events.exists()
    assert (
        "another process of the run is gone: resume from the last checkpoint with --resume"
        in capsys.readouterr().err
    )
    train.report_failure(folder, RuntimeError("NCCL error: invalid usage, Duplicate GPU detected"))
    assert folder.result.exists()


def test_any_failing_process_reports_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    monkeypatch.setenv("RANK", "1")
    train.report_failure(folder, MemoryError("no more"))
    monkeypatch.setenv("RANK", "0")
    train.report_failure(folder, RuntimeError(GLOO))
    assert (folder.read_result() or {})["error"]["code"] == "out_of_memory"
    assert "error in process 1: Out of memory" in capsys.readouterr().err


def test_a_missing_run_folder_is_reported(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = workplace / "gone"

    def lose(*_: Any) -> None:
        output.rename(workplace / "away")
        (output / "checkpoints").touch()

    monkeypatch.setattr(train, "run", lambda *_, **__: lose())
    assert train.main([str(recipe_file(workplace, output))]) == 1
    told = capsys.readouterr().err
    assert told == f"error: The run's folder {output} is gone: put it back, then resume with --resume.\n"


def test_a_repeat_says_where_it_goes_and_a_resume_takes_the_newest(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = workplace / "again"
    recipe = Recipe.load(recipe_file(workplace, output))
    train.open_folder(recipe).emit("begun")
    assert capsys.readouterr().out == ""
    repeat = train.open_folder(recipe)
    assert repeat.path == output / "repeat-1"
    assert capsys.readouterr().out == f"Writing to {repeat.path}: {output} holds an earlier run\n"
    assert train.open_folder(recipe, resume=True).path == repeat.path
    assert capsys.readouterr().out == f"Resuming {repeat.path}: {output} holds an earlier run\n"
    repeat.recipe.unlink()
    done = CliRunner().invoke(app, ["eval", str(output)])
    assert f"Evaluating the run in {repeat.path}" in done.output


@pytest.mark.parametrize("blocked", ["recipe.yaml/in the way", "."], ids=["a file", "the folder"])
def test_a_folder_that_cannot_be_written_into_is_refused_before_anything_starts(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], blocked: str
) -> None:
    output = tmp_path / "run"
    if blocked == ".":
        output.write_text("a file")
    else:
        (output / blocked).mkdir(parents=True)
    assert train.main([str(recipe_file(workplace, output))]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: output_dir: cannot write into {output}: ")
    assert len(told.splitlines()) == 1


def test_no_recipe_and_a_bad_recipe_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([]) == 2
    assert train.main([str(tmp_path / "missing.yaml")]) == 2
    assert "cannot read the recipe" in capsys.readouterr().err


def test_importing_the_recipe_does_not_load_torch_trainers() -> None:
    code = "import sys, alignkit.recipe; sys.exit('trl' in sys.modules or 'vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_eval_measures_the_untrained_and_the_trained_model(finished: Path, workplace: Path) -> None:
    kept = set(finished.rglob("*"))
    found = evaluate_run(finished)
    result = RunFolder(finished).read_result()
    assert result is not None
    for name in ("valid_loss", "valid_rewards_margins", "valid_answers_good_logp"):
        assert found.after[name] == pytest.approx(result["metrics"][name], rel=1e-4), name
    assert found.before["valid_rewards_margins"] == pytest.approx(0, abs=1e-5)  # packed rows and padded ones
    assert found.before["valid_answers_kl"] == 0
    earlier = evaluate_run(finished, step=2, data=workplace / "train.jsonl")
    assert 0 < earlier.after["valid_rewards_margins"] != found.after["valid_rewards_margins"]
    assert set(finished.rglob("*")) == kept


def test_eval_says_what_is_missing(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        evaluate_run(tmp_path)
    with pytest.raises(DataError, match="checkpoints/checkpoint-77"):
        evaluate_run(finished, step=77)
