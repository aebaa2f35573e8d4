"""A finished job's metrics as a file of the project: CSV, one row per step, like OpenAI's result files."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from alignkit_server.ids import FILE, JOB
from alignkit_server.jobs.metrics import collect

FILENAME = "step_metrics.csv"
PURPOSE = "fine-tune-results"


def result_file_id(job_id: str) -> str:
    """The deterministic id of a job's result file, so that creating it twice makes one file."""
    return FILE + job_id.removeprefix(JOB)


def results_csv(job_id: str, reports: Iterable[dict[str, Any]]) -> bytes:
    """The metrics as CSV, one row per step; a cell is empty where a metric has no finite value."""
    series = collect(job_id, reports, (), max_points=None).series
    by_step: dict[int, dict[str, float | None]] = {}
    for name, points in series.items():
        for step, value in zip(points.steps, points.values, strict=True):
            by_step.setdefault(step, {})[name] = value
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *series], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step, **by_step[step]} for step in sorted(by_step))
    return text.getvalue().encode()
