"""Sweeps over HTTP: creation as a whole or not at all, the table, rungs, cancelling, and what is refused."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import OpenAI

from alignkit.sweep import sweep_of
from alignkit_server.sweeps.advancing import advance
from alignkit_server.sweeps.schemas import SweepRequest
from tests.docs.blocks import BLOCKS
from tests.server.support import Running, upload
from tests.server.sweeps.conftest import HALVING, arrive, made


def move_on(service: Running) -> None:
    advance(service.services.database, service.services)


def test_each_combination_is_an_ordinary_job_with_its_values(
    create: Callable[..., httpx.Response], client: OpenAI, http: httpx.Client
) -> None:
    options = {"beta": [0.05, 0.1], "divergence": ["reverse_kl", "js_divergence"]}
    sweep = made(create(options, metadata={"team": "a"}))
    assert sweep["object"] == "fine_tuning.sweep"
    assert (sweep["status"], sweep["next_rung"], sweep["sweep"]) == ("running", None, options)
    assert [point["values"] for point in sweep["points"]] == [
        {"beta": beta, "divergence": name} for beta in options["beta"] for name in options["divergence"]
    ]
    jobs = [client.fine_tuning.jobs.retrieve(point["job"]) for point in sweep["points"]]
    for job, point in zip(jobs, sweep["points"], strict=True):
        assert job.method is not None
        given = job.method.to_dict()["f_dpo"]["hyperparameters"]
        assert {name: given[name] for name in options} == point["values"]
        assert job.metadata is not None
        assert (job.metadata["team"], job.metadata["sweep"]) == ("a", sweep["id"])
    assert len({job.seed for job in jobs}) == 1
    listed = http.get("/v1/fine_tuning/sweeps").json()["data"]
    assert [one["id"] for one in listed] == [sweep["id"]]


def test_the_pages_request_is_one() -> None:
    (block,) = (block for block in BLOCKS if (block.page, block.language) == ("docs/sweeps.md", "json"))
    request = SweepRequest.model_validate_json(block.text)
    sweep = sweep_of(request.sweep)
    assert len(list(sweep.points())) == 6
    assert sweep.halving is not None


def test_weak_jobs_stop_at_each_rung_and_the_others_go_on(
    service: Running, create: Callable[..., httpx.Response], client: OpenAI, http: httpx.Client
) -> None:
    sweep = made(create({"beta": [0.01, 0.05, 0.1, 0.5], "halving": HALVING}))
    a, b, c, d = (point["job"] for point in sweep["points"])
    assert service.ledger.get(a).recipe["training"]["pause_at"] == 1
    arrive(service, sweep, 1, {a: 0.1, b: 0.9, c: None})
    move_on(service)
    assert client.fine_tuning.jobs.retrieve(a).status == "paused", "one job has not arrived"
    arrive(service, sweep, 1, {d: 0.5})
    move_on(service)
    now = http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}").json()
    assert [point["status"] for point in now["points"]] == ["stopped", "queued", "stopped", "queued"]
    reason = "train_rewards_margins 0.1 at step 1: place 3 of 3, of which 2 went on"
    assert [now["points"][at]["reason"] for at in (0, 2)] == [reason, "no train_rewards_margins up to step 1"]
    assert (now["next_rung"], now["points"][1]["metrics"]["train_rewards_margins"]) == (2, 0.9)
    again = service.ledger.get(b)
    assert (again.recipe["training"]["pause_at"], again.attempt) == (2, 2)
    assert {b, d} <= {job.id for job in service.runner.enqueued if job.attempt == 2}
    assert client.fine_tuning.jobs.retrieve(a).status == "cancelled"

    arrive(service, sweep, 2, {b: 0.8, d: 0.9})
    move_on(service)
    assert service.ledger.get(d).recipe["training"]["pause_at"] is None
    assert http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}").json()["next_rung"] is None
    service.ledger.transition(d, "succeeded", only_from=("queued",))
    move_on(service)
    ended = http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}").json()
    assert (ended["status"], ended["best"], ended["error"]) == ("succeeded", d, None)
    assert ended["finished_at"] is not None


def test_a_job_that_fails_ends_no_other(
    service: Running, create: Callable[..., httpx.Response], http: httpx.Client
) -> None:
    sweep = made(create({"beta": [0.01, 0.1, 0.5], "halving": HALVING}))
    a, b, c = (point["job"] for point in sweep["points"])
    error = {"code": "x", "message": "It broke.", "param": None}
    service.ledger.transition(a, "failed", only_from=("queued",), error=error, finished_at=1)
    arrive(service, sweep, 1, {b: 0.1, c: 0.2})
    move_on(service)
    found = http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}").json()
    assert [point["status"] for point in found["points"]] == ["failed", "stopped", "queued"]
    assert found["points"][0]["reason"] == "It broke."
    service.ledger.transition(c, "failed", only_from=("queued",), error=error, finished_at=1)
    move_on(service)
    ended = http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}").json()
    assert (ended["status"], ended["error"]["code"]) == ("failed", "no_job_succeeded")
    assert ended["error"]["message"] == "No job of the sweep succeeded: It broke."


def test_a_metric_that_no_job_reports_ends_the_sweep_with_those_there_are(
    service: Running, create: Callable[..., httpx.Response], http: httpx.Client
) -> None:
    sweep = made(create({"beta": [0.01, 0.1], "halving": HALVING}))
    jobs = [point["job"] for point in sweep["points"]]
    arrive(service, sweep, 1, dict.fromkeys(jobs))
    move_on(service)
    found = http.get(f"/v1/fine_tuning/sweeps/{sweep['id']}").json()
    assert (found["status"], found["error"]["code"]) == ("failed", "metric_not_reported")
    assert "reported were step, train_loss" in found["error"]["message"]
    assert [point["status"] for point in found["points"]] == ["paused", "paused"]
    cancelled = made(http.post(f"/v1/fine_tuning/sweeps/{sweep['id']}/cancel"))
    assert [point["status"] for point in cancelled["points"]] == ["cancelled", "cancelled"]


def test_cancelling_cancels_the_jobs_that_have_not_finished(
    service: Running, create: Callable[..., httpx.Response], http: httpx.Client
) -> None:
    sweep = made(create({"beta": [0.01, 0.1]}))
    first, second = (point["job"] for point in sweep["points"])
    service.ledger.transition(first, "succeeded", only_from=("queued",))
    url = f"/v1/fine_tuning/sweeps/{sweep['id']}/cancel"
    cancelled = made(http.post(url))
    assert cancelled["status"] == "cancelled"
    assert [point["status"] for point in cancelled["points"]] == ["succeeded", "cancelled"]
    assert second in {job.id for job in service.runner.cancelled}
    refused = http.post(url)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "sweep_already_finished")


@pytest.mark.parametrize(
    ("sweep", "param", "message"),
    [
        (
            {"beta": list(range(1, 1001)), "alpha": list(range(1000))},
            "sweep",
            "at most 64 points, found 1,000,000",
        ),
        ({"bogus": [1, 2]}, "sweep.bogus", "sweep.bogus"),
        ({"beta": [0.1, -1]}, "sweep.beta", "sweep.beta"),
        ({"beta": 0.1}, "sweep.beta", "expected a list of values"),
        ({}, "sweep", "at least one option"),
        ({"n_epochs": [1, 2], "halving": HALVING}, "sweep.n_epochs", "cannot vary"),
        (
            {"beta": [0.1], "halving": {"metric": "valid_loss", "rungs": [1]}},
            "sweep.halving.metric",
            "validation",
        ),
        (
            {"beta": [0.1], "halving": HALVING | {"rungs": [4]}},
            "sweep.halving.rungs",
            "expected steps below 4",
        ),
        ({"beta": [0.1], "halving": {"rungs": [1]}}, "sweep.halving.metric", "required"),
    ],
)
def test_a_sweep_that_is_not_possible_is_refused_and_leaves_no_job(
    create: Callable[..., httpx.Response], client: OpenAI, sweep: dict[str, Any], param: str, message: str
) -> None:
    refused = create(sweep)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert not list(client.fine_tuning.jobs.list())


def test_a_sweep_beyond_the_quota_leaves_no_job(
    service: Running, create: Callable[..., httpx.Response], client: OpenAI, project: str
) -> None:
    admin = service.client(service.new_key("admins", "admin")).admin.organization.projects
    mine = next(found for found in admin.list(limit=100) if found.name == project)
    with service.http(service.new_key("admins", "admin")) as http:
        made(http.post(f"/v1/organization/projects/{mine.id}", json={"limits": {"jobs_queued": 2}}))
    refused = create({"beta": [0.1, 0.2, 0.3]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert not list(client.fine_tuning.jobs.list())


def test_the_same_key_and_body_give_the_same_sweep(
    create: Callable[..., httpx.Response], client: OpenAI, http: httpx.Client
) -> None:
    training, headers = upload(client), {"Idempotency-Key": "once"}
    first, second = (made(create({"beta": [0.1]}, headers, training_file=training)) for _ in range(2))
    assert first["id"] == second["id"]
    assert len(list(client.fine_tuning.jobs.list())) == 1
    other = create({"beta": [0.2]}, headers, training_file=training)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


def test_another_project_and_a_key_that_only_reads_are_refused(
    service: Running, create: Callable[..., httpx.Response], project: str
) -> None:
    sweep = made(create({"beta": [0.1]}))
    url = f"/v1/fine_tuning/sweeps/{sweep['id']}"
    with service.http(service.new_key(f"{project}-other")) as other:
        assert other.get(url).status_code == other.post(f"{url}/cancel").status_code == 404
        assert other.get("/v1/fine_tuning/sweeps").json()["data"] == []
    with service.http(service.new_key(project, "read")) as reader:
        assert reader.get(url).status_code == 200
        assert reader.post(f"{url}/cancel").status_code == 403


def test_files_are_read_once_for_all_jobs(
    create: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit_server.jobs import data_files

    read: list[str] = []
    check = data_files.check_file

    def checking(path: Any, name: str, **options: Any) -> Any:
        read.append(name)
        return check(path, name, **options)

    monkeypatch.setattr(data_files, "check_file", checking)
    made(create({"beta": [0.1, 0.2, 0.3, 0.4]}))
    assert len(read) == 1
