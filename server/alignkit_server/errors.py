"""Errors of the API, all answered in OpenAI's envelope: {"error": {message, type, param, code}}."""

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from alignkit_server.outages import described, is_full, is_outage
from alignkit_server.redaction import without_keys

log = structlog.get_logger()

FOUND_LENGTH = 80
PATH_LENGTH = 200
RETRY_SECONDS = 5
"""After which a client may try again that met an outage."""
MAX_ISSUES = 20
"""Maximum number of refused fields that one answer names, so that answers do not grow with requests."""


class ErrorDetail(BaseModel):
    """The message for people, and the type, parameter and code for programs."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = Field(None, description="the refused parameter's dotted path")
    code: str | None = None


class ErrorEnvelope(BaseModel):
    """The body of every response with a status of 400 or more."""

    error: ErrorDetail


class ApiError(Exception):
    """An error answer; `message` says what was expected and what was found."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",  # noqa: A002 - OpenAI's name
        param: str | None = None,
        code: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)


def not_found(kind: str, id: str, *, param: str | None = None, code: str | None = None) -> ApiError:  # noqa: A002
    """404 for an object that does not exist or belongs to another project."""
    return ApiError(404, f"No such {kind}: {shorten(id)}.", param=param, code=code)


def in_use(kind: str, name: str, job_id: str, *, param: str) -> ApiError:
    """409 for an object that an unfinished job needs."""
    return ApiError(
        409,
        f"The {kind} {name} is used by the job {job_id}, which has not finished: wait for it or cancel it.",
        param=param,
        code=f"{kind}_in_use",
    )


def envelope(error: ApiError) -> dict[str, Any]:
    """The response body of `error`."""
    detail = error.detail
    shown = {"message": _printable(detail.message), "param": _printable(detail.param)}
    return {"error": detail.model_dump() | shown}


def error_response(error: ApiError) -> JSONResponse:
    """The response of `error`. It tells clients not to retry conflicts and defects, which a retry cannot fix."""
    headers = {"x-should-retry": "false"} if error.status in {409, 500, 507} else {}
    headers.update(error.headers)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(envelope(error), error.status, headers)


def disk_full() -> ApiError:
    """The 507 of a request that needs space on a full disk."""
    message = "The service's disk is full: delete files that are no longer needed, then try again."
    return ApiError(507, message, type="server_error", code="disk_full")


def outage_error(error: Exception) -> ApiError | None:
    """The error response to a failure of the database or the disk, which may pass; None for any other exception."""
    if is_full(error):
        return disk_full()
    if not is_outage(error):
        return None
    message = "The service cannot reach its database or its disk at the moment; try again."
    headers = {"retry-after": str(RETRY_SECONDS)}
    return ApiError(503, message, type="server_error", code="unavailable", headers=headers)


