"""`alignkit projects`: projects of the service."""

import typer
from rich.console import Console

from alignkit.cli import output, service

app = typer.Typer(help="Projects of a running service; needs an admin key.", no_args_is_help=True)
console = Console()


@app.command()
def create(name: str) -> None:
    """Create a project."""
    console.print(service.admin().admin.organization.projects.create(name=name).id)


@app.command("list")
def list_() -> None:
    """List projects with their usage and limits."""
    table = output.table(
        "project", "id", "jobs queued", "jobs running", "file bytes", "disk bytes", "GPU seconds"
    )
    for project in service.projects(service.admin()):
        columns = ("jobs_queued", "jobs_running", "file_bytes", "disk_bytes", "gpu_seconds")
        use = [_of(project.usage[name], project.limits[name]) for name in columns]
        table.add_row(project.name, project.id, *use)
    output.show(table)


def _of(use: int, limit: int | None) -> str:
    return f"{use:,}" if limit is None else f"{use:,} of {limit:,}"
