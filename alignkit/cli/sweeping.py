"""`alignkit sweep`: train a recipe at every combination of some values."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.cli import output
from alignkit.hardware import has_gpu

if TYPE_CHECKING:  # saves torch at start-up
    from alignkit.sweep.folder import Row, SweepFolder


def sweep(
    recipe: Annotated[
        Path, typer.Argument(help="a recipe with a sweep section, or a sweep's folder with --show")
    ],
    parallel: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="runs at one time; default: one for each GPU, or one on a CPU"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="train nothing; print the table of a sweep")] = False,
    as_json: Annotated[bool, output.as_json("{sweep, report, points: [{point, values, status, …}]}")] = False,
) -> None:
    """Train a recipe at every combination of its sweep's values; the same command resumes an interrupted sweep."""
    from alignkit.recipe import read_values  # saves torch at start-up
    from alignkit.sweep.folder import SweepFolder
    from alignkit.sweep.report import write_sweep_report
    from alignkit.sweep.running import Sweep

    if show:
        _show(SweepFolder.read(recipe), as_json=as_json)
        return
    folder = SweepFolder.open(read_values(recipe))
    output.note(f"{len(folder.spec.points())} points in {folder.path}")
    running = Sweep(folder, devices=_devices(folder, parallel), report=output.note)
    handlers = {
        number: signal.signal(number, lambda *_: running.interrupt())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        running.run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        write_sweep_report(folder)
    _show(folder, as_json=as_json)


def _devices(folder: "SweepFolder", parallel: int | None) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each run at one time. A run on several GPUs has all of them, so runs take turns."""
    training = folder.recipe.get("training")
    several = isinstance(training, dict) and (training.get("devices") or 1) > 1
    if several or not has_gpu():
        return [None] * (1 if several else parallel or 1)
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        import torch  # saves torch at start-up

        given = ",".join(map(str, range(torch.cuda.device_count())))
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        return [None] * (parallel or 1)
    return [names[at % len(names)] for at in range(parallel or len(names))]


def _show(folder: "SweepFolder", *, as_json: bool) -> None:
    from alignkit.sweep.report import table_metrics  # saves torch at start-up

    rows = folder.rows()
    if as_json:
        output.show_json(
            {
                "sweep": folder.spec.as_json(),
                "report": str(folder.path / "report.html"),
                "points": [row.as_json() for row in rows],
            }
        )
        return
    metrics = table_metrics(folder.spec, rows)
    options = list(folder.spec.options)
    names = (
        "point",
        *(option.removeprefix("method.") for option in options),
        "status",
        "step",
        *metrics,
        "why",
    )
    output.rows(names, (_cells(row, options, metrics) for row in rows))
    output.note(f"Report: {folder.path / 'report.html'}")


def _cells(row: "Row", options: list[str], metrics: list[str]) -> list[str]:
    values: list[Any] = [row.point.values[option] for option in options]
    found = [output.number(row.metrics[name]) if name in row.metrics else "" for name in metrics]
    return [row.point.name, *map(str, values), row.status, str(row.step), *found, row.reason or ""]
