"""`alignkit projects`: projects of the service."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from alignkit.cli import output, service

app = typer.Typer(help="Projects of a running service; needs an admin key.", no_args_is_help=True)
COLUMNS: dict[str, tuple[str, Callable[[int], str]]] = {
    "jobs_queued": ("jobs queued", "{:,}".format),
    "jobs_running": ("jobs running", "{:,}".format),
    "file_bytes": ("files", output.size),
    "disk_bytes": ("disk", output.size),
    "gpu_seconds": ("GPU time", output.duration),
}
"""Measure of use -> heading of its column, and how a value is written."""


@app.command()
def create(name: Annotated[str, typer.Argument(help="letters, digits, - and _, at most 32")]) -> None:
    """Create a project."""
    output.say(service.admin().admin.organization.projects.create(name=name).id)


@app.command("list")
def list_(
    as_json: Annotated[bool, output.as_json("an array of the API's project objects")] = False,
) -> None:
    """List projects with their usage and limits."""
    found = service.projects(service.admin())
    if as_json:
        output.show_json(found)
        return
    headers = ("project", "id", *(heading for heading, _ in COLUMNS.values()))
    output.rows(headers, ((project["name"], project["id"], *_use(project)) for project in found))


def _use(project: dict[str, Any]) -> list[str]:
    """A project's use of each measure, with its limit if there is one."""
    cells = []
    for name, (_, written) in COLUMNS.items():
        use, limit = project["usage"][name], project["limits"][name]
        cells.append(written(use) if limit is None else f"{written(use)} of {written(limit)}")
    return cells
