"""Experiments and their committed results: complete, repeatable, and written down."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence import align_groups, harness
from evidence.__main__ import experiments, markdown, options, seeds_run
from evidence.harness import PLOTS, RESULTS, Evidence, Found, Settings, gather, interval, place
from evidence.questions import STYLES, ask
from evidence.repeat import TOLERANCE, repeat
from evidence.small_runs import named
from tests.tree import ROOT

ALL = list(experiments())
COMMITTED = sorted(path.stem for path in RESULTS.glob("*.json"))


def ids(evidence: Evidence) -> str:
    return evidence.name


@pytest.mark.parametrize("evidence", ALL, ids=ids)
def test_what_came_out_is_said_once_it_has_been_run(evidence: Evidence) -> None:
    assert bool(evidence.outcome) == ((seeds_run(evidence) or 0) >= evidence.seeds)


def test_each_result_on_another_model_is_told() -> None:
    written = {(path.parent.name, path.stem) for path in RESULTS.glob("*/*.json")}
    assert written == {(model, one.name) for one in ALL for model in one.elsewhere}


def test_a_result_on_another_model_has_its_own_place(doubling: Any) -> None:
    on_model = replace(doubling[0], needs_model=True)
    assert place(on_model, Settings()) == (RESULTS, PLOTS)
    assert place(on_model, Settings(model="models/other")) == (RESULTS / "other", PLOTS / "other")
    assert place(doubling[0], Settings(model="models/other")) == (RESULTS, PLOTS)


def test_the_command_on_another_model_names_the_arms_that_were_run() -> None:
    evidence = replace(ALL[0], arms=("one", "the other"))
    assert options(evidence, {"the other": {}}, 1) == " --model FOLDER --seeds 1 --arms 'the other'"
    assert options(evidence, {"the other": {}, "one": {}}, 2) == " --model FOLDER --seeds 2"


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert page == markdown(), "python -m evidence --markdown > docs/evidence.md"


@pytest.mark.parametrize("evidence", [one for one in ALL if one.outcome], ids=ids)
def test_the_readme_gives_the_verdict_of_each_option(evidence: Evidence) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    link = f"docs/evidence.md#{evidence.name.replace('_', '-')}"
    verdicts = re.findall(rf"\[(as claimed|in part|not as claimed)\]\({link}\)", readme)
    assert verdicts or f"({link})" not in readme
    assert all(evidence.outcome.lower().startswith(verdict) for verdict in verdicts)


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_result_says_how_it_was_made(name: str) -> None:
    evidence = next(one for one in ALL if one.name == name)
    written = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert written["settings"]["smoke"] is False
    assert written["versions"].keys() == {"torch", "transformers", "trl", "peft"}
    assert written["machines"]
    assert all(one["cores"] > 0 for one in written["machines"])
    assert set(written["runs"]) <= set(evidence.arms)
    assert (PLOTS / f"{name}.png").is_file() or not evidence.outcome


@pytest.mark.parametrize("evidence", ALL, ids=ids)
def test_no_two_arms_share_a_folder(evidence: Evidence) -> None:
    assert len(set(map(named, evidence.arms))) == len(evidence.arms)


@pytest.fixture
def doubling() -> tuple[Evidence, list[tuple[str, int]]]:
    """An experiment that records its calls."""
    calls: list[tuple[str, int]] = []

    def measure(arm: str, seed: int, _settings: Settings) -> dict[str, Any]:
        calls.append((arm, seed))
        return {"value": 2.0 * seed + (arm == "b"), "curve": [1, 2]}

    return Evidence("doubling", "Doubles.", ("a", "b"), measure, lambda _found, _axis: None), calls


def test_a_call_runs_only_what_the_result_lacks(doubling: Any, tmp_path: Path) -> None:
    evidence, calls = doubling
    gather(evidence, 2, Settings(), tmp_path)
    found = gather(evidence, 3, Settings(), tmp_path)
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 2), ("b", 2)]
    assert found.values("b", "value") == [1.0, 3.0, 5.0]


def test_a_result_names_every_machine_that_measured_a_part(
    doubling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence, _ = doubling
    for processor, seeds in (("one", 1), ("two", 2), ("one", 3)):
        monkeypatch.setattr(harness, "_machine", lambda name=processor: {"processor": name})
        gather(evidence, seeds, Settings(), tmp_path)
    written = json.loads((tmp_path / "doubling.json").read_text(encoding="utf-8"))
    assert written["machines"] == [{"processor": "one"}, {"processor": "two"}]


def test_arms_that_were_not_asked_for_are_not_run(doubling: Any, tmp_path: Path) -> None:
    evidence, calls = doubling
    gather(evidence, 1, Settings(), tmp_path, ["b"])
    assert calls == [("b", 0)]


def test_a_result_of_other_settings_is_made_anew(doubling: Any, tmp_path: Path) -> None:
    evidence, calls = doubling
    gather(evidence, 1, Settings(smoke=True), tmp_path)
    gather(evidence, 1, Settings(), tmp_path)
    assert len(calls) == 4


def test_a_paired_difference_compares_equal_seeds() -> None:
    found = Found({"a": {0: {"x": 1.0}, 1: {"x": 5.0}}, "b": {1: {"x": 4.0}, 0: {"x": 0.0}}})
    assert found.paired("a", "b", "x") == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_an_interval_of_three_seeds_is_students() -> None:
    bounds = interval([1.0, 2.0, 3.0])
    assert bounds["high"] - bounds["mean"] == pytest.approx(4.303 / 3**0.5, rel=1e-3)


def test_a_repeat_tells_a_number_that_differs_by_more_than_a_tenth(doubling: Any, tmp_path: Path) -> None:
    evidence, _ = doubling
    gather(evidence, 2, Settings(), tmp_path)
    path = tmp_path / "doubling.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    written["runs"]["a"]["1"]["value"] = 2.0 * (1 + 2 * TOLERANCE)
    path.write_text(json.dumps(written), encoding="utf-8")
    compared = repeat(evidence, Settings(), seeds=2, arms=evidence.arms, results=tmp_path)
    assert [(one.arm, one.seed) for one in compared if not one.agrees] == [("a", 1)]


def test_the_smallest_experiment_repeats_its_committed_numbers() -> None:
    arms = align_groups.EVIDENCE.arms[:1]
    compared = repeat(align_groups.EVIDENCE, Settings(), seeds=1, arms=arms)
    assert compared
    assert all(one.agrees for one in compared), compared


def test_held_out_questions_are_in_no_training_set() -> None:
    trained = {one.text for seed in range(3) for one in ask(600, seed)}
    assert not trained & {one.text for one in ask(100, 0, held_out=True)}


def test_a_right_and_a_wrong_answer_differ() -> None:
    for one in ask(200, 0):
        assert STYLES["plain"](one) != STYLES["wrong"](one)
