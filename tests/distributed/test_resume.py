"""A run that is killed and goes on ends as one that was left alone."""

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.run.folder import RunFolder
from tests.distributed.lab import Case
from tests.distributed.launching import METHODS, Run, build_inputs, launch, runs_under, write_recipe

STEPS = 6
SAVE_STEPS = 2
ROWS = 21
# sums since the last log, an evaluation between saves, epochs of three steps whose last is short
SCHEDULE: dict[str, Any] = {
    "max_steps": STEPS,
    "save_steps": SAVE_STEPS,
    "logging_steps": 3,
    "eval_steps": 3,
    "eval_on_start": True,
}
EVERYTHING = [Case(method, kind) for method in METHODS for kind in ("lora", "full", "adapter")]
SAMPLED = {"d2o": {"resample_every": 3, "ref_refresh_every": 4, "samples_per_prompt": 2, "max_tokens": 4}}
DRAWS = {"single", "ddp", "zero1", "zero2"}
"""What D2O can draw from its policy under."""
ONE_EACH = [Case(method, ("lora", "full")[turn % 2]) for turn, method in enumerate(METHODS)]
CHANGES = [("single", "ddp"), ("ddp", "single"), ("fsdp2", "fsdp2-alone"), ("fsdp2-alone", "fsdp2")]


def start(place: str, runs: Sequence[Path | str]) -> subprocess.CompletedProcess[str]:
    """Under a configuration with two processes; `single` and `…-alone` have one."""
    processes = 1 if place.endswith(("single", "-alone")) else 2
    return launch(place.removesuffix("-alone"), runs, processes=processes, timeout=1200)


class Lab:
    """Of each case a run that was killed and went on, and one that was left alone; of a place all at once."""

    def __init__(self, folder: Path) -> None:
        self._inputs = build_inputs(folder, rows=ROWS)
        self._outputs: dict[tuple[str, str], str] = {}

    def pair(
        self, place: str, wanted: Sequence[Case], case: Case, goes_on: str | None = None
    ) -> tuple[Run, Run]:
        """The killed one and the other, which is under `goes_on` where the killed one goes on there."""
        goes_on = goes_on or place
        wanted = [one for one in wanted if runs_under(one.method, place) and runs_under(one.method, goes_on)]
        if case not in wanted:
            pytest.skip(f"{case.method} is refused under {place} or {goes_on}")
        if (place, goes_on) not in self._outputs:
            (self._inputs / f"{place}-{goes_on}").mkdir()
            self._outputs[place, goes_on] = self._make(place, goes_on, wanted)
        runs = [Run(self._path(place, goes_on, case, name)) for name in ("killed", "alone")]
        for run in runs:
            assert (run.folder / "result.json").exists(), self._outputs[place, goes_on][-4000:]
        return runs[0], runs[1]

    def _make(self, place: str, goes_on: str, wanted: Sequence[Case]) -> str:
        first, second = [], []
        for case in wanted:
            killed, alone = (
                self._write(self._path(place, goes_on, case, name), place, goes_on, case)
                for name in ("killed", "alone")
            )
            first.append(f"{killed}:kill={random.randrange(SAVE_STEPS, STEPS)}")
            (first if place == goes_on else second).append(str(alone))
            second.append(f"{killed}:resume")
        return start(place, first).stdout + start(goes_on, second).stdout

    def _write(self, output: Path, place: str, goes_on: str, case: Case) -> Path:
        dropout = 0.1 if place == "single" == goes_on and case.kind == "lora" else 0.0
        drawn = SAMPLED.get(case.method) if place in DRAWS and place == goes_on else None
        return write_recipe(
            self._inputs, output, case.method, kind=case.kind, dropout=dropout, options=drawn, **SCHEDULE
        )

    def _path(self, place: str, goes_on: str, case: Case, name: str) -> Path:
        return self._inputs / f"{place}-{goes_on}" / f"{case}-{name}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("resume"), rows=ROWS)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("resumes"))


