"""The report of a sweep, report.html: its table, and the frontier of reward against KL."""

import io
from collections import Counter
from pathlib import Path

from alignkit import extras
from alignkit.errors import AlignkitError
from alignkit.report import page
from alignkit.report.record import shown
from alignkit.sweep.folder import Row, SweepFolder, frontier_of, unbeaten
from alignkit.sweep.points import HALVING, SweepSpec

FrontierPoint = tuple[Row, float, float]


def write_sweep_report(folder: SweepFolder) -> Path:
    """Write report.html into the sweep's folder and return its path; an earlier one is replaced."""
    path = folder.path / "report.html"
    page.put_page(path, sweep_page(folder.path.resolve().name, folder.spec, folder.rows()))
    return path


def sweep_page(name: str, spec: SweepSpec, rows: list[Row]) -> str:
    """Render the report of a sweep with this name: an HTML page of one file."""
    points = list(frontier_of(rows))
    best = unbeaten(points)
    statuses = Counter(row.status for row in rows)
    return page.render(
        "sweep.html",
        name=name,
        rows=rows,
        jobs=any(row.job for row in rows),
        options=list(spec.options),
        metrics=table_metrics(spec, rows),
        counts=", ".join(f"{count} {status}" for status, count in statuses.items()),
        halving=shown(spec.as_json().get(HALVING)),
        frontier=[(*point, point in best) for point in sorted(points, key=lambda point: point[1])],
        image=_image(points, best) if len(points) > 1 else None,
    )


def table_metrics(spec: SweepSpec, rows: list[Row]) -> list[str]:
    """The metrics of the table: the halving's first, then those of TABLE_METRICS that a run reports."""
    return [name for name in spec.metrics() if any(name in row.metrics for row in rows)]


def _image(points: list[FrontierPoint], best: list[FrontierPoint]) -> bytes | None:
    """The frontier as PNG; None without matplotlib."""
    try:
        with extras.needed("report", purpose="a chart"):
            from matplotlib.figure import Figure  # an extra
    except AlignkitError:
        return None
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    place = figure.subplots()
    place.plot([kl for _, kl, _ in best], [reward for _, _, reward in best], color="#1b9e77", linewidth=1.2)
    for point in points:
        row, kl, reward = point
        place.plot(kl, reward, "o", color="#1b9e77" if point in best else "#7f7f7f", markersize=5)
        place.annotate(row.point.name, (kl, reward), xytext=(5, 4), textcoords="offset points", fontsize=7)
    place.set_xlabel("KL from the reference")
    place.set_ylabel("reward margin")
    place.grid(alpha=0.3)
    place.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
