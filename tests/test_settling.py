"""What a run settles for itself: `auto` when it starts, and half the micro-batch after it ran out of memory."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignkit import launch, settling, startup, train
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.run.settled import halve
from alignkit.settling import settle, settle_evaluations, settle_references
from tests.estimate.recipes import recipe
from tests.tiny import build_tiny_model

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
    assert halve(run, folder, processes=1) == (4, 2)
    assert settle(run, folder, resume=True, main=True).training.micro_batch_size == 2
    assert halve(run, folder, processes=1) is None


def test_evaluations_get_no_more_rows_than_half_the_micro_batch(folder: RunFolder) -> None:
    run = given(micro_batch_size=4, eval_batch_size=8)
    halve(run, folder, processes=1)
    assert settle(run, folder, resume=True, main=True).training.eval_batch_size == 2


def test_a_single_row_cannot_be_halved(folder: RunFolder) -> None:
    assert halve(given(micro_batch_size=1), folder, processes=1) is None


def test_the_new_micro_batch_divides_the_rows_of_a_step(folder: RunFolder) -> None:
    assert halve(given(batch_size=9, micro_batch_size=9), folder, processes=1) == (9, 3)


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


def test_such_a_run_is_started_again_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the launcher where there is one, else by the process itself."""
    started: list[list[str]] = []
    monkeypatch.setattr(launch, "_launch", lambda: launch.RETRY_EXIT)
    monkeypatch.setattr(train, "main", lambda: launch.RETRY_EXIT)
    monkeypatch.setattr(startup, "begin", lambda: None)
    monkeypatch.setattr(launch.os, "execv", lambda _path, command: started.append(command[1:]))
    programs = (
        (launch._main, ["-m", "alignkit.train", "recipe.yaml"]),
        (train.run_program, ["recipe.yaml"]),
    )
    for program, arguments in programs:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit):
            program()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(SystemExit, match=str(launch.RETRY_EXIT)):
        train.run_program()
    assert started == [
        ["-m", "alignkit.launch", "-m", "alignkit.train", "recipe.yaml", "--resume"],
        ["-m", "alignkit.train", "recipe.yaml", "--resume"],
    ]


