"""What a client is told when an engine cannot answer, or refuses to."""

import json

from alignkit_server.engines.errors import EngineError, scrub_paths
from alignkit_server.errors import ApiError, envelope

MAX_MESSAGE = 1000
DATA = b"data:"
ERROR_KEY = b'"error"'
"""In a text of the model's the quotes would be escaped."""


def engine_error(error: EngineError) -> ApiError:
    """503: there is no engine to answer."""
    return ApiError(503, f"The model cannot answer: {error}.", type="server_error", code=error.code)


def engine_lost(base_model: str) -> ApiError:
    """503: the engine went away with the answer."""
    return ApiError(
        503,
        f"The engine of {base_model} ended or hung up before it had answered; try again.",
        type="server_error",
        code="engine_failed",
    )


def engine_refused(status: int, content: bytes) -> ApiError:
    """The engine's own error answer: its status and message, without the machine's paths."""
    try:
        error = json.loads(content)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, param = content.decode(errors="replace").strip() or "The engine gave no reason.", None
    return ApiError(
        status,
        scrub_paths(message)[:MAX_MESSAGE],
        type="invalid_request_error" if status < 500 else "server_error",
        param=param if isinstance(param, str) else None,
        code="model_not_found" if status == 404 else None,
    )


def as_event(error: ApiError) -> bytes:
    """The error envelope as a server-sent event, for an answer that has begun."""
    return b"data: %s\n\n" % json.dumps(envelope(error)).encode()


def with_errors_told(events: bytes) -> bytes:
    """Whole events of an engine, its own errors among them as a client may read them.

    The rest passes untouched: nearly all of it by one look for the key that every error has.
    """
    if ERROR_KEY not in events:
        return events
    return b"\n".join(_told(line) for line in events.split(b"\n"))


def _told(line: bytes) -> bytes:
    if not line.startswith(DATA) or ERROR_KEY not in line:
        return line
    content = line.removeprefix(DATA)
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return line
    if error is None:
        return line
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 500 else 500
    return as_event(engine_refused(status, content)).rstrip(b"\n")
