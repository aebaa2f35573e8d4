"""What a report reads from a run's folder."""

import math
from pathlib import Path

import pytest

from alignkit.errors import DataError
from alignkit.report.record import read_run
from alignkit.run.folder import RunFolder
from tests.report.folders import drawn, metrics, warning, write_run


def test_a_step_that_is_reported_again_has_the_later_value(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", *(metrics(step, train_loss=step / 10) for step in (1, 2, 3)))
    with (run / "events.jsonl").open("a") as file:
        file.write('{"created_at": 1, "level": "info", "type": "metrics", "mess')  # killed while writing
        file.write('\n{"type": "metrics", "created_at": 2, "data": {"step": 3, "train_loss": null}}\n[1]\n')
    found = read_run(RunFolder(run)).series["train_loss"]
    assert (found[1], found[2]) == (0.1, 0.2)
    assert math.isnan(found[3])


def test_answers_are_those_of_the_first_and_the_last_drawing(tmp_path: Path) -> None:
    run = read_run(RunFolder(write_run(tmp_path / "a", drawn(0, "old"), drawn(2, "mid"), drawn(4, "new"))))
    assert run.before is not None
    assert run.after is not None
    assert (run.before.answers[0]["answer"], run.after.answers[0]["answer"]) == ("old", "new")


def test_after_a_rollback_the_answers_are_those_of_the_kept_step(tmp_path: Path) -> None:
    back = warning("Rolled back to step 2, the last sound checkpoint: it collapsed", step=2)
    events = [drawn(0, "old"), drawn(2, "mid"), drawn(4, "noise", sound=False), back]
    run = read_run(RunFolder(write_run(tmp_path / "a", *events)))
    assert run.after is not None
    assert run.after.answers[0]["answer"] == "mid"


def test_one_drawing_is_no_comparison(tmp_path: Path) -> None:
    run = read_run(RunFolder(write_run(tmp_path / "a", drawn(0, "old"))))
    assert run.before is not None
    assert run.after is None


def test_paths_and_credentials_of_the_machine_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefghijkl")
    events = [warning("cannot read /srv/secret-place/x.jsonl with abcdefghijkl")]
    run = read_run(
        RunFolder(
            write_run(tmp_path / "a", *events, result={"status": "failed", "log": "/srv/secret-place/y"})
        )
    )
    assert "secret-place" not in repr((run.recipe, run.result, run.notices))
    assert "abcdefghijkl" not in repr(run.notices)
    assert run.recipe["data"]["train"] == "…/pairs.jsonl"


def test_a_run_without_a_result_is_unfinished(tmp_path: Path) -> None:
    assert read_run(RunFolder(write_run(tmp_path / "a"))).status == "unfinished"


def test_a_folder_without_a_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a run's folder, with recipe\.yaml"):
        read_run(RunFolder(tmp_path))
