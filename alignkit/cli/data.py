"""`alignkit data`: check a data file before training, and preview how its rows are rendered."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from alignkit.cli import output
from alignkit.cli.models import Home
from alignkit.errors import DataError
from alignkit.home import models_dir
from alignkit.models.trainable import vocabulary_in

if TYPE_CHECKING:  # saves torch at start-up
    from alignkit.data.validation import FileReport

app = typer.Typer(help="Check and preview training data.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(help="JSON Lines, a JSON array or CSV, plain or gzipped, or Parquet")]
Model = Annotated[
    str | None, typer.Option(help="imported base model, folder or hub id; adds checks of tokens")
]
Method = Annotated[str, typer.Option(help="training method, such as f_dpo or supervised")]
MaxLength = Annotated[
    int, typer.Option(min=16, help="maximum tokens per sequence; longer ones are truncated")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="rename a column, such as question=prompt; repeatable"),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="skip invalid rows, at most 10% of all")]


@app.command()
def check(
    file: File,
    model: Model = None,
    method: Method = "f_dpo",
    validation: Annotated[
        Path | None, typer.Option(help="validation file, to find rows in both files")
    ] = None,
    max_length: MaxLength = 1024,
    column: Columns = None,
    skip_bad: SkipBad = False,
    home: Home = None,
    as_json: Annotated[
        bool,
        output.as_json("{files, statistics}: each file's findings; lengths and counts, null without --model"),
    ] = False,
) -> None:
    """Check every row; with --model, also as tokens. Exits with 1 if there are invalid rows."""
    from alignkit.data.reading import iter_lines  # saves torch at start-up
    from alignkit.data.rendering import render_report, render_statistics
    from alignkit.data.report import Statistics
    from alignkit.data.schemas import schema_for
    from alignkit.data.tokens import chat_tokenizer
    from alignkit.data.validation import SKIPPED_SHARE, Inspection

    console, kind, columns = Console(), schema_for(method), _columns(column)
    path = _model_path(model, home) if model else None
    tokenizer = chat_tokenizer(path, field="--model") if path else None
    words = vocabulary_in(Path(path)) if path else None
    reports, counted = [], []
    for given in (file, validation):
        if given is None:
            continue
        inspection = Inspection(
            kind,
            tokenizer=tokenizer,
            max_length=max_length,
            skip_bad=SKIPPED_SHARE if skip_bad else 0,
            vocabulary=words,
        )
        statistics = Statistics(kind, max_length)
        for row, sequences in inspection.rendered(iter_lines(given, columns=columns)):
            if sequences:
                statistics.add(row, sequences)
        reports.append((given.name, inspection.report()))
        counted.append(statistics)
    ok = all(report.ok for _, report in reports)
    found = counted[0].result(*counted[1:]) if ok and tokenizer is not None else None
    if as_json:
        listed = [_listed(name, report) for name, report in reports]
        output.show_json({"files": listed, "statistics": asdict(found) if found else None})
    else:
        for name, report in reports:
            console.print(render_report(name, report), soft_wrap=not console.is_terminal)
        if found:
            shown = render_statistics(found, held_out=validation is not None)
            console.print(shown, soft_wrap=not console.is_terminal)
    if not ok:
        raise typer.Exit(1)


@app.command()
def preview(
    file: File,
    model: Annotated[str, typer.Option(help="imported base model, folder or hub id")],
    method: Method = "f_dpo",
    rows: Annotated[int, typer.Option(min=1, help="number of rows to show")] = 2,
    max_length: MaxLength = 1024,
    column: Columns = None,
    home: Home = None,
) -> None:
    """Show how the first rows are rendered and which tokens carry loss. Exits with 1 if a row is invalid."""
    from alignkit.data.reading import iter_lines  # saves torch at start-up
    from alignkit.data.rendering import render_preview, render_report
    from alignkit.data.report import preview_of
    from alignkit.data.schemas import schema_for
    from alignkit.data.tokens import chat_tokenizer
    from alignkit.data.validation import Inspection

    console = Console()
    tokenizer = chat_tokenizer(_model_path(model, home), field="--model")
    inspection = Inspection(schema_for(method), tokenizer=tokenizer, max_length=max_length)
    shown = islice(inspection.rendered(islice(iter_lines(file, columns=_columns(column)), rows)), rows)
    for number, (_, sequences) in enumerate(shown, start=1):
        preview = preview_of(sequences, tokenizer, max_length=max_length)
        shown_row = render_preview(f"row {number}", preview, marks=not console.is_terminal)
        console.print(shown_row, soft_wrap=not console.is_terminal)
    report = inspection.report()
    if report.bad_rows or not report.rows:
        console.print(render_report(file.name, report), soft_wrap=not console.is_terminal)
        raise typer.Exit(1)


def _listed(name: str, report: "FileReport") -> dict[str, Any]:
    """A file's report as --json prints it."""
    return {
        "name": name,
        "ok": report.ok,
        "rows": report.rows,
        "bad_rows": report.bad_rows,
        "findings": [report.problem] if report.problem else report.findings(),
        "notices": list(report.notices),
    }


def _columns(given: list[str] | None) -> dict[str, str]:
    """The mapping given as `file's name=form's name` texts."""
    pairs = [text.partition("=") for text in given or []]
    if not all(name and to for name, _, to in pairs):
        raise typer.BadParameter(
            "expected NAME_IN_FILE=NAME_OF_FORM, such as question=prompt", param_hint="--column"
        )
    return {name: to for name, _, to in pairs}


def _model_path(model: str, home: Path | None) -> str:
    imported = models_dir(home) / model
    if not imported.is_dir() and not Path(model).is_dir() and "/" not in model:
        raise DataError(f"no model {model!r}: import it with `alignkit models import`, or give a folder")
    return str(imported if imported.is_dir() else model)
