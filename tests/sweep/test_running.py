"""A sweep's runs with a stand-in for the trainer: the halving, failures, devices, interruption and resumption."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.errors import DataError, RecipeError
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.sweep import sweep_of
from alignkit.sweep.folder import SweepFolder, frontier_of, unbeaten
from alignkit.sweep.report import write_sweep_report
from alignkit.sweep.running import InterruptedSweepError, Sweep
from tests.preference import write_pairs

STEPS = 8
HALVING = {"metric": "valid_loss", "goal": "min", "rungs": [2, 4]}


def values(folder: Path, **sweep: Any) -> dict[str, Any]:
    data = write_pairs(folder / "pairs.jsonl", 4)
    return {
        "model": {"path": "tiny"},
        "data": {"train": str(data), "validation": str(data)},
        "method": {"type": "f_dpo"},
        "training": {"max_steps": STEPS},
        "output_dir": str(folder / "sweep"),
        "sweep": sweep or {"method.beta": [0.1, 0.2, 0.3, 0.4]},
    }


class Trainer:
    """A stand-in for `alignkit train`: writes what a run writes. Its valid_loss is beta, its margin 1 / beta."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int | None, bool]] = []
        self.environments: list[dict[str, str]] = []
        self.fails: set[float] = set()
        self.dies: set[float] = set()
        self.at_once, self.most = 0, 0
        self.before: Any = lambda: None
        self._lock = threading.Lock()

    def __call__(self, command: Sequence[str], _log: Path, environment: dict[str, str]) -> Any:
        given = Path(next(part for part in command if part.endswith("given.yaml")))
        until = yaml.safe_load(command[-1].partition("=")[2])
        with self._lock:
            self.started.append((given.parent.name, until, "--resume" in command))
            self.environments.append(environment)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        return Process(self, Recipe.load(given), until)

    def train(self, recipe: Recipe, until: int | None) -> int:
        self.before()
        folder = RunFolder(Path(recipe.output_dir))
        folder.write_recipe(recipe)
        beta = recipe.method.beta  # type: ignore[attr-defined]
        with self._lock:
            self.at_once -= 1
        if beta in self.dies:
            return -9
        if beta in self.fails:
            folder.emit("no", level="error")
            write(
                folder,
                {"status": "failed", "error": {"code": "collapse", "message": "The answers collapsed"}},
            )
            return 1
        step = until or STEPS
        (folder.checkpoints / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
        metrics = {"valid_loss": beta, "valid_rewards_margins": 1 / beta, "valid_answers_kl": 1 - beta}
        folder.emit("", type="metrics", data={"step": step, **metrics})
        write(folder, {"status": "paused" if until else "succeeded", "steps": step})
        return 0


def write(folder: RunFolder, result: dict[str, Any]) -> None:
    folder.result.write_text(json.dumps(result), encoding="utf-8")


class Process:
    """A process that trains when it is waited for."""

    pid = 2**22 + 1  # no process has it

    def __init__(self, trainer: Trainer, recipe: Recipe, until: int | None) -> None:
        self.run = (trainer, recipe, until)

    def wait(self) -> int:
        trainer, recipe, until = self.run
        return trainer.train(recipe, until)


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


def swept(folder: SweepFolder, trainer: Trainer, **options: Any) -> dict[str, str]:
    rows = Sweep(folder, start=trainer, **options).run()
    return {row.point.name: row.status for row in rows}


def test_every_point_runs_once_with_its_own_recipe(tmp_path: Path, trainer: Trainer) -> None:
    sweep = {"method.beta": [0.1, 0.2], "method.divergence": ["reverse_kl", "js_divergence"]}
    folder = SweepFolder.open(values(tmp_path, **sweep))
    assert set(swept(folder, trainer).values()) == {"succeeded"}
    found = [Recipe.load(folder.path / point.name / "given.yaml") for point in folder.spec.points()]
    assert [(one.method.beta, one.method.divergence) for one in found] == [  # type: ignore[attr-defined]
        (0.1, "reverse_kl"),
        (0.1, "js_divergence"),
        (0.2, "reverse_kl"),
        (0.2, "js_divergence"),
    ]
    assert len(trainer.started) == 4


def test_the_worse_half_stops_at_each_rung_and_says_why(tmp_path: Path, trainer: Trainer) -> None:
    sweep = {"method.beta": [0.4, 0.1, 0.3, 0.2], "halving": HALVING}
    folder = SweepFolder.open(values(tmp_path, **sweep))
    statuses = swept(folder, trainer)
    assert list(statuses.values()) == ["stopped", "succeeded", "stopped", "stopped"]
    reasons = [row.reason for row in folder.rows()]
    assert reasons[0] == "valid_loss 0.4 at step 2: place 4 of 4, of which 2 went on"
    assert reasons[3] == "valid_loss 0.2 at step 4: place 2 of 2, of which 1 went on"
    assert trainer.started == [
        *((f"point-00{number}", 2, False) for number in (1, 2, 3, 4)),
        ("point-002", 4, True),
        ("point-004", 4, True),
        ("point-002", None, True),
    ]


def test_a_run_that_fails_or_dies_does_not_end_the_others(tmp_path: Path, trainer: Trainer) -> None:
    trainer.fails, trainer.dies = {0.1}, {0.2}
    told: list[str] = []
    folder = SweepFolder.open(values(tmp_path))
    statuses = swept(folder, trainer, report=told.append)
    assert list(statuses.values()) == ["failed", "failed", "succeeded", "succeeded"]
    assert told[0] == "point-001 (beta 0.1) failed at step 0: The answers collapsed"
    assert "ended with status -9 and no result" in told[1]


def test_failed_runs_are_not_compared(tmp_path: Path, trainer: Trainer) -> None:
    trainer.fails = {0.1, 0.2}
    folder = SweepFolder.open(values(tmp_path, **{"method.beta": [0.1, 0.2, 0.3], "halving": HALVING}))
    assert list(swept(folder, trainer).values()) == ["failed", "failed", "succeeded"]


def test_a_metric_that_no_run_reports_ends_the_sweep_and_names_those_there_are(
    tmp_path: Path, trainer: Trainer
) -> None:
    halving = HALVING | {"metric": "valid_los"}
    folder = SweepFolder.open(values(tmp_path, **{"method.beta": [0.1, 0.2], "halving": halving}))
    with pytest.raises(
        RecipeError, match=r"no run reported valid_los up to step 2; reported were .*valid_loss"
    ):
        swept(folder, trainer)
    assert all(until == 2 for _, until, _ in trainer.started)


def test_a_metric_of_held_out_rows_needs_some(tmp_path: Path) -> None:
    given = values(tmp_path, **{"method.beta": [0.1, 0.2], "halving": HALVING})
    del given["data"]["validation"]
    with pytest.raises(RecipeError, match=r"sweep\.halving\.metric: valid_loss needs data\.validation"):
        SweepFolder.open(given)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"method.betta": [1, 2]}, r"sweep\.method\.betta: unknown key.*beta"),
        ({"methot.beta": [1, 2]}, r"sweep\.methot: unknown key|sweep\.methot\.beta"),
        ({"method.beta": [0.1, -1]}, r"sweep\.method\.beta: expected greater than 0"),
        ({"method.beta.more": [1]}, r"sweep\.method\.beta"),
        ({"training.max_steps.more": [1]}, r"max_steps is a value, not a section"),
    ],
)
def test_a_field_that_does_not_exist_is_refused_before_anything_is_made(
    tmp_path: Path, sweep: dict[str, Any], message: str
) -> None:
    given = values(tmp_path, **sweep)
    with pytest.raises(RecipeError, match=message):
        SweepFolder.open(given)
    assert not (tmp_path / "sweep").exists()


