"""Traces as a collector receives them, over OTLP: requests without keys, the stages of a job in one trace."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignkit_server import tracing
from alignkit_server.runner import step_services, training
from alignkit_server.runner.step_services import JobFailedError, StepServices
from alignkit_server.settings import Settings
from tests.server.runner.test_workflow import LAST, FakeEngines, FakeExecutor
from tests.server.support import Running, create_job, serve

pytest.importorskip("opentelemetry.instrumentation.fastapi", reason="the extra `otel` is not installed")


class Collector(BaseHTTPRequestHandler):
    """Takes what is sent to /v1/traces."""

    def do_POST(self) -> None:
        self.server.bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
    """A collector's address in the environment; what it was sent."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    bodies: list[tuple[str, bytes]] = []
    server.bodies = bodies  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(tracing, "_tracer", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    yield bodies
    server.shutdown()
    server.server_close()


def spans(bodies: list[tuple[str, bytes]]) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    assert {path for path, _ in bodies} == {"/v1/traces"}
    requests = [ExportTraceServiceRequest.FromString(body) for _, body in bodies]
    resources = [resource for request in requests for resource in request.resource_spans]
    return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


def work_on_a_job(running: Running, home: Path) -> str:
    """Launch a job, whose training dies at once; its id."""
    with running.client(running.new_key("mine")) as client:
        job_id: str = create_job(client).id
    executor: Any = FakeExecutor()
    engines: Any = FakeEngines()
    services = StepServices(Settings(home=home), running.ledger, executor, engines, threading.Event())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_services, "_services", services)
        assert training.launch(job_id)
        with pytest.raises(JobFailedError):
            training.watch(job_id, start=LAST)
    return job_id


def test_requests_and_stages_arrive_without_keys(collector: list[tuple[str, bytes]], tmp_path: Path) -> None:
    stray = "sk-" + "x" * 43
    with serve(tmp_path) as running:
        with running.http(running.new_key("other")) as http:
            for path in ("/v1/models", f"/v1/files/{stray}?key={stray}", "/healthz"):
                http.get(path)
        job_id = work_on_a_job(running, tmp_path)
        created = running.ledger.get(job_id).created_at
    found = spans(collector)
    names = [span.name for span in found]
    assert {"GET /v1/models", "GET /v1/files/{file_id}", "POST /v1/fine_tuning/jobs"} <= set(names)
    assert not any("healthz" in name or "http send" in name for name in names)
    stages = [span for span in found if span.name.startswith("job ")]
    assert [span.name for span in stages] == ["job queued", "job launch", "job train"]
    first, *others = stages
    assert len({span.trace_id for span in stages}) == 1
    assert first.parent_span_id == b""
    assert [span.parent_span_id for span in others] == [first.span_id] * 2
    assert first.start_time_unix_nano == created * 10**9
    assert [attribute.value.string_value for attribute in first.attributes] == [job_id]
    assert [span.status.code for span in stages] == [0, 0, 2], "the last says that it failed"
    assert not any(stray.encode() in body for _, body in collector)


@pytest.mark.usefixtures("collector")
def test_a_missing_extra_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.instrumentation.fastapi", None)
    with serve(tmp_path) as running, running.http(None) as http:
        assert http.get("/healthz").is_success
    told = capsys.readouterr()
    assert "alignkit[otel]" in told.err + told.out


def test_without_an_endpoint_nothing_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_tracer", None)
    with serve(tmp_path) as running:
        work_on_a_job(running, tmp_path)
    assert tracing._tracer is None
