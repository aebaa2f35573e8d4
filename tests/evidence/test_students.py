"""Which questions choose and measure students, and the rate of each method."""

from collections import Counter
from pathlib import Path

import pytest

from evidence import students
from evidence.harness import MODEL, Settings
from evidence.questions import ask
from evidence.students import HELD_OUT, METHODS, ONE_RATE, RATES, ROWS, choosing, measuring


def test_questions_that_choose_and_measure_differ_are_of_both_kinds_and_train_nobody() -> None:
    chooses, measures = choosing(Settings()), measuring(Settings())
    trained = {one.text for seed in (0, 1, 2, 100) for one in ask(ROWS, seed)}
    for asked in (chooses, measures):
        assert Counter(one.topic for one in asked) == {"sums": HELD_OUT / 2, "larger": HELD_OUT / 2}
        assert not trained & {one.text for one in asked}
    assert len({one.text for one in chooses + measures}) == 2 * HELD_OUT


def test_the_student_that_does_best_on_the_choosing_questions_gives_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def distil(_settings: Settings, method: str, seed: int, rate: float) -> students.Student:
        tried.append((method, seed, rate))
        return students.Student(rate, Path(), {}, rate)  # type: ignore[arg-type]

    monkeypatch.setattr(students, "_distil", distil)
    monkeypatch.setattr(students, "nll", lambda rate, asked: abs(rate - 1e-3) if asked else 0.0)
    found = students.distilled(Settings(), "KL", 2)
    assert found.rate == 1e-3
    assert tried == [*(("KL", 0, rate) for rate in RATES), ("KL", 2, 1e-3)]


@pytest.mark.parametrize(
    ("model", "method"), [("models/other", "KL"), (MODEL, "SinKD, exact plans, at 3e-4")]
)
def test_one_rate_is_taken_where_no_sweep_is(
    monkeypatch: pytest.MonkeyPatch, model: str, method: str
) -> None:
    def distil(_settings: Settings, _method: str, _seed: int, rate: float) -> students.Student:
        return students.Student(None, Path(), {}, rate)  # type: ignore[arg-type]

    monkeypatch.setattr(students, "_distil", distil)
    monkeypatch.setattr(students, "nll", lambda _model, _asked: 0.0)
    assert method in METHODS
    assert students.distilled(Settings(model=model), method, 0).rate == ONE_RATE[0]
