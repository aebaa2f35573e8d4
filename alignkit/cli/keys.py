"""`alignkit keys`: API keys of projects. A key is printed only once, when it is created."""

import re
import time
from typing import Annotated, Any

import typer
from rich.console import Console

from alignkit.cli import output, service
from alignkit.errors import AlignkitError

app = typer.Typer(help="API keys of a running service; needs an admin key.", no_args_is_help=True)
console = Console()
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
    _show(service.post(client, f"{service.project_id(client, project)}/api_keys", body))


@app.command("list")
def list_(project: Project = "default") -> None:
    """List a project's keys, newest first."""
    client = service.admin()
    table = output.table("key", "name", "value", "scopes", "created", "expires", "last used")
    keys = client.admin.organization.projects.api_keys
    for key in keys.list(service.project_id(client, project), limit=100):
        times = (key.created_at, key.expires_at, key.last_used_at)
        table.add_row(key.id, key.name, key.redacted_value, " ".join(key.scopes), *map(_date, times))
    output.show(table)


@app.command()
def rotate(
    key_id: str,
    project: Project = "default",
    grace: Annotated[str, typer.Option(help="how long the old key stays valid, such as 1d")] = "0s",
) -> None:
    """Replace a key: print a new one with the same scopes, and let the old one expire."""
    client = service.admin()
    path = f"{service.project_id(client, project)}/api_keys/{key_id}/rotate"
    _show(service.post(client, path, {"grace_seconds": seconds(grace)}))


@app.command()
def revoke(key_id: str, project: Project = "default") -> None:
    """Revoke a key immediately."""
    client = service.admin()
    keys = client.admin.organization.projects.api_keys
    keys.delete(key_id, project_id=service.project_id(client, project))
    console.print(f"{key_id} is revoked")


def seconds(text: str) -> int:
    """The seconds of a duration such as 90d, 12h, 30m or 45s. Raises AlignkitError for any other text."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise AlignkitError(
            f"duration: expected a number followed by s, m, h or d, such as 90d, found {text!r}"
        )
    return int(match[1]) * UNITS[match[2]]


def _show(key: dict[str, Any]) -> None:
    # Only the key goes to stdout, on a line of its own, so that a script can read it.
    print(key["value"])
    Console(stderr=True).print(
        f"{key['id']}: the key is not stored anywhere, so save it now", highlight=False
    )


def _date(at: int | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
