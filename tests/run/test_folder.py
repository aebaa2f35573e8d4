"""Files in a run's folder can be read at any moment."""

import json
from pathlib import Path

import pytest

from alignkit.run.folder import RunFolder, newest, write_json
from alignkit.run.progress import describe, rename


def test_events_are_whole_lines_in_order(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.emit("first", data={"step": 1})
    folder.emit("zweite äöü", level="warn", type="metrics")
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert [event["message"] for event in events] == ["first", "zweite äöü"]
    assert (events[1]["level"], events[1]["type"], events[1]["data"]) == ("warn", "metrics", {})
    assert isinstance(events[0]["created_at"], int)


def test_an_event_that_json_cannot_hold_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        RunFolder(tmp_path).emit("x", data={"loss": float("nan")})


def test_a_result_is_there_whole_or_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_result() is None
    folder.result.write_text('{"status": "succ')
    assert folder.read_result() is None
    write_json(folder.result, {"status": "succeeded"})
    assert folder.read_result() == {"status": "succeeded"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.log_tail() == ""
    folder.log.write_bytes(b"\xff" + b"line\n" * 100_000 + b"a\rb\nlast")
    assert folder.log_tail(3) == "a\nb\nlast"


def test_metrics_are_named_as_openai_names_them() -> None:
    logs = {
        "loss": 0.5,
        "eval_rewards/margins": 1.0,
        "epoch": 1.0,
        "eval_runtime": 3.0,
        "grad_norm": float("nan"),
    }
    assert rename(logs) == {"train_loss": 0.5, "valid_rewards_margins": 1.0, "train_grad_norm": None}


def test_a_line_for_people() -> None:
    data = {
        "step": 3,
        "total_steps": 9,
        "train_loss": 0.5,
        "train_rewards_margins": 1.25,
        "seconds_remaining": 61,
    }
    assert describe(data) == "Step 3/9: training loss 0.5, reward margin 1.25, 1:01 left"


def test_the_newest_run_of_a_folder_is_its_last_repeat(tmp_path: Path) -> None:
    assert newest(tmp_path) == tmp_path
    for name in ("repeat-2", "repeat-10", "repeat-x"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path) == tmp_path / "repeat-10"
