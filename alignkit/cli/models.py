"""`alignkit models`: base models of this machine's service, and fine-tuned models of a running one."""

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from alignkit.cli import output, saving, service
from alignkit.cli.naming import named
from alignkit.home import models_dir
from alignkit.models.importing import available, base_model, import_model, prune_model

app = typer.Typer(help="Base models and fine-tuned models.", no_args_is_help=True)
Home = Annotated[Path | None, typer.Option(help="folder for all data of the service (ALIGNKIT_HOME)")]
MODELS = "/models"


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="smollm2-135m-instruct, a model folder, a GGUF file, or a hub id")
    ],
    name: Annotated[str | None, typer.Option(help="name under which it is served")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(help="Jinja file, or name of a TRL template, for a model without a chat template"),
    ] = None,
    home: Home = None,
) -> None:
    """Import a base model; does nothing if it is already imported."""
    import_model(source, models_dir(home), name, chat_template=chat_template, report=output.say)


@app.command()
def prune(
    source: Annotated[str, typer.Argument(help="name of an imported base model, or a model folder")],
    name: Annotated[str, typer.Argument(help="name of the smaller model")],
    every: Annotated[int, typer.Option(min=2, help="keep every N-th layer, starting with the first")] = 3,
    home: Home = None,
) -> None:
    """Make a smaller base model from every N-th layer of another, as a student for distillation."""
    folder = models_dir(home)
    prune_model(base_model(source, folder), folder, name, every, report=output.say)


@app.command("list")
def list_(
    served: Annotated[
        bool, typer.Option("--served", help="ask the service, which lists fine-tuned models too")
    ] = False,
    home: Home = None,
    as_json: Annotated[
        bool, output.as_json("an array of names; with --served, of the API's model objects")
    ] = False,
) -> None:
    """List the imported base models, or with --served all that the key's project may use."""
    if not served:
        names = available(models_dir(home))
        output.show_json(names) if as_json else print(*names, sep="\n", end="\n" if names else "")
        return
    found = service.get(service.connect(), MODELS)["data"]
    if as_json:
        output.show_json(found)
        return
    output.rows(
        ("model", "kind", "base model", "owner", "created"),
        (
            (
                model["id"],
                model["kind"],
                model["parent"] or "",
                model["owned_by"],
                output.moment(model["created"]),
            )
            for model in found
        ),
    )


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="name of a fine-tuned model or checkpoint", callback=named)],
    to: Annotated[Path | None, typer.Option(help="new folder; default: the name, with _ for :")] = None,
) -> None:
    """Download a fine-tuned model from the service into a new folder: an adapter, or a whole model."""
    client = service.connect()
    folder = to or Path(name.replace(":", "_"))
    saving.require_new(folder)
    service.get(client, _path(name))
    with saving.new_folder(folder) as part:
        saving.fetch_archive(client, f"{_path(name)}/archive", part)
    output.say(str(folder))


@app.command()
def rm(
    names: Annotated[
        list[str], typer.Argument(help="names of fine-tuned models or checkpoints", callback=named)
    ],
    yes: output.Yes = False,
) -> None:
    """Delete fine-tuned models from the service, after asking."""
    client = service.connect()
    for name in names:
        service.get(client, _path(name))
    for name in names:
        output.ask(f"Delete the model {name}?", yes=yes)
        client.models.delete(name)
        output.say(f"{name} is deleted")


def _path(name: str) -> str:
    return f"{MODELS}/{quote(name, safe='')}"
