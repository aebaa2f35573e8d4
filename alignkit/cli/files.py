"""`alignkit files`: files of the key's project at a running service."""

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from alignkit.cli import output, saving, service
from alignkit.cli.naming import named

app = typer.Typer(help="Files of a running service.", no_args_is_help=True)
FILES = "/files"


@app.command("list")
def list_(
    purpose: Annotated[
        str | None, typer.Option(help="only files with this purpose, such as fine-tune")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="maximum number of files")] = 100,
    as_json: Annotated[bool, output.as_json("an array of the API's file objects")] = False,
) -> None:
    """List files, newest first."""
    found = service.first(service.connect(), FILES, limit, purpose=purpose)
    if as_json:
        output.show_json(found)
        return
    output.rows(
        ("file", "name", "purpose", "size", "created", "expires"),
        (
            (
                file["id"],
                file["filename"],
                file["purpose"],
                output.size(file["bytes"]),
                output.moment(file["created_at"]),
                output.moment(file.get("expires_at")),
            )
            for file in found
        ),
    )


@app.command()
def get(
    file_id: Annotated[str, typer.Argument(help="id of the file", callback=named)],
    to: Annotated[
        Path | None, typer.Option(help="new file, or - for standard output; default: the file's name")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a file of that name")] = False,
) -> None:
    """Download a file."""
    client = service.connect()
    path = f"{FILES}/{quote(file_id, safe='')}"
    named = Path(service.get(client, path)["filename"]).name or file_id
    if to == Path("-"):
        service.download(client, f"{path}/content", sys.stdout.buffer)
        return
    target = to or Path(named)
    with saving.new_file(target, replace=force) as file:
        service.download(client, f"{path}/content", file)
    output.say(str(target))


@app.command()
def rm(
    file_ids: Annotated[list[str], typer.Argument(help="ids of files", callback=named)],
    yes: output.Yes = False,
) -> None:
    """Delete files, after asking."""
    client = service.connect()
    found = [service.get(client, f"{FILES}/{quote(file_id, safe='')}") for file_id in file_ids]
    for file in found:
        output.ask(f"Delete {file['filename']} ({file['id']}, {output.size(file['bytes'])})?", yes=yes)
        client.files.delete(file["id"])
        output.say(f"{file['id']} is deleted")
