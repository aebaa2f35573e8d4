"""/metrics over HTTP: who may read it, and that what it says is so."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from alignkit_server.keys.scopes import SCOPES, scopes_for
from alignkit_server.settings import Settings
from tests.server.support import Running, create_job, serve


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A service whose jobs are counted."""
    with serve(tmp_path_factory.mktemp("home"), metrics_open=True) as running:
        yield running


def values(running: Running, key: str | None = None) -> dict[tuple[str, ...], float]:
    """Every sample by its name and labels."""
    answer = running.http(key).get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_only_an_admin_reads_them_unless_they_are_open(service: Running, key: str) -> None:
    assert service.http(None).get("/metrics").status_code == 401
    assert service.http(key).get("/metrics").status_code == 403
    admin = service.new_key("operations", *SCOPES)
    assert ("alignkit_jobs", "queued") in values(service, admin)


def test_jobs_by_state_waits_and_pace(own: Running) -> None:
    with own.client(own.new_key("mine")) as client:
        first, second = (create_job(client).id for _ in range(2))
    created = own.ledger.get(first).created_at
    own.ledger.transition(first, "running", only_from=("queued",), started_at=created + 7)
    for step in (10, 20):
        own.ledger.add_event(
            first,
            level="info",
            message="a step",
            type="metrics",
            data={"step": step, "num_tokens": 100 * step},
            created_at=created + step,
        )
    found = values(own)
    assert (found["alignkit_jobs", "queued"], found["alignkit_jobs", "running"]) == (1, 1)
    assert found["alignkit_jobs", "paused"] == 0
    assert found["alignkit_job_queue_wait_seconds_count",] == 1
    assert found["alignkit_job_queue_wait_seconds_sum",] == 7
    assert found["alignkit_job_oldest_wait_seconds",] >= 0
    assert found["alignkit_job_step_seconds", first] == 1
    assert found["alignkit_job_tokens_per_second", first] == 100
    assert ("alignkit_job_step_seconds", second) not in found


def test_the_pace_knows_of_no_pause_and_of_no_step_twice(
    own: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own.client(own.new_key("paced")) as client:
        job_id = create_job(client).id
    ledger, time = own.ledger, own.ledger.get(job_id).created_at
    monkeypatch.setattr("alignkit_server.jobs.repository.now", lambda: time)

    def report(at: int, step: int) -> None:
        ledger.add_event(
            job_id, level="info", message="a step", type="metrics", data={"step": step}, created_at=at
        )

    ledger.transition(job_id, "running", only_from=("queued",))
    report(time + 1, 1)
    ledger.transition(job_id, "paused", only_from=("running",))
    time += 1000
    ledger.transition(job_id, "queued", only_from=("paused",))
    ledger.transition(job_id, "running", only_from=("queued",))
    for at, step in ((10, 3), (12, 4), (13, 5), (40, 4), (42, 5), (44, 6)):  # killed after its fifth step
        report(time + at, step)
    assert values(own)["alignkit_job_step_seconds", job_id] == 2


def test_requests_are_counted_by_route_and_never_by_id(own: Running) -> None:
    with own.http(own.new_key("mine")) as http:
        for path in ("/v1/files/file-a", "/v1/files/file-b", "/nowhere/secret"):
            http.get(path)
    found = values(own)
    assert found["alignkit_request_seconds_count", "GET", "/v1/files/{file_id}", "404"] == 2
    assert found["alignkit_request_seconds_count", "GET", "none", "404"] >= 1
    assert not any("secret" in part or "file-a" in part for labels in found for part in labels)


def test_engines_by_state(tmp_path: Path) -> None:
    from alignkit_server.engines.facts import EngineFacts
    from alignkit_server.metrics.collector import ServiceCollector

    with serve(tmp_path) as running:
        engines = [EngineFacts("tiny", "ready"), EngineFacts("far", "external")]
        collector = ServiceCollector(running.services.database, lambda: engines)
        (family,) = (family for family in collector.collect() if family.name == "alignkit_engine")
    states = {sample.labels["state"]: sample.value for sample in family.samples}
    assert states == {"stopped": 0, "starting": 0, "ready": 1, "sleeping": 0, "failed": 0}


def test_the_setting_names_the_scopes_that_metrics_need() -> None:
    said = Settings.model_fields["metrics_open"].description or ""
    assert {scope for scope in SCOPES if scope in said.split()} == scopes_for("GET", "/metrics")
