"""A job's metrics as series over steps, reduced to a number of points that can be plotted."""

import math
from collections.abc import Collection, Iterable
from typing import Any

from alignkit_server.jobs.schemas import JobMetrics, MetricSeries

NOT_METRICS = frozenset({"step", "total_steps", "seconds_remaining"})
Point = tuple[int, float | None]


def collect(
    job_id: str, reports: Iterable[dict[str, Any]], names: Collection[str], max_points: int | None
) -> JobMetrics:
    """The series in `reports`, which are in order of creation; all series, or those in `names`.

    If a step was reported again after a resume, the later value counts.
    """
    found: dict[str, dict[int, float | None]] = {}
    for report in reports:
        step = report.get("step")
        if not isinstance(step, int):
            continue
        for name, value in report.items():
            wanted = name in names if names else name not in NOT_METRICS
            if wanted and (value is None or isinstance(value, int | float)):
                found.setdefault(name, {})[step] = value
    return JobMetrics(
        job_id=job_id,
        series={name: _series(sorted(points.items()), max_points) for name, points in sorted(found.items())},
    )


def _series(points: list[Point], max_points: int | None) -> MetricSeries:
    kept = points if max_points is None else downsample(points, max_points)
    return MetricSeries(
        steps=[step for step, _ in kept], values=[value for _, value in kept], total_points=len(points)
    )


def downsample(points: list[Point], most: int) -> list[Point]:
    """At most `most` (even, at least 4) of the points, chosen so that no spike is lost.

    Keeps the first and the last point, and the lowest and highest of each stretch between them. None (a value that
    was not finite) counts as highest.
    """
    if len(points) <= most:
        return points
    inner, stretches = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for number in range(stretches):
        begin, end = (len(inner) * edge // stretches for edge in (number, number + 1))
        stretch = inner[begin:end]
        extremes = {min(stretch, key=_height), max(stretch, key=_height)}
        kept.extend(sorted(extremes, key=lambda point: point[0]))
    return [*kept, points[-1]]


def _height(point: Point) -> float:
    return math.inf if point[1] is None else point[1]