def server_error(request_id: str) -> ApiError:
    """The 500 of a defect; the log has the details under the same request id."""
    return ApiError(
        500,
        f"The server failed while answering; its log has the details under request id {request_id}.",
        type="server_error",
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` of a route: these statuses plus those of every authenticated route, with the envelope."""
    return {
        status: {"model": ErrorEnvelope, "description": HTTPStatus(status).phrase}
        for status in sorted({400, 401, 403, 413, 429, *statuses})
    }


VERSION = "/v1"
UNREADABLE = "There was an error parsing the body"
"""FastAPI's message for a body that cannot be parsed at all, such as bytes that are not UTF-8."""


def install(app: FastAPI) -> None:
    """Make `app` answer every error with the envelope."""

    @app.exception_handler(ApiError)
    def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(_invalid(error.errors(), error.body))

    @app.exception_handler(SQLAlchemyError)
    @app.exception_handler(OSError)
    async def outage(request: Request, error: Exception) -> JSONResponse:
        answer = outage_error(error)
        if answer is None:
            raise error
        if is_full(error):
            request.app.state.services.reserve.release()
        log.warning("a request met an outage", what=described(error), error=type(error).__name__)
        return error_response(answer)

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.detail == UNREADABLE:
            return error_response(ApiError(400, "The body is not valid JSON.", code="invalid_json"))
        messages = {
            404: f"Unknown request URL: {request.method} {request.url.path}.{_with_version(app, request)}",
            405: f"{request.method} is not allowed on {request.url.path}.",
        }
        plain = ApiError(error.status_code, messages.get(error.status_code, f"{error.detail}."))
        response = error_response(plain)
        response.headers.update(error.headers or {})
        if (
            error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
        ):  # Starlette lists the methods of a single route
            response.headers["allow"] = ", ".join(sorted(_allowed(app, request.url.path)))
        return response


def _with_version(app: FastAPI, request: Request) -> str:
    """Advice for a path without `/v1`, which means that the client's base_url lacks it; else empty."""
    path = f"{VERSION}{request.url.path}"
    if request.url.path.startswith(f"{VERSION}/") or not _allowed(app, path):
        return ""
    return f" Did you mean {path}? The client's base_url ends with {VERSION}."


def _allowed(app: FastAPI, path: str) -> set[str]:
    """The methods allowed on `path`: those of all routes with the first path template that matches."""
    routes = [route for route in app.routes if isinstance(route, Route) and route.path_regex.match(path)]
    return {method for route in routes if route.path == routes[0].path for method in route.methods or ()}


def _invalid(errors: Sequence[Any], body: object) -> ApiError:
    """A 400 with one sentence per refused field; `param` and `code` are those of the first."""
    issues = [_issue(error, body) for error in errors[:MAX_ISSUES]]
    sentences = at_most([message for _, message, _ in issues], len(errors))
    return ApiError(400, sentences, param=issues[0][0], code=issues[0][2])


def at_most(sentences: Sequence[str], count: int | None = None) -> str:
    """The first MAX_ISSUES of `sentences`, one per line, and how many of `count` (by default all) are left out."""
    left = (len(sentences) if count is None else count) - MAX_ISSUES
    more = [f"… and {left:,} more."] if left > 0 else []
    return "\n".join([*sentences[:MAX_ISSUES], *more])


def _issue(error: dict[str, Any], body: object) -> tuple[str | None, str, str | None]:
    """(param, sentence, code) of one pydantic error."""
    path = ".".join(_path(error["loc"][1:], body)) or None
    if path is not None and len(path) > PATH_LENGTH:
        path = f"{path[: PATH_LENGTH - 1]}…"
    kind, text = error["type"], error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], bytes) and path is None:
        return None, "Expected a JSON body, with the header Content-Type: application/json.", "invalid_json"
    if kind == "json_invalid":
        return None, f"The body is not valid JSON: {error['ctx']['error']}.", "invalid_json"
    if kind == "extra_forbidden":
        return path, f"Unknown parameter: {path!r}.", "unknown_parameter"
    if kind == "missing":
        what = f"Missing required parameter: {path!r}." if path else "The request needs a JSON body."
        return path, what, "missing_required_parameter"
    if kind == "value_error":
        return path, f"{path}: {text}", "invalid_value"
    return (
        path,
        f"{path or 'body'}: {text[:1].lower()}{text[1:]}, found {shorten(error['input'])}.",
        "invalid_value",
    )


def _path(location: Sequence[str | int], body: object) -> Iterator[str]:
    """The parts of `location` that lead to the place in the client's `body`.

    pydantic's location has extra parts: a marker that tells a key from its value, and the name of the model that the
    client chose by `type` among several.
    """
    here, chosen = body, False
    for part in location:
        if part == "[key]":
            continue
        if isinstance(here, dict) and here.get("type") == part and not chosen:
            chosen = True
            continue
        yield str(part)
        here, chosen = _inside(here, part), False


def _inside(value: Any, part: str | int) -> object:
    try:
        return value[part]
    except (LookupError, TypeError):
        return None


def shorten(value: object) -> str:
    """`value` as shown in a message. Only the beginning of a large value is read."""
    text, pieces = "", _pieces(value)
    while len(text) <= FOUND_LENGTH and (piece := next(pieces, None)) is not None:
        text += piece
    return text if len(text) <= FOUND_LENGTH else f"{text[: FOUND_LENGTH - 1]}…"


def _pieces(value: object) -> Iterator[str]:
    """`repr(value)` of a JSON value, in pieces."""
    if isinstance(value, str | bytes):
        yield repr(value[: FOUND_LENGTH + 1])
    elif isinstance(value, dict):
        yield "{"
        for number, (key, inner) in enumerate(value.items()):
            yield from (", " if number else "", *_pieces(key), ": ")
            yield from _pieces(inner)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for number, inner in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(inner)
        yield "]"
    else:
        yield repr(value)


def _printable(text: str | None) -> str | None:
    """`text` as valid UTF-8 (JSON may carry lone surrogates), with API keys removed."""
    return without_keys(text.encode("utf-8", "replace").decode("utf-8")) if text is not None else None
