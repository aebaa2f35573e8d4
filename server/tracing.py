"""OpenTelemetry traces of requests and of the stages of jobs: with the extra `otel`, and an endpoint to send them to.

The endpoint is named as OpenTelemetry names it, OTEL_EXPORTER_OTLP_ENDPOINT; without one nothing here does anything.
All stages of a job are one trace, whichever servers worked on them: its id follows from the job's.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from fastapi import FastAPI

from server.keys.redaction import without_keys

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
UNTRACED = "healthz,readyz,metrics"

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()
_tracer: Any = None


def install(app: FastAPI) -> Callable[[], None]:
    """Trace the app's requests and jobs, if that is asked for; what is returned sends the rest and ends it."""
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
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
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
    """A key in a path or a query stays here."""
    for name, value in dict(span.attributes or {}).items():
        if isinstance(value, str) and without_keys(value) != value:
            span.set_attribute(name, without_keys(value))


def stage(
    name: str,
) -> Callable[[Callable[Concatenate[str, P], R]], Callable[Concatenate[str, P], R]]:
    """A decorator: each call of the function, whose first argument is a job's id, is a span of that job's trace."""

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


def _trace_of(job_id: str) -> Any:
    """The context of a job's trace."""
    from opentelemetry import trace

    digest = hashlib.sha256(job_id.encode()).digest()
    whole = trace.SpanContext(
        trace_id=int.from_bytes(digest[:16]),
        span_id=int.from_bytes(digest[16:24]),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(whole))
