"""A run's metrics as charts: which measures share a chart, and the PNG of each."""

import io
import math
import re
from dataclasses import dataclass
from typing import Any

from alignkit import extras
from alignkit.report.record import Series

CHARTS: tuple[tuple[str, str, str], ...] = (
    ("loss", "Loss", r"loss"),
    ("margins", "Reward margin", r"rewards_margins"),
    ("accuracy", "Accuracy and calibration error", r"(.*_)?(accuracy|accuracies|ece)"),
    ("log_ratios", "Rewards (scaled log-ratios) and log-probs of the answers", r"rewards|logps|logits"),
    ("kl", "KL divergence", r"(.*_)?kl(_.*)?"),
    ("entropy", "Entropy", r"(.*_)?entropy"),
    ("answers", "The collapse guard's measures of drawn answers", r"answers_.*"),
    ("optimizer", "Learning rate and norm of the gradient", r"learning_rate|grad_norm"),
    ("method", "The method's own metrics", r".*"),
)
"""(file name, title, pattern of its measures) of each chart; a measure goes to the first that it matches."""
SIDES = r"_(chosen|rejected|samples|desirable|undesirable|before|limit)$"
"""End of a metric's name that tells apart the lines of one measure."""
HIDDEN = re.compile(r"(train_|valid_)?(epoch|num_tokens|num_input_tokens_seen|answers_sound)")
MOST_PANELS = 12
COLOURS = {"train": "#1f77b4", "valid": "#d95f02"}
SIDE_COLOURS = {"chosen": "#1b9e77", "desirable": "#1b9e77", "samples": "#1b9e77", "limit": "#c0392b"}
WIDTH, HEIGHT, COLUMNS, DPI = 4.6, 2.9, 3, 110
"""Inches of a panel, panels in a row, dots an inch."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a panel."""

    label: str
    part: str
    """train or valid."""
    side: str
    points: dict[int, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """An image of panels, one for each measure."""

    name: str
    title: str
    panels: dict[str, list[Line]]

    @property
    def description(self) -> str:
        """The last value of each line in words, for those who cannot see the image."""
        lines = (line for lines in self.panels.values() for line in lines)
        return f"{self.title} by step. Last values: " + "; ".join(map(_last, lines))


def charts_of(series: Series) -> list[Chart]:
    """The charts of a run's metrics, in the order of CHARTS. A panel shows training, validation, and both answers."""
    found: dict[str, dict[str, list[Line]]] = {name: {} for name, *_ in CHARTS}
    for name, points in sorted(series.items()):
        if HIDDEN.fullmatch(name) or all(map(math.isnan, points.values())):
            continue
        part, measure, side = _split(name)
        chart = next(key for key, _, pattern in CHARTS if re.fullmatch(pattern, measure))
        label = " ".join(filter(None, ({"train": "training", "valid": "validation"}[part], side)))
        found[chart].setdefault(measure, []).append(Line(label, part, side, points))
    return [
        Chart(name, title, dict(list(found[name].items())[:MOST_PANELS]))
        for name, title, _ in CHARTS
        if found[name]
    ]


def draw(chart: Chart) -> bytes:
    """The chart as PNG. Raises AlignkitError without matplotlib."""
    with extras.needed("report", purpose="a chart"):
        from matplotlib.figure import Figure  # an extra

    columns = min(COLUMNS, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), dpi=DPI, layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for (measure, lines), place in zip(chart.panels.items(), places, strict=False):
        for line in lines:
            _plot(place, line)
        place.set_title(measure.replace("_", " "), fontsize=10, loc="left")
        place.set_xlabel("step", fontsize=8)
        place.xaxis.get_major_locator().set_params(integer=True)
        place.tick_params(labelsize=8)
        place.grid(alpha=0.3)
        place.spines[["top", "right"]].set_visible(False)
        place.legend(fontsize=7, frameon=False)
    for place in places:  # those that are left over
        place.set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def _plot(place: Any, line: Line) -> None:
    steps = sorted(line.points)
    few = len(steps) <= 60
    place.plot(
        steps,
        [line.points[step] for step in steps],
        label=line.label,
        color=SIDE_COLOURS.get(line.side, COLOURS[line.part] if not line.side else "#7f7f7f"),
        linestyle="--" if line.part == "valid" and line.side else "-",
        marker="." if few else None,
        linewidth=1.2,
    )


def _split(name: str) -> tuple[str, str, str]:
    """(train or valid, measure, side) of a metric's name."""
    part, _, rest = name.removeprefix("full_").partition("_")
    if part not in COLOURS:
        part, rest = "train", name
    side = re.search(SIDES, rest)
    return part, rest[: side.start()] if side else rest, side[1] if side else ""


def _last(line: Line) -> str:
    return f"{line.label} {line.points[max(line.points)]:.4g}"
