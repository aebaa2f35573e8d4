"""A trainer that ran out of memory says so, is not started again at the same place, and is told what fits."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from alignkit import estimate as library
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder, write_json
from alignkit.run.settled import read_kept
from alignkit_server.executors import oom
from alignkit_server.runner import memory, training
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.runner.step_services import JobFailedError, StepServices
from alignkit_server.runner.training import Ending, Start
from alignkit_server.tables import Job
from tests.server.runner.test_workflow import (  # noqa: F401 - fixtures
    folder,
    job_id,
    ledger,
    messages,
    services,
)
from tests.tiny import build_tiny_model


@pytest.fixture(autouse=True)
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control group's counter; nothing was killed so far."""
    path = tmp_path / "memory.events"
    path.write_text("low 0\noom 0\noom_kill 0\n")
    monkeypatch.setattr(oom, "_counters", lambda: iter([path]))
    return path


def end(job: str, start: Start = training.FIRST) -> Ending:
    return Ending(*training.watch(job, 1, start))


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "OSError: [Errno 12] Cannot allocate memory",
        f"node 1: {oom.KILLED_LINE}",
    ],
)
def test_a_log_that_says_so_is_believed(
    services: StepServices,  # noqa: F811
    folder: RunFolder,  # noqa: F811
    job_id: str,  # noqa: F811
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "what_fits", lambda _: "Take less.")
    folder.log.write_text(f"Step 1\n{line}\n")
    with pytest.raises(JobFailedError, match=r"ran out of memory: its log says .*\. Take less\.") as caught:
        end(job_id)
    assert caught.value.code == "out_of_memory"


def test_the_kernels_count_is_believed_and_a_plain_kill_is_not_taken_for_it(
    services: StepServices,  # noqa: F811
    folder: RunFolder,  # noqa: F811
    job_id: str,  # noqa: F811
    counter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "what_fits", lambda _: "Take less.")
    memory.remember(folder)
    folder.log.write_text("worker died with <Signals.SIGKILL: 9>\n")
    assert end(job_id) == Ending("killed", 0)
    with pytest.raises(JobFailedError, match="died 4 times without progress by SIGKILL"):
        end(job_id, Start(3, 0, 3))
    counter.write_text("low 0\noom 1\noom_kill 1\n")
    with pytest.raises(JobFailedError, match=r"the system killed it \(out of memory\)"):
        end(job_id)


def test_a_count_that_grew_for_another_process_is_not_believed(
    services: StepServices,  # noqa: F811
    folder: RunFolder,  # noqa: F811
    job_id: str,  # noqa: F811
    counter: Path,
) -> None:
    """An engine in the same container was killed while a trainer ended for a reason of its own."""
    memory.remember(folder)
    counter.write_text("low 0\noom 1\noom_kill 1\n")
    folder.log.write_text("Step 1\nThe training process ended with status 1\n")
    assert end(job_id) == Ending("killed", 0)
    folder.log.write_text("exitcode: -9\nThe training process ended with status 1\n")
    assert memory.ran_out(folder) == "the system killed it (out of memory)", (
        "its launcher's status hides the kill"
    )


def test_without_a_count_a_second_kill_at_the_same_place_is_the_last(
    services: StepServices,  # noqa: F811
    folder: RunFolder,  # noqa: F811
    job_id: str,  # noqa: F811
    counter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "what_fits", lambda _: "Take less.")
    counter.unlink()
    memory.remember(folder)
    folder.log.write_text("The training process was ended by SIGKILL\n")
    assert end(job_id) == Ending("killed", 0)
    with pytest.raises(
        JobFailedError, match=r"out of memory: it was ended by SIGKILL twice at the same step\. Take"
    ):
        end(job_id, training.FIRST.after(0))
    folder.log.write_text("The training process ended with status -11\n")
    assert end(job_id, training.FIRST.after(0)) == Ending("killed", 0)


