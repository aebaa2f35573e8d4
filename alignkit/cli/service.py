"""Administration of a running service through the official OpenAI client, shared by `projects` and `keys`."""

from typing import Any

from alignkit.cli.jobs import connect
from alignkit.errors import AlignkitError

PROJECTS = "/organization/projects"


def admin() -> Any:
    """The client, with one key for all requests."""
    client = connect()
    return client.with_options(admin_api_key=client.api_key)


def projects(client: Any) -> list[Any]:
    """All projects, newest first."""
    return list(client.admin.organization.projects.list(limit=100))


def project_id(client: Any, name: str) -> str:
    """The id of the project with that name. Raises AlignkitError if there is none."""
    found = {project.name: project.id for project in projects(client)}
    if name not in found:
        raise AlignkitError(f"no project {name!r}: the projects are {', '.join(sorted(found))}")
    return str(found[name])


def post(client: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request for which the official client has no method."""
    answer: dict[str, Any] = client.post(f"{PROJECTS}/{path}", body=body, cast_to=object)
    return answer
