"""The report of a real run of a tiny model, written by the trainer when it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from alignkit import train
from alignkit.cli import app
from alignkit.errors import AlignkitError
from alignkit.run.folder import RunFolder
from tests.evaluate.endpoint import chat, endpoint
from tests.preference import write_pairs
from tests.test_train import recipe_file
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reported")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=5, start=100)
    return path


@pytest.fixture(scope="module")
def reported(workplace: Path) -> Path:
    output = workplace / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ALIGNKIT_REPORT", "on")
        assert train.main([str(recipe_file(workplace, output))]) == 0
    return output


def stored(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "facts.json").read_text())
    return found


def test_the_run_ends_with_a_report_of_its_answers_and_curves(reported: Path) -> None:
    text = RunFolder(reported).report.read_text()
    assert "succeeded" in text
    assert text.count("data:image/png;base64,") == len(list((reported / "report").glob("*.png"))) >= 6
    assert "Drawn before training and at step 4" in text


def test_its_data_statistics_are_those_of_the_files(reported: Path, workplace: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(workplace / "model")
    longest = 0
    rows = [json.loads(line) for line in (workplace / "train.jsonl").read_text().splitlines()]
    for row in rows:
        for side in ("preferred_output", "non_preferred_output"):
            whole = tokenizer.apply_chat_template([*row["input"]["messages"], *row[side]], tokenize=False)
            longest = max(longest, len(tokenizer(whole, add_special_tokens=False).input_ids))
    training, validation = stored(reported)["data"]
    assert (training["file"], training["rows"], validation["rows"]) == ("train.jsonl", len(rows), 5)
    assert abs(training["total"]["maximum"] - longest) <= 1  # the template's last newline


def test_what_it_took_is_measured_and_estimated(reported: Path) -> None:
    found = stored(reported)
    assert found["measured"]["steps"] == found["estimate"]["steps"] == 4
    assert 0 < found["measured"]["step_seconds"] < 600
    assert found["estimate"]["peak_bytes"] > 0
    assert found["environment"]["processes"] == "1"


def test_the_command_makes_the_report_again_from_the_folder(reported: Path) -> None:
    report = RunFolder(reported).report
    first = report.read_bytes()
    report.unlink()
    done = CliRunner().invoke(app, ["report", str(reported)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(report)
    assert report.read_bytes() == first


@pytest.mark.slow
def test_a_run_that_fails_after_steps_has_a_report(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT", "on")

    def fail(*_: object) -> None:
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(train, "finish", fail)
    output = workplace / "failed"
    assert train.main([str(recipe_file(workplace, output, collapse_guard=None))]) == 1
    assert "Training stopped: the loss is not finite" in RunFolder(output).report.read_text()


def test_the_command_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 1
    assert "expected a run's folder" in str(done.exception)


@pytest.mark.slow
def test_eval_judges_the_answers_of_both_models_and_writes_a_report(reported: Path) -> None:
    with endpoint(lambda _: chat("Verdict: A")) as judge:
        limits = ["--answers", "2", "--max-tokens", "8", "--judge", judge.url, "--judge-model", "j"]
        done = CliRunner().invoke(app, ["eval", str(reported), *limits, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {"run", "step", "metrics", "diversity", "judge", "groups", "answers"} <= found.keys()
    assert found["judge"]["ties"] == 2  # whoever always says A prefers no one
    assert found["metrics"]["untrained"]["valid_rewards_margins"] == pytest.approx(0, abs=1e-5)
    assert found["metrics"]["trained"]["valid_rewards_margins"] > 0
    assert len(found["answers"]) == 2
    assert json.loads((reported / "evaluation.json").read_text()) == found
    assert "Win rate of the trained model" in (reported / "evaluation.html").read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--judge", "http://x/v1"], "--judge and --judge-model: expected both or neither"),
        (["--answers", "0", "--reward-model", "x"], "--answers: expected at least 1"),
        (["--judge", "http://127.0.0.1:1/v1", "--judge-model", "j"], "does not answer"),
    ],
)
def test_eval_refuses_what_cannot_be_judged_before_it_loads_a_model(
    tmp_path: Path, more: list[str], sentence: str
) -> None:
    done = CliRunner().invoke(app, ["eval", str(tmp_path), *more])
    assert isinstance(done.exception, AlignkitError)
    assert sentence in str(done.exception)


def test_eval_refuses_a_judge_that_talks_nonsense_before_it_loads_a_model(tmp_path: Path) -> None:
    with endpoint(lambda _: chat("Both are fine.")) as judge:
        done = CliRunner().invoke(app, ["eval", str(tmp_path), "--judge", judge.url, "--judge-model", "j"])
    assert isinstance(done.exception, AlignkitError)
    assert "gives no verdict" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
