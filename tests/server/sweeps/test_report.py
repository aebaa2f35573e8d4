"""The report of a sweep over HTTP: what it shows, and what is said while there is none."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from alignkit.cli import app
from tests.server.support import Running
from tests.server.sweeps.conftest import arrive, made

Create = Callable[..., httpx.Response]


def measured(service: Running, sweep: dict[str, Any], number: int, **metrics: float) -> str:
    """Let the job of a point report metrics at step 3; returns its id."""
    job_id: str = sweep["points"][number]["job"]
    service.ledger.add_event(
        job_id, level="info", message="m", type="metrics", data={"step": 3} | metrics, source_line=1
    )
    return job_id


def cells(page: str) -> list[list[str]]:
    """The texts of each row of the page's tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_report_has_each_jobs_values_outcome_and_last_metrics(
    service: Running, create: Create, http: httpx.Client
) -> None:
    sweep = made(create({"beta": [0.1, 0.2, 0.5], "divergence": ["js_divergence"]}))
    a = measured(service, sweep, 0, valid_rewards_margins=0.25, valid_kl=0.5, train_loss=0.5)
    b = measured(service, sweep, 1, valid_rewards_margins=0.125, valid_kl=0.75)
    c = sweep["points"][2]["job"]
    error = {"code": "x", "message": "<script>alert(1)</script>", "param": None}
    service.ledger.transition(c, "failed", only_from=("queued",), error=error)
    answer = http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}/report")
    assert answer.status_code == 200, answer.text
    found = cells(answer.text)
    values = ["point", "job", "beta", "divergence", "status", "step"]
    assert found[0] == [*values, "train_loss", "valid_rewards_margins", "valid_kl", "why"]
    assert found[1] == ["point-001", a, "0.1", "js_divergence", "queued", "3", "0.5", "0.25", "0.5", ""]
    assert found[2] == ["point-002", b, "0.2", "js_divergence", "queued", "3", "-", "0.125", "0.75", ""]
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert found[3] == ["point-003", c, "0.5", "js_divergence", "failed", "0", "-", "-", "-", escaped]
    frontier = {row[0]: row[2:] for row in found[5:]}
    assert frontier == {"point-001": ["0.5", "0.25", "yes"], "point-002": ["0.75", "0.125", ""]}
    image = re.search(r"data:image/png;base64,([^\"]+)", answer.text)
    assert image is not None
    assert base64.b64decode(image[1]).startswith(b"\x89PNG")
    assert sweep["id"] in answer.text


def test_the_report_can_run_nothing(service: Running, create: Create, http: httpx.Client) -> None:
    sweep = made(create({"beta": [0.1]}))
    measured(service, sweep, 0, train_loss=0.5)
    found = http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}/report")
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-disposition"] == f'inline; filename="{sweep["id"]}.html"'
    policy = found.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "img-src data:", "frame-ancestors 'none'", "sandbox"} <= set(policy)
    assert not [part for part in policy if part.startswith("script-src")]


def test_a_job_that_was_stopped_says_why(service: Running, create: Create, http: httpx.Client) -> None:
    from alignkit_server.sweeps.advancing import advance

    halving = {"metric": "train_rewards_margins", "goal": "max", "rungs": [1], "keep": 0.5}
    sweep = made(create({"beta": [0.1, 0.2], "halving": halving}))
    a, b = (point["job"] for point in sweep["points"])
    arrive(service, sweep, 1, {a: 0.1, b: 0.9})
    advance(service.services.database, service.services)
    page = http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}/report").text
    assert "Stopped early by train_rewards_margins (max) at steps 1; 50% went on." in page
    reason = "train_rewards_margins 0.1 at step 1: place 2 of 2, of which 1 went on"
    assert [(row[1], row[3], row[-1]) for row in cells(page)[1:3]] == [
        (a, "stopped", reason),
        (b, "queued", ""),
    ]


def test_a_sweep_without_metrics_says_that_it_has_no_report(create: Create, http: httpx.Client) -> None:
    sweep = made(create({"beta": [0.1]}))["id"]
    url = f"/v1/fine_tuning/sweeps/{sweep}"
    early = http.get(f"{url}/report")
    assert (early.status_code, early.json()["error"]["code"]) == (404, "report_not_found")
    message = f"The sweep {sweep} has no report yet: none of its jobs has reported a metric."
    assert early.json()["error"]["message"] == message
    made(http.post(f"{url}/cancel"))
    late = http.get(f"{url}/report")
    assert (
        late.json()["error"]["message"]
        == f"The sweep {sweep} has no report: none of its jobs reported a metric."
    )


def test_another_project_and_a_key_that_does_not_read_are_refused(
    service: Running, create: Create, project: str
) -> None:
    sweep = made(create({"beta": [0.1]}))
    measured(service, sweep, 0, train_loss=0.5)
    url = f"/v1/fine_tuning/sweeps/{sweep['id']}/report"
    with service.http(service.new_key(f"{project}-other")) as other:
        refused = other.get(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            404,
            None,
        )  # as of one that never was
    with service.http(service.new_key(project, "inference")) as inference:
        assert inference.get(url).status_code == 403


def test_the_command_writes_the_report_to_a_file(
    service: Running, key: str, create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = made(create({"beta": [0.1]}))
    job_id = measured(service, sweep, 0, train_loss=0.5)
    monkeypatch.setenv("ALIGNKIT_BASE_URL", f"{service.url}/v1")
    monkeypatch.setenv("ALIGNKIT_API_KEY", key)
    target = tmp_path / "mine.html"
    done = CliRunner().invoke(app, ["jobs", "report", sweep["id"], "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert job_id in target.read_text(encoding="utf-8")
