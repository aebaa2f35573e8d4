"""Draws how time and peak memory grow with tokens and with the vocabulary."""

from pathlib import Path
from typing import Any

MEASURES = {"seconds": "seconds, forward and backward", "peak_mb": "peak MB over the inputs"}
AXES = ("tokens", "vocabulary")


def plot(rows: list[dict[str, Any]], path: Path) -> Path:
    """One line of charts an op: each measure against each axis, the other one held. Returns `path`."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    growing = [row for row in rows if row["kind"] == "growth"]
    ops = sorted({row["op"] for row in growing})
    charts = [(axis, measure) for axis in AXES for measure in MEASURES]
    figure, cells = pyplot.subplots(
        len(ops), len(charts), figsize=(4 * len(charts), 3.2 * len(ops)), squeeze=False, layout="constrained"
    )
    for line, op in zip(cells, ops, strict=True):
        for cell, (axis, measure) in zip(line, charts, strict=True):
            for contender, points in sorted(series(growing, op, axis, measure).items()):
                cell.plot(*zip(*points, strict=True), marker="o", label=contender)
            cell.set(title=op, xlabel=axis, ylabel=MEASURES[measure], xlim=0, ylim=0)
            cell.set_visible(cell.has_data())  # not every op grows along every axis
    handles, labels = cells[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)))
    figure.savefig(path, dpi=110)
    return path


def series(
    rows: list[dict[str, Any]], op: str, axis: str, measure: str
) -> dict[str, list[tuple[float, float]]]:
    """Points (axis, measure) by contender, of those rows whose other sizes are the most frequent ones."""
    own = [row for row in rows if row["op"] == op and axis in row["shape"]]
    others = [tuple((k, v) for k, v in row["shape"].items() if k != axis) for row in own]
    held = max(set(others), key=others.count, default=None)
    found: dict[str, list[tuple[float, float]]] = {}
    for row, rest in zip(own, others, strict=True):
        if rest != held:
            continue
        for contender, figures in row["figures"].items():
            if measure in figures:
                found.setdefault(contender, []).append((row["shape"][axis], figures[measure]))
    return {contender: sorted(points) for contender, points in found.items()}


def over_time(samples: list[dict[str, Any]], measures: dict[str, str], path: Path) -> Path:
    """A chart for each measure against minutes, with one line for each of its values in a sample. Returns `path`."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, cells = pyplot.subplots(
        1, len(measures), figsize=(4 * len(measures), 3.2), squeeze=False, layout="constrained"
    )
    minutes = [sample["seconds"] / 60 for sample in samples]
    for cell, (name, words) in zip(cells[0], measures.items(), strict=True):
        for values in zip(*(sample[name] for sample in samples), strict=True):
            cell.plot(minutes, values)
        cell.set(xlabel="minutes", ylabel=words, xlim=0, ylim=0)
    figure.savefig(path, dpi=110)
    return path
