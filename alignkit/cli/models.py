"""`alignkit models`: base models of the service."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from alignkit.home import models_dir
from alignkit.models.importing import available, import_model, prune_model

app = typer.Typer(help="Base models: import, prune and list.", no_args_is_help=True)
Home = Annotated[Path | None, typer.Option(help="folder for all data of the service (ALIGNKIT_HOME)")]


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="smollm2-135m-instruct, a model folder, or a hub id")],
    name: Annotated[str | None, typer.Option(help="name under which it is served")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(help="Jinja file, or name of a TRL template, for a model without a chat template"),
    ] = None,
    home: Home = None,
) -> None:
    """Import a base model; does nothing if it is already imported."""
    import_model(source, models_dir(home), name, chat_template=chat_template, report=Console().print)


@app.command()
def prune(
    source: Annotated[str, typer.Argument(help="name of an imported base model, or a model folder")],
    name: Annotated[str, typer.Argument(help="name of the smaller model")],
    every: Annotated[int, typer.Option(min=2, help="keep every N-th layer, starting with the first")] = 3,
    home: Home = None,
) -> None:
    """Make a smaller base model from every N-th layer of another, as a student for distillation."""
    folder = models_dir(home)
    path = folder / source if (folder / source).is_dir() else Path(source)
    prune_model(path, folder, name, every, report=Console().print)


@app.command("list")
def list_(home: Home = None) -> None:
    """List the imported base models."""
    for name in available(models_dir(home)):
        Console().print(name)