def on_or_off(folder: RunFolder, found: Recipe, *, rows: int = 16, dropout: float = 0.0) -> str:
    model = build_tiny_model(folder.path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(model, attention_dropout=dropout)
    return settle_references(found, loaded, rows, folder, main=True).training.reference_store


@pytest.mark.parametrize(
    ("method", "training", "expected"),
    [
        ("f_dpo", {}, "on"),
        ("kto", {"epochs": 2.0}, "on"),
        ("f_dpo", {"epochs": 0.5}, "off"),
        ("f_dpo", {"max_steps": 1}, "off"),
        ("f_dpo", {"max_steps": 2}, "on"),
        ("f_dpo", {"reference_store": "off"}, "off"),
        ("simpo", {}, "off"),
        ("simpo", {"reference_store": "on"}, "off"),
        ("f_dpo", {"max_steps": 1, "reference_store": "on"}, "on"),
        ("d2o", {"max_steps": 1}, "on"),
    ],
)
def test_references_are_stored_where_each_row_is_read(
    folder: RunFolder, method: str, training: dict[str, object], expected: str
) -> None:
    assert on_or_off(folder, given(method, **training)) == expected


@pytest.mark.parametrize("asked", ["auto", "on"])
def test_a_reference_with_dropout_is_not_stored_and_the_run_says_so(folder: RunFolder, asked: str) -> None:
    assert on_or_off(folder, given(reference_store=asked), dropout=0.1) == "off"
    assert "it has dropout (attention_dropout)" in str(events(folder)[-1]["message"])


def test_weights_in_int8_have_no_stored_references(folder: RunFolder) -> None:
    whole = given(reference_store="on")
    quantised = whole.model_copy(update={"model": whole.model.model_copy(update={"quantization": "int8"})})
    assert on_or_off(folder, quantised) == "off"
    assert "its log-probs depend on the batch" in str(events(folder)[-1]["message"])


def test_sharded_weights_have_no_stored_references(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "sharding", lambda: "ZeRO-3")
    assert on_or_off(folder, given()) == "off"


def test_a_resumed_run_stores_references_as_before(folder: RunFolder) -> None:
    on_or_off(folder, given())
    assert settle(given(), folder, resume=True, main=True).training.reference_store == "on"


def test_a_run_that_began_before_there_was_a_store_resumes_without(folder: RunFolder) -> None:
    (folder.checkpoints / "checkpoint-2").mkdir(parents=True)
    assert settle(given(), folder, resume=True, main=True).training.reference_store == "off"


HELD_OUT = {"train": "train.jsonl", "validation": "held_out.jsonl", "max_length": 128}
EVALUATED = {"early_stopping": {"patience": 2}, "eval_steps": "auto", "batch_size": 8}


def evaluated(**training: object) -> Recipe:
    return recipe({"type": "f_dpo"}, "smollm2-135m", training=EVALUATED | training, data=HELD_OUT)


def evaluations(folder: RunFolder, rows: int, **training: object) -> tuple[int | None, int | str]:
    """(steps between evaluations, tokens of the guard's answers) of a run on `rows` rows with six held out."""
    run = evaluated(**training)
    found = settle_evaluations(run, rows, 6, folder, main=True)
    assert found.collapse_guard is not None
    return found.training.eval_steps, found.collapse_guard.max_new_tokens


def test_a_run_settles_how_often_it_evaluates_and_a_resumed_one_keeps_that(folder: RunFolder) -> None:
    interval, tokens = evaluations(folder, 4_000)
    assert (interval, tokens) == (63, 48)
    assert Recipe.load(folder.recipe).training.eval_steps == interval
    kept = settle(evaluated(epochs=2.0), folder, resume=True, main=True)
    assert (kept.training.eval_steps, kept.collapse_guard.max_new_tokens) == (interval, tokens)


def test_a_run_that_is_evaluated_once_says_what_it_cannot_do(folder: RunFolder) -> None:
    assert evaluations(folder, 40) == (5, 16)
    assert events(folder)[-1]["message"] == (
        "The run is evaluated once, at its end, so that keep_best keeps the last step, and early_stopping cannot "
        "act; a smaller interval of evaluations compares more steps"
    )


def test_a_run_that_mostly_evaluates_says_how_much_of_its_time_that_takes(folder: RunFolder) -> None:
    evaluations(
        folder, 40
    )  # 5 steps of 8 rows; 6 rows held out, 4 prompts, 16 tokens, drawn before and after
    evaluating, training = 6 / 3 + 2 * (16 / 8 + 4 / 2), 5 * 8
    assert events(folder)[0]["message"] == (
        f"About {100 * evaluating / (evaluating + training):.0f}% of this run's time will go to 1 evaluation and the "
        "collapse guard, by the number of rows: the longer a run, the smaller the share"
    )


def test_the_share_names_only_what_the_run_has(folder: RunFolder) -> None:
    run = evaluated(early_stopping=None, eval_steps=1)
    settle_evaluations(run.model_copy(update={"collapse_guard": None}), 40, 12, folder, main=True)
    assert "About 33% of this run's time will go to 5 evaluations, by" in str(events(folder)[0]["message"])
    settle_evaluations(run, 8, 0, folder, main=True)
    assert "will go to the collapse guard, by" in str(events(folder)[-1]["message"])
    before = len(events(folder))
    settle_evaluations(run, 8, 0, folder, main=False)
    settle_evaluations(run, 80_000, 0, folder, main=True)
    assert len(events(folder)) == before


def test_a_given_interval_stays_and_the_guards_answers_become_shorter(folder: RunFolder) -> None:
    assert evaluations(folder, 1_000, eval_steps=10) == (10, 26)
    assert not folder.events.exists()


def test_a_run_that_began_before_the_guards_answers_were_settled_keeps_their_length(
    folder: RunFolder,
) -> None:
    (folder.checkpoints / "checkpoint-2").mkdir(parents=True)
    found = settle(given(), folder, resume=True, main=True)
    assert (found.collapse_guard.max_new_tokens, given().collapse_guard.max_new_tokens) == (48, "auto")
