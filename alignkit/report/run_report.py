"""Writes the report of a run: report.html, and its charts as PNG files."""

import sys
from pathlib import Path
from typing import Any

import yaml

from alignkit import extras
from alignkit.disk import put
from alignkit.errors import AlignkitError
from alignkit.report import page
from alignkit.report.charts import Chart, charts_of, draw
from alignkit.report.expected import keep_estimate
from alignkit.report.record import RunRecord, read_run
from alignkit.run import facts
from alignkit.run.folder import RunFolder

MEASURES = (
    ("log-prob under the reference", "valid_answers_reference_logp"),
    ("KL a token", "valid_answers_kl"),
    ("repetition", "valid_answers_repetition"),
    ("distinct 2-grams", "valid_answers_distinct_2"),
    ("log-prob of good answers", "valid_answers_good_logp"),
)
"""(title, metric) of the collapse guard's columns."""
COUNTS = {
    "rows": "rows",
    "truncated": "rows cut to max_length",
    "dropped": "rows dropped, no token that carries loss is left",
    "duplicates": "duplicates of an earlier row",
    "duplicate_prompts": "rows with the prompt of an earlier row",
    "overlap": "rows that are also in the validation data",
    "prompt_overlap": "rows whose prompt is also in the validation data",
}
"""Field of DatasetStatistics -> its label."""
LENGTHS = ("p50", "p90", "p99", "maximum")


def write_report(folder: RunFolder) -> Path:
    """Write the report of the run in `folder` and return its path. An earlier report is replaced.

    Without matplotlib the report has no charts, and says so. Raises DataError if there is no run, OSError if it
    cannot be written.
    """
    run = read_run(folder)
    charts, missing = draw_all(charts_of(run.series))
    folder.charts.mkdir(exist_ok=True)
    for chart, png in charts:
        put(folder.charts / f"{chart.name}.png", png)
    for old in set(folder.charts.glob("*.png")) - {
        folder.charts / f"{chart.name}.png" for chart, _ in charts
    }:
        old.unlink()
    page.put_page(folder.report, page.render("run.html", **_values(run), charts=charts, no_charts=missing))
    return folder.report


def report_at_end(folder: RunFolder) -> None:
    """Write the report of a run that ended in this process, if one is wanted and it made steps.

    A report that fails is one line of warning, since the run itself is done.
    """
    if not facts.wanted() or not folder.path.is_dir():
        return
    try:
        if "measured" not in facts.read(folder) and not read_run(folder).series:
            return
        keep_estimate(folder)
        path = write_report(folder)
    except Exception as error:  # whatever it is, the run's result is already written
        print(f"warning: the report could not be written: {error}", file=sys.stderr, flush=True)
        return
    print(f"Report: {path}", flush=True)
    if missing := lacking():
        print(missing, flush=True)


def lacking() -> str | None:
    """The sentence that says why reports have no charts; None if they have."""
    try:
        extras.require("matplotlib", extra="report", purpose="The report has no charts, since drawing them")
    except AlignkitError as error:
        return str(error)
    return None


def draw_all(charts: list[Chart]) -> tuple[list[tuple[Chart, bytes]], str | None]:
    """Every chart with its PNG; or none of them, and the sentence that says why."""
    missing = lacking()
    return ([], missing) if missing else ([(chart, draw(chart)) for chart in charts], None)


def _values(run: RunRecord) -> dict[str, Any]:
    """What the template needs."""
    data = run.facts.get("data") or []
    return {
        "run": run,
        "method": _method(run),
        "problem": (run.result.get("error") or {}).get("message"),
        "summary": _summary(run),
        "measures": [(title, name) for title, name in MEASURES if name in run.series],
        "pairs": _pairs(run),
        "against": _against(run),
        "estimate_note": _estimate_note(run),
        "data": data,
        "data_rows": _data_rows(data),
        "recipe": yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True),
        "environment": list((run.facts.get("environment") or {}).items()),
    }