def damage(folder: RunFolder) -> None:
    """One bit of the newest checkpoint's largest file."""
    newest = folder.last_checkpoint()
    assert newest is not None
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def assert_the_same(one: Run, other: Run, rel: float = 0.0) -> None:
    """Weights, optimizer state and logs; bit for bit unless `rel` > 0."""
    for found, expected in ((one.weights(), other.weights()), (one.optimizer(), other.optimizer())):
        assert found.keys() == expected.keys()
        assert found
        for name, value in found.items():
            torch.testing.assert_close(
                value, expected[name], rtol=rel, atol=rel, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert len(one.history()) == len(other.history())
    for entry, expected_entry in zip(one.history(), other.history(), strict=True):
        assert entry == (pytest.approx(expected_entry, rel=rel) if rel else expected_entry)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_exactly(inputs: Path) -> None:
    """Dropout, so that random states count; the newest checkpoint is damaged, so that the one before it is used;
    none is kept of the best step, which would come between them.

    Beside it one killed when its last step, in the middle of an epoch, was made: it makes no other.
    """
    step = random.randrange(2 * SAVE_STEPS, STEPS)
    killed, alone, done, whole = (
        write_recipe(
            inputs,
            inputs / name,
            "f_dpo",
            dropout=0.1,
            **{**SCHEDULE, "max_steps": steps, "keep_best": False},
        )
        for name, steps in (("killed", STEPS), ("alone", STEPS), ("done", 5), ("whole", 5))
    )
    first = start("single", [alone, whole, f"{killed}:kill={step}", f"{done}:kill=finish"])
    assert first.returncode == 0, first.stdout[-3000:]
    damage(RunFolder(inputs / "killed"))
    second = start("single", [f"{killed}:resume", f"{done}:resume"])
    assert second.returncode == 0, second.stdout[-3000:]
    assert_the_same(Run(inputs / "killed"), Run(inputs / "alone"))
    assert_the_same(Run(inputs / "done"), Run(inputs / "whole"))
    messages = (inputs / "killed" / "events.jsonl").read_text(encoding="utf-8")
    assert f"checkpoint-{step // SAVE_STEPS * SAVE_STEPS} is damaged" in messages
    assert f"Training resumed after step {(step // SAVE_STEPS - 1) * SAVE_STEPS}" in messages


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_every_method_goes_on_exactly(lab: Lab, case: Case) -> None:
    assert_the_same(*lab.pair("single", EVERYTHING, case))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", EVERYTHING, ids=str)
@pytest.mark.parametrize("config", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_two_processes_go_on(lab: Lab, config: str, case: Case) -> None:
    assert_the_same(*lab.pair(config, EVERYTHING, case), rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", ONE_EACH, ids=str)
@pytest.mark.parametrize("change", CHANGES, ids="-to-".join)
def test_another_number_of_processes_goes_on(lab: Lab, change: tuple[str, str], case: Case) -> None:
    """Sums are then made in another order: weights within 1e-4, relative norm, losses within 1e-5."""
    killed, alone = lab.pair(change[0], ONE_EACH, case, change[1])
    assert len(alone.losses()) == 1 + STEPS // SCHEDULE["logging_steps"]  # of the first step too
    assert killed.losses()[-1] == pytest.approx(alone.losses()[-1], rel=1e-5)
    for key, weight in alone.weights().items():
        assert torch.dist(killed.weights()[key], weight) <= 1e-4 * weight.norm(), key


@pytest.mark.slow
def test_a_process_that_begins_late_trains_in_the_same_folder(inputs: Path) -> None:
    path = write_recipe(inputs, inputs / "late", "supervised", kind="lora", **SCHEDULE)
    done = start("ddp", [f"{path}:late"])
    assert RunFolder(inputs / "late").read_result() is not None, done.stdout[-3000:]
    assert not list((inputs / "late").glob("repeat-*"))
    assert (inputs / "late" / "checkpoints" / f"checkpoint-{STEPS}" / "logging_1.pt").is_file()


@pytest.mark.slow
def test_shares_of_two_are_not_taken_up_by_one(inputs: Path) -> None:
    path = write_recipe(inputs, inputs / "shares", "supervised", kind="full", **SCHEDULE)
    assert start("zero2", [f"{path}:kill=3"]).returncode == 0
    done = start("zero2-alone", [f"{path}:resume"])
    result = RunFolder(path.with_suffix("")).read_result()
    assert result is not None, done.stdout[-3000:]
    assert result["error"]["message"] == (
        "checkpoint-3 resumes only with 2 processes, because under zero2 each wrote its own share; found 1"
    )