def test_as_many_runs_as_devices_at_one_time_each_on_its_own(tmp_path: Path, trainer: Trainer) -> None:
    barrier = threading.Barrier(2, timeout=20)
    trainer.before = barrier.wait
    folder = SweepFolder.open(values(tmp_path))
    swept(folder, trainer, devices=["0", "1"])
    assert trainer.most == 2
    assert {environment["CUDA_VISIBLE_DEVICES"] for environment in trainer.environments} == {"0", "1"}


def test_an_interrupted_sweep_starts_no_other_run_and_goes_on_later(tmp_path: Path, trainer: Trainer) -> None:
    folder = SweepFolder.open(values(tmp_path))
    sweep = Sweep(folder, start=trainer)
    trainer.before = sweep.interrupt
    with pytest.raises(InterruptedSweepError, match="the same command resumes it"):
        sweep.run()
    assert len(trainer.started) == 1
    trainer.before = lambda: None
    again = SweepFolder.open(values(tmp_path))
    assert set(swept(again, trainer).values()) == {"succeeded"}
    assert len(trainer.started) == 4


def test_a_finished_sweep_runs_nothing_again(tmp_path: Path, trainer: Trainer) -> None:
    sweep = {"method.beta": [0.1, 0.2], "halving": HALVING}
    first = swept(SweepFolder.open(values(tmp_path, **sweep)), trainer)
    count = len(trainer.started)
    assert swept(SweepFolder.open(values(tmp_path, **sweep)), trainer) == first
    assert len(trainer.started) == count


def test_another_sweep_in_the_folder_is_refused(tmp_path: Path) -> None:
    SweepFolder.open(values(tmp_path))
    with pytest.raises(RecipeError, match="holds a sweep with another sweep"):
        SweepFolder.open(values(tmp_path, **{"method.beta": [1.0]}))


def test_a_folder_without_a_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the folder of a sweep"):
        SweepFolder.read(tmp_path)


def test_the_frontier_is_of_the_runs_that_no_other_beats(tmp_path: Path, trainer: Trainer) -> None:
    folder = SweepFolder.open(values(tmp_path, **{"method.beta": [0.5, 0.25, 0.125]}))
    swept(folder, trainer)
    points = list(frontier_of(folder.rows()))
    assert [(kl, reward) for _, kl, reward in points] == [(0.5, 2.0), (0.75, 4.0), (0.875, 8.0)]
    assert unbeaten(points) == points
    worse = (points[0][0], 0.8, 1.0)
    assert worse not in unbeaten([*points, worse])


def test_the_report_shows_values_reasons_and_the_frontier_as_text(tmp_path: Path, trainer: Trainer) -> None:
    trainer.fails = {0.4}
    folder = SweepFolder.open(values(tmp_path, **{"method.beta": [0.1, 0.2, 0.4], "halving": HALVING}))
    swept(folder, trainer)
    page = write_sweep_report(SweepFolder.read(folder.path)).read_text(encoding="utf-8")
    assert "The answers collapsed" in page
    assert "place 2 of 2" in page
    assert "Reward against KL" in page
    assert "<script" not in page
    assert str(tmp_path) not in page


def test_a_sweep_section_is_data_to_a_plain_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="sweep: unknown key"):
        Recipe.parse(values(tmp_path))


def test_sections_are_kept_as_they_were_given() -> None:
    given = {"method.beta": [0.1], "halving": HALVING | {"keep": 0.5}}
    assert sweep_of(given).as_json() == given