def test_a_run_that_got_further_may_go_on(
    services: StepServices,  # noqa: F811
    folder: RunFolder,  # noqa: F811
    job_id: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RunFolder, "last_checkpoint", lambda *_: folder.checkpoints / "checkpoint-4")
    folder.log.write_text("Cannot allocate memory\n")
    assert end(job_id) == Ending("killed", 4)
    monkeypatch.setattr(memory, "what_fits", lambda _: "Take less.")
    with pytest.raises(JobFailedError, match="ran out of memory"):
        end(job_id, Start(1, 4, 1))


def test_a_trainer_that_says_so_itself_is_told_what_fits_too(
    services: StepServices,  # noqa: F811
    folder: RunFolder,  # noqa: F811
    job_id: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "what_fits", lambda _: "Take less.")
    error = {"code": "out_of_memory", "message": "Out of memory."}
    write_json(folder.result, {"status": "failed", "error": error})
    with pytest.raises(JobFailedError, match=r"Out of memory\. Take less\."):
        end(job_id)


def test_of_another_machine_nothing_is_estimated(
    services: StepServices,  # noqa: F811
    folder: RunFolder,  # noqa: F811
    job_id: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services.executor, "anywhere", True)
    folder.log.write_text(f"node 0: {oom.KILLED_LINE}\n")
    with pytest.raises(JobFailedError, match=r"its memory was used up'\. Lower micro_batch_size"):
        end(job_id)


def test_what_fits_is_the_largest_that_the_estimator_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tiny_model(tmp_path / "model")
    recipe: dict[str, Any] = {
        "model": {"path": str(tmp_path / "model")},
        "data": {"train": "unused", "max_length": 256},
        "method": {"type": "supervised"},
        "training": {"batch_size": 8, "max_steps": 1},
        "output_dir": "unused",
    }
    assert "By estimate micro_batch_size 8 would fit" in memory.what_fits(recipe)
    asked = []

    def only_short(found: Any, lengths: Any, **_: Any) -> Any:
        asked.append(found.data.max_length)
        return None if found.data.max_length > 64 else library.estimate(found, lengths)

    monkeypatch.setattr(library, "smallest", only_short)
    assert "with max_length 64 would fit" in memory.what_fits(recipe)
    assert asked == [256, 128, 64]
    monkeypatch.setattr(library, "smallest", lambda *_, **__: None)
    assert memory.what_fits(recipe).startswith("Lower micro_batch_size or max_length")


def test_both_kinds_of_counters_are_read(counter: Path) -> None:
    counter.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert oom.oom_kills() == 3
    counter.write_text("nothing\n")
    assert oom.oom_kills() is None
    counter.unlink()
    assert oom.oom_kills() is None


@pytest.fixture
def of_four_rows(ledger: JobLedger, job_id: str, tmp_path: Path) -> str:  # noqa: F811
    """The job with a recipe whose forwards take four rows."""
    recipe = {
        "model": {"path": "m"},
        "data": {"train": "rows.jsonl"},
        "method": {"type": "f_dpo"},
        "training": {"batch_size": 8, "micro_batch_size": 4},
        "output_dir": str(tmp_path / "x"),
    }
    with ledger.database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(recipe=Recipe.parse(recipe).model_dump()))
    return job_id


def test_a_run_that_the_kernel_killed_starts_once_more_with_half_the_rows(
    ledger: JobLedger,  # noqa: F811
    folder: RunFolder,  # noqa: F811
    of_four_rows: str,
    counter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory.remember(folder)
    counter.write_text("low 0\noom 1\noom_kill 1\n")
    assert end(of_four_rows) == end(of_four_rows) == Ending("starved", 0), "and a repeat halves once"
    assert read_kept(folder)["out_of_memory"] == {"micro_batch_size": 2, "eval_batch_size": 2}
    told = [message for message in messages(ledger, of_four_rows) if "ran out of memory" in message]
    assert told == [
        (
            "The training process ran out of memory with micro_batch_size 4 (the system killed it (out of memory)); "
            "it resumes with 2"
        )
    ]
    monkeypatch.setattr(memory, "what_fits", lambda _: "Take less.")
    with pytest.raises(JobFailedError, match="ran out of memory"):
        end(of_four_rows, Start(1, 0, 0))
