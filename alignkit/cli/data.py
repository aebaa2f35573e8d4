"""`alignkit data`: check a file before training on it, and see what the model will see."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from alignkit.cli.models import Home, models_dir
from alignkit.errors import DataError

app = typer.Typer(help="Check and preview training data.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(help="JSON Lines, plain or gzipped")]
Model = Annotated[str | None, typer.Option(help="imported base model, folder or hub id, for token counts")]
Method = Annotated[str, typer.Option(help="method the file is for, such as f_dpo or supervised")]
MaxLength = Annotated[int, typer.Option(min=16, help="tokens at which training cuts")]


@app.command()
def check(
    file: File,
    model: Model = None,
    method: Method = "f_dpo",
    validation: Annotated[Path | None, typer.Option(help="held-out file, to find rows in common")] = None,
    max_length: MaxLength = 1024,
    home: Home = None,
) -> None:
    """Check every row; with --model, count tokens too. Exits with 1 if a row cannot be used."""
    from alignkit.data.dataset import load_rows
    from alignkit.data.rendering import render_report, render_statistics
    from alignkit.data.report import describe_rows
    from alignkit.data.schemas import schema_for
    from alignkit.data.tokens import load_tokenizer
    from alignkit.data.validation import check_file

    console = Console()
    reports = {path: check_file(path, method) for path in (file, validation) if path}
    for path, report in reports.items():
        console.print(render_report(path.name, report))
    if not all(report.ok for report in reports.values()):
        raise typer.Exit(1)
    if model:
        held_out = load_rows(validation, method) if validation else []
        tokenizer = load_tokenizer(_model_path(model, home))
        rows, kind = load_rows(file, method), schema_for(method)
        found = describe_rows(rows, tokenizer, kind, max_length=max_length, held_out=held_out)
        console.print(render_statistics(found))


@app.command()
def preview(
    file: File,
    model: Annotated[str, typer.Option(help="imported base model, folder or hub id")],
    method: Method = "f_dpo",
    rows: Annotated[int, typer.Option(min=1, help="how many")] = 2,
    max_length: MaxLength = 1024,
    home: Home = None,
) -> None:
    """Show how the first rows are rendered and which tokens carry loss."""
    from alignkit.data.dataset import load_rows
    from alignkit.data.rendering import render_preview
    from alignkit.data.report import preview_row
    from alignkit.data.tokens import load_tokenizer

    tokenizer = load_tokenizer(_model_path(model, home))
    for number, row in enumerate(load_rows(file, method)[:rows], start=1):
        preview = preview_row(row, tokenizer, max_length=max_length)
        Console().print(render_preview(f"row {number}", preview))


def _model_path(model: str, home: Path | None) -> str:
    imported = models_dir(home) / model
    if not imported.is_dir() and not Path(model).is_dir() and "/" not in model:
        raise DataError(f"no model {model!r}: import it with `alignkit models import`, or give a folder")
    return str(imported if imported.is_dir() else model)
