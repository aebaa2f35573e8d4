"""Which metrics share a chart, and its image."""

import importlib.util

import pytest

from alignkit.errors import AlignkitError
from alignkit.report.charts import Chart, charts_of, draw
from alignkit.report.run_report import draw_all

SERIES = {
    "train_loss": {1: 0.7, 2: 0.5},
    "valid_loss": {2: 0.6},
    "train_rewards_margins": {1: 0.0, 2: 1.0},
    "valid_rewards_accuracies": {2: 0.75},
    "train_rewards_chosen": {1: 0.1, 2: 0.2},
    "train_rewards_rejected": {1: -0.1, 2: -0.2},
    "valid_answers_kl": {0: 0.0, 2: 0.3},
    "valid_answers_reference_logp": {0: -1.0, 2: -1.2},
    "valid_answers_reference_logp_limit": {0: -3.5, 2: -3.5},
    "valid_answers_sound": {2: 1.0},
    "train_entropy": {1: 2.0, 2: 1.9},
    "train_grad_norm": {1: 1.0, 2: 1.1},
    "train_epoch": {1: 0.1, 2: 0.2},
    "train_plan_residual": {1: 1e-3, 2: 1e-4},
}


def by_name(series: dict[str, dict[int, float]]) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts_of(series)}


def test_every_measure_is_in_the_chart_of_its_kind() -> None:
    found = {name: list(chart.panels) for name, chart in by_name(SERIES).items()}
    assert found == {
        "loss": ["loss"],
        "margins": ["rewards_margins"],
        "accuracy": ["rewards_accuracies"],
        "log_ratios": ["rewards"],
        "kl": ["answers_kl"],
        "entropy": ["entropy"],
        "answers": ["answers_reference_logp"],
        "optimizer": ["grad_norm"],
        "method": ["plan_residual"],
    }


def test_training_and_validation_and_both_answers_share_a_panel() -> None:
    charts = by_name(SERIES)
    assert [line.label for line in charts["loss"].panels["loss"]] == ["training", "validation"]
    assert [line.label for line in charts["log_ratios"].panels["rewards"]] == [
        "training chosen",
        "training rejected",
    ]


def test_a_metric_without_a_finite_value_has_no_panel() -> None:
    assert charts_of({"train_loss": {1: float("nan")}}) == []


def test_a_chart_is_a_png_and_is_described_in_words() -> None:
    chart = by_name(SERIES)["loss"]
    assert draw(chart).startswith(b"\x89PNG\r\n\x1a\n")
    assert chart.description == "Loss by step. Last values: training 0.5; validation 0.6"


def test_without_matplotlib_there_are_no_charts_and_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else real(name, *a)
    )
    charts, sentence = draw_all(charts_of(SERIES))
    assert charts == []
    assert sentence == (
        "The report has no charts, since drawing them needs the package matplotlib, which is not installed: "
        "pip install 'alignkit[report]'"
    )


def test_drawing_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(AlignkitError, match=r"alignkit\[report\]"):
        draw(by_name(SERIES)["loss"])