def _method(run: RunRecord) -> str:
    """The method and the model in a line; `?` where the recipe names none."""
    found = (run.recipe.get(section) or {} for section in ("method", "model"))
    method, model = (section.get(name, "?") for section, name in zip(found, ("type", "path"), strict=True))
    return f"{method} on {model}"


def _summary(run: RunRecord) -> list[tuple[str, str]]:
    result = run.result
    steps = result.get("steps") or max((max(points) for points in run.series.values()), default=0)
    of = "" if run.total_steps is None else f" of {run.total_steps:,}"
    found = [
        ("began", page.moment(run.began)),
        ("last event", page.moment(run.ended)),
        ("steps", f"{steps:,}{of}"),
    ]
    if result.get("stopped_early"):
        found.append(("stopped early", "yes"))
    if (best := result.get("best")) is not None:
        found.append(
            ("published step", f"{best['step']:,}, the best by {best['metric']} ({best['value']:.4g})")
        )
    elif result.get("result_step", steps) != steps:
        found.append(("published step", f"{result['result_step']:,}, the last before the answers collapsed"))
    if result.get("trained_tokens") is not None:
        found.append(("trained tokens", page.number(result["trained_tokens"])))
    if result.get("seconds") is not None:
        found.append(("time, all together", page.duration(result["seconds"])))
    phases = (result.get("phases") or {}).items()
    return found + [(f"time of {name}", page.duration(seconds)) for name, seconds in phases]


def _pairs(run: RunRecord) -> list[tuple[str, ...]]:
    """(prompt, answer before, answer after, the data's answer) of each prompt that was answered both times."""
    before, after = run.before, run.after
    if before is None or after is None:
        return []
    return [
        (
            *(str(text) for text in (one["prompt"], one["answer"], other["answer"])),
            str(other.get("known", "")),
        )
        for one, other in zip(before.answers, after.answers, strict=False)
    ]


def _against(run: RunRecord) -> list[tuple[str, str, str]]:
    expected, measured = run.facts.get("estimate") or {}, run.facts.get("measured") or {}
    steps, seconds = measured.get("steps"), measured.get("step_seconds")
    each = seconds / steps if steps and seconds is not None else None
    return [
        ("steps", page.number(expected.get("steps")), page.number(steps)),
        ("time of a step", page.duration(expected.get("step_seconds")), page.duration(each)),
        ("time of all steps", page.duration(expected.get("seconds")), page.duration(seconds)),
        ("peak memory", page.size(expected.get("peak_bytes")), page.size(measured.get("peak_bytes"))),
    ]


def _estimate_note(run: RunRecord) -> str:
    expected = run.facts.get("estimate") or {}
    if "reason" in expected:
        return f"There is no estimate: {expected['reason']}"
    if not expected:
        return "This run kept no estimate."
    layout = "{devices} x {device}, {stage}, micro-batch {micro_batch_size}".format(**expected)
    return (
        f"Estimated for {layout}. Memory is that of one process: what is allocated on a GPU; on a CPU, resident "
        "memory above that at the start. Times leave out loading, evaluating and saving."
    )


def _data_rows(data: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """A table's rows: (label, a cell for each part)."""
    rows = [(label, [page.number(part.get(name)) for part in data]) for name, label in COUNTS.items()]
    if not data:
        return rows
    kinds = {
        "prompt": "prompt",
        **{f"answers.{name}": name for name in data[0].get("answers") or {}},
        "total": "longest sequence",
    }
    for key, label in kinds.items():
        for percentile in LENGTHS:
            cells = [page.number((_at(part, key) or {}).get(percentile)) for part in data]
            rows.append((f"tokens of {label}, {percentile}", cells))
    return rows


def _at(part: dict[str, Any], key: str) -> Any:
    found: Any = part
    for name in key.split(".", 1):
        found = (found or {}).get(name)
    return found
