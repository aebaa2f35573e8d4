"""The report of a job's run, as the service gives it out."""

from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI, PermissionDeniedError
from typer.testing import CliRunner

from alignkit.cli import app
from tests.server.support import Running, create_job


@pytest.fixture
def reported(service: Running, client: OpenAI) -> str:
    job_id: str = create_job(client).id
    folder = service.settings.jobs_dir / job_id
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<!doctype html><p>é", encoding="utf-8")
    return job_id


def test_a_report_is_served_as_a_page_that_can_run_nothing(service: Running, key: str, reported: str) -> None:
    with service.http(key) as http:
        found = http.get(f"/v1/fine_tuning/jobs/{reported}/report")
    assert found.text == "<!doctype html><p>é"
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.headers["x-content-type-options"] == "nosniff"
    policy = {
        part.split()[0]: part.split()[1:] for part in found.headers["content-security-policy"].split(";")
    }
    assert policy["default-src"] == ["'none'"]
    assert policy["img-src"] == ["data:"]
    assert policy["frame-ancestors"] == ["'none'"]
    assert policy["sandbox"] == []
    assert "script-src" not in policy


def test_a_job_that_has_not_trained_has_no_report_yet(client: OpenAI) -> None:
    job_id = create_job(client).id
    with pytest.raises(NotFoundError, match=r"has no report yet: it is written when training ends.*'queued'"):
        client.get(f"/fine_tuning/jobs/{job_id}/report", cast_to=str)


def test_a_finished_job_without_a_report_says_so(service: Running, client: OpenAI) -> None:
    job_id = create_job(client).id
    client.fine_tuning.jobs.cancel(job_id)
    with pytest.raises(NotFoundError, match="has no report: its training wrote none"):
        client.get(f"/fine_tuning/jobs/{job_id}/report", cast_to=str)


def test_a_report_goes_with_its_jobs_folder(service: Running, client: OpenAI, reported: str) -> None:
    service.ledger.transition(reported, "succeeded", only_from=("queued",))
    client.post(f"/fine_tuning/jobs/{reported}/prune", cast_to=object)
    with pytest.raises(NotFoundError, match="has no report any more: its folder was removed"):
        client.get(f"/fine_tuning/jobs/{reported}/report", cast_to=str)


def test_a_report_needs_the_scope_read(service: Running, project: str, reported: str) -> None:
    with service.client(service.new_key(project, "inference")) as other, pytest.raises(PermissionDeniedError):
        other.get(f"/fine_tuning/jobs/{reported}/report", cast_to=str)


def test_the_command_writes_the_report_to_a_file(
    service: Running, key: str, reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_BASE_URL", f"{service.url}/v1")
    monkeypatch.setenv("ALIGNKIT_API_KEY", key)
    target = tmp_path / "mine.html"
    done = CliRunner().invoke(app, ["jobs", "report", reported, "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(target)
    assert target.read_text(encoding="utf-8") == "<!doctype html><p>é"
