"""OpenTelemetry traces of requests and job stages; needs the extra `otel` and an endpoint.

OTEL_EXPORTER_OTLP_ENDPOINT names the endpoint, as in OpenTelemetry; without it this module does nothing.
All stages of a job form one trace, even across servers: the trace id is derived from the job id.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from fastapi import FastAPI

from alignkit_server.redaction import without_keys

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
UNTRACED = "healthz,readyz,metrics"

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()
_tracer: Any = None
_first: ContextVar[tuple[int, int] | None] = ContextVar("_first", default=None)
"""Fixed (trace id, span id) for the span about to start; None for random ids."""


def install(app: FastAPI) -> Callable[[], None]:
    """Trace the app's requests and jobs if an endpoint is set. Returns a function that flushes and stops tracing."""
    global _tracer  # noqa: PLW0603 - the stages of jobs are module functions
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as missing:
        log.warning("no traces: run `pip install 'alignkit[otel]'`", missing=missing.name)
        return lambda: None
    name = os.environ.get("OTEL_SERVICE_NAME", "alignkit")
    provider = TracerProvider(resource=Resource.create({"service.name": name}), id_generator=_id_generator())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        excluded_urls=UNTRACED,
        exclude_spans=["receive", "send"],
        server_request_hook=_hide_keys,
    )
    _tracer = provider.get_tracer("alignkit")
    return provider.shutdown


def _hide_keys(span: Any, _scope: Any) -> None:
    """Remove API keys from a span's path and query."""
    for name, value in dict(span.attributes or {}).items():
        if isinstance(value, str) and without_keys(value) != value:
            span.set_attribute(name, without_keys(value))


def stage(
    name: str,
) -> Callable[[Callable[Concatenate[str, P], R]], Callable[Concatenate[str, P], R]]:
    """Decorator: each call becomes a span in the trace of the job whose id is the first argument."""

    def decorate(step: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
        @functools.wraps(step)
        def traced(job_id: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
            with _span(name, job_id):
                return step(job_id, *args, **kwargs)

        return traced

    return decorate


@contextmanager
def _span(name: str, job_id: str) -> Iterator[None]:
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(
        f"job {name}", context=_trace_of(job_id), attributes={"job_id": job_id}
    ):
        yield


def queued(job_id: str, created_at: int) -> None:
    """Record the first span of a job's trace, the parent of its stages: from the job's creation until now."""
    if _tracer is None:
        return
    from opentelemetry.context import Context

    given = _first.set(_ids_of(job_id))
    try:
        span = _tracer.start_span(
            "job queued", Context(), start_time=created_at * 10**9, attributes={"job_id": job_id}
        )
    finally:
        _first.reset(given)
    span.end()


def _ids_of(job_id: str) -> tuple[int, int]:
    """The ids of a job's trace and of its first span."""
    digest = hashlib.sha256(job_id.encode()).digest()
    return int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])


def _id_generator() -> Any:
    """A generator of random ids, except for those set in `_first`."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            given = _first.get()
            return given[0] if given else super().generate_trace_id()

        def generate_span_id(self) -> int:
            given = _first.get()
            return given[1] if given else super().generate_span_id()

    return Ids()


def _trace_of(job_id: str) -> Any:
    """The context of a job's trace."""
    from opentelemetry import trace

    trace_id, span_id = _ids_of(job_id)
    whole = trace.SpanContext(
        trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(whole))
