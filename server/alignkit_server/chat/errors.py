"""Error answers for an engine that cannot answer or refuses a request."""

import json

from alignkit.redaction import scrub_paths
from alignkit_server.engines.errors import EngineError
from alignkit_server.errors import ApiError, envelope

NO_TOOLS = (
    "The model's chat template writes tool calls in no form that the engine is known to read: ask with tool_choice "
    "'none', or let the server's operator set ALIGNKIT_ENGINE__TOOL_PARSER to one of vLLM's tool call parsers."
)
MAX_MESSAGE = 1000
DATA = b"data:"
ERROR_KEY = b'"error"'
"""The key of every error; inside a model's text its quotes would be escaped, but a token's log-prob may have it."""
MAX_ERROR_BYTES = 64 * 2**10
"""Above this an event is an answer, and is not parsed: that would keep the event loop from all other requests."""


def engine_error(error: EngineError) -> ApiError:
    """The 503 of an engine that is not available."""
    return ApiError(503, f"The model cannot answer: {error}.", type="server_error", code=error.code)


def engine_lost(base_model: str) -> ApiError:
    """The 503 of an engine that ended or closed the connection before it finished its answer."""
    return ApiError(
        503,
        f"The engine of {base_model} stopped before it finished its answer; try again.",
        type="server_error",
        code="engine_failed",
    )


def engine_refused(status: int, content: bytes) -> ApiError:
    """The engine's own error, with its status and message, without paths of this machine."""
    try:
        error = json.loads(content)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, param = content.decode(errors="replace").strip() or "The engine gave no reason.", None
    if "--tool-call-parser" in message:  # a flag of a process that the client cannot start
        message = NO_TOOLS
    return ApiError(
        status,
        scrub_paths(message)[:MAX_MESSAGE],
        type="invalid_request_error" if status < 500 else "server_error",
        param=param if isinstance(param, str) else None,
        code="model_not_found" if status == 404 else None,
    )


def too_large(what: str, most_bytes: int, remedy: str) -> ApiError:
    """The 400 of an answer, or an event of one, that the service does not hold in memory."""
    return ApiError(
        400,
        f"{what} is larger than {most_bytes:,} bytes: request fewer tokens, log-probabilities or {remedy}.",
        code="answer_too_large",
    )


def as_event(error: ApiError) -> bytes:
    """The error envelope as a server-sent event, for a response that has already started."""
    return b"data: %s\n\n" % json.dumps(envelope(error)).encode()


def with_error_envelopes(events: bytes) -> bytes:
    """Complete events of an engine, with the engine's own errors rewritten as error envelopes.

    Everything else passes unchanged; a single search for the key of every error settles nearly all chunks.
    """
    if ERROR_KEY not in events:
        return events
    lines = events.split(b"\n")
    told = [_with_envelope(line) for line in lines]
    return events if told == lines else b"\n".join(told)


def _with_envelope(line: bytes) -> bytes:
    if len(line) > MAX_ERROR_BYTES or not line.startswith(DATA) or ERROR_KEY not in line:
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
