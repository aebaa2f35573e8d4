"""Structured logs on stderr: readable on a terminal, one JSON object per line elsewhere."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from alignkit_server.redaction import without_keys

HANDLER_NAME = "alignkit"


def configure() -> None:
    """Send records of structlog and of the standard library to the same handler. Safe to call again."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.name = HANDLER_NAME
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=_rendering(sys.stderr.isatty())
        )
    )
    root = logging.getLogger()
    root.handlers = [kept for kept in root.handlers if kept.name != HANDLER_NAME] + [handler]
    root.setLevel(logging.INFO)
    for chatty in ("uvicorn.access", "httpx", "httpx2", "httpcore", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _rendering(terminal: bool) -> list[Processor]:  # noqa: FBT001 - one question
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if terminal:
        return [strip, structlog.dev.ConsoleRenderer(), _without_keys]
    return [strip, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(), _without_keys]


def _without_keys(_: WrappedLogger, __: str, line: EventDict) -> str:
    """The rendered line with API keys removed."""
    return without_keys(str(line))
