"""The connection to a running service: the official OpenAI client, and plain HTTP for downloads."""

import os
from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice
from typing import IO, Any

from alignkit.errors import AlignkitError, nearest
from alignkit.home import service_home

PROJECTS = "/organization/projects"
PAGE = 100
"""Objects that a list is asked for at once."""
RETRIES = 2
"""Further tries of a request that gets no answer."""
SILENCE_SECONDS = 60.0
"""Time for which a download may stand still."""
UNREACHABLE = "the service does not answer: start it with `alignkit serve`, or set ALIGNKIT_BASE_URL"


class NotThereError(AlignkitError):
    """The service has no such thing (404)."""


def connect() -> Any:
    """An OpenAI client with ALIGNKIT_BASE_URL (default http://127.0.0.1:8000/v1) and ALIGNKIT_API_KEY.

    Without ALIGNKIT_API_KEY, uses the first key of a service on this machine. Raises AlignkitError if there is none.
    """
    from openai import OpenAI  # saves openai at start-up

    url = os.environ.get("ALIGNKIT_BASE_URL", "http://127.0.0.1:8000/v1")
    key = os.environ.get("ALIGNKIT_API_KEY") or _first_key()
    if not key:
        raise AlignkitError(
            "no API key: set ALIGNKIT_API_KEY; the service stored the first key in its home at its first start"
        )
    return OpenAI(base_url=url, api_key=key, max_retries=RETRIES)


def _first_key() -> str:
    path = service_home() / "first-key"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def client_error(error: Exception) -> str | None:
    """One sentence for an error of the OpenAI client; None for anything else."""
    import openai  # saves openai at start-up

    if isinstance(error, openai.APIConnectionError):
        return UNREACHABLE
    if isinstance(error, openai.APIError):
        return refusal(error.body, error.message)
    return None


def refusal(body: object, otherwise: str) -> str:
    """The sentence of an error's body, with the field that it is about."""
    found = body if isinstance(body, dict) else {}
    where = f" ({found['param']})" if found.get("param") else ""
    return f"{found.get('message') or otherwise}{where}"


def get(client: Any, path: str, **query: Any) -> Any:
    """The JSON of an answer, as the service gives it."""
    given = {name: value for name, value in query.items() if value is not None}
    return client.get(path, cast_to=object, options={"params": given})


def each(client: Any, path: str, *, page: int = PAGE, **query: Any) -> Iterator[dict[str, Any]]:
    """The objects of a list in its order, page by page as they are needed."""
    after = None
    while True:
        answer = get(client, path, limit=page, after=after, **query)
        yield from answer["data"]
        if not answer["has_more"] or not answer["data"]:
            return
        after = answer["data"][-1]["id"]


def first(client: Any, path: str, count: int, **query: Any) -> list[dict[str, Any]]:
    """The first objects of a list, at most `count`."""
    return list(islice(each(client, path, page=min(count, PAGE), **query), count))


def download(client: Any, path: str, to: IO[bytes]) -> None:
    """Write an answer's bytes to `to` as they come. Raises AlignkitError if it is refused or breaks off."""
    for chunk in chunks(client, path):
        to.write(chunk)


def chunks(
    client: Any, path: str, *, silence: float | None = SILENCE_SECONDS, **query: str
) -> Iterator[bytes]:
    """An answer's bytes as they come; `silence`: seconds without any that are waited for, None for ever.

    Raises AlignkitError if the answer is refused or breaks off.
    """
    import httpx  # saves httpx at start-up

    url = f"{str(client.base_url).rstrip('/')}{path}"
    headers = {"authorization": f"Bearer {client.api_key}"}
    try:
        with httpx.stream("GET", url, params=query, headers=headers, timeout=silence) as answer:
            if answer.is_error:
                answer.read()
                refused = NotThereError if answer.status_code == HTTPStatus.NOT_FOUND else AlignkitError
                raise refused(_refused(answer))
            yield from answer.iter_bytes()
    except httpx.ConnectError as error:
        raise AlignkitError(UNREACHABLE) from error
    except httpx.TransportError as error:
        raise AlignkitError(f"the download broke off, so nothing was kept: {error or 'no answer'}") from error


def _refused(answer: Any) -> str:
    try:
        body = answer.json().get("error")
    except (ValueError, AttributeError):  # a proxy's answer
        body = None
    return refusal(body, f"the service answered {answer.status_code} to {answer.request.url.path}")


def admin() -> Any:
    """The client, with one key for all requests."""
    client = connect()
    return client.with_options(admin_api_key=client.api_key)


def projects(client: Any) -> list[dict[str, Any]]:
    """All projects, newest first."""
    return list(each(client, PROJECTS))


def project_id(client: Any, name: str) -> str:
    """The id of the project with that name. Raises AlignkitError if there is none."""
    found = {project["name"]: project["id"] for project in projects(client)}
    if name not in found:
        known = f"the projects are {', '.join(sorted(found))}"
        raise AlignkitError(f"no project {name!r}: {known}{nearest(name, found)}")
    return str(found[name])


def post(client: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request for which the official client has no method."""
    answer: dict[str, Any] = client.post(path, body=body, cast_to=object)
    return answer
