"""`alignkit keys`: API keys of projects. A key is printed only once, when it is created."""

import re
from typing import Annotated, Any
from urllib.parse import quote

import typer

from alignkit.cli import output, service
from alignkit.cli.naming import named
from alignkit.errors import AlignkitError

app = typer.Typer(help="API keys of a running service; needs an admin key.", no_args_is_help=True)
Project = Annotated[str, typer.Option(help="name of the project")]
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="name of the key")],
    project: Project = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="read, train, inference, metrics or admin; repeatable; default: read, train and inference"
        ),
    ] = None,
    expires_in: Annotated[str | None, typer.Option(help="lifetime, such as 90d, 12h or 30m")] = None,
) -> None:
    """Create a key and print it, only this once."""
    client = service.admin()
    body: dict[str, Any] = {"name": name}
    if scope:
        body["scopes"] = scope
    if expires_in:
        body["expires_in_seconds"] = seconds(expires_in)
    _show(service.post(client, _keys(client, project), body))


@app.command("list")
def list_(
    project: Project = "default",
    as_json: Annotated[bool, output.as_json("an array of the API's key objects")] = False,
) -> None:
    """List a project's keys, newest first."""
    client = service.admin()
    found = list(service.each(client, _keys(client, project)))
    if as_json:
        output.show_json(found)
        return
    times = ("created_at", "expires_at", "last_used_at")
    output.rows(
        ("key", "name", "value", "scopes", "created", "expires", "last used"),
        (
            (
                key["id"],
                key["name"],
                key["redacted_value"],
                " ".join(key["scopes"]),
                *(output.moment(key[time]) for time in times),
            )
            for key in found
        ),
    )


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="id of the key", callback=named)],
    project: Project = "default",
    grace: Annotated[str, typer.Option(help="how long the old key stays valid, such as 1d")] = "0s",
) -> None:
    """Replace a key: print a new one with the same scopes, and let the old one expire."""
    client = service.admin()
    path = f"{_keys(client, project)}/{quote(key_id)}/rotate"
    _show(service.post(client, path, {"grace_seconds": seconds(grace)}))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="id of the key", callback=named)],
    project: Project = "default",
    yes: output.Yes = False,
) -> None:
    """Revoke a key immediately, after asking."""
    client = service.admin()
    project_id = service.project_id(client, project)
    keys = client.admin.organization.projects.api_keys
    key = keys.retrieve(key_id, project_id=project_id)
    output.ask(f"Revoke the key {key.name} ({key_id})? Whoever uses it is refused at once.", yes=yes)
    keys.delete(key_id, project_id=project_id)
    output.say(f"{key_id} is revoked")


def seconds(text: str) -> int:
    """The seconds of a duration such as 90d, 12h, 30m or 45s. Raises AlignkitError for any other text."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise AlignkitError(
            f"duration: expected a number followed by s, m, h or d, such as 90d, found {text!r}"
        )
    return int(match[1]) * UNITS[match[2]]


def _keys(client: Any, project: str) -> str:
    return f"{service.PROJECTS}/{service.project_id(client, project)}/api_keys"


def _show(key: dict[str, Any]) -> None:
    # Only the key goes to stdout, on a line of its own, so that a script can read it.
    print(key["value"])
    output.note(f"{key['id']}: the key is not stored anywhere, so save it now")
