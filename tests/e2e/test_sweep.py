"""A sweep on the real service: its jobs render their rows once, and its report has what they reached."""

import pytest

from tests.e2e.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
STORED = "the token ids of its rows are those that an earlier run stored"


def test_the_jobs_of_a_sweep_share_their_token_ids_and_have_a_report(service: Service) -> None:
    client = service.client
    files = [
        client.files.create(file=service.home / name, purpose="fine-tune").id
        for name in ("train.jsonl", "validation.jsonl")
    ]
    options = {"batch_size": 4, "max_steps": 2, "learning_rate_multiplier": 50}
    body = {
        "model": "tiny",
        "training_file": files[0],
        "validation_file": files[1],
        "method": {"type": "f_dpo", "f_dpo": {"hyperparameters": options}},
        "sweep": {"beta": [0.1, 0.5]},
    }
    sweep = client.post("/fine_tuning/sweeps", body=body, cast_to=dict)
    jobs = [point["job"] for point in sweep["points"]]
    assert [service.finish(job_id).status for job_id in jobs] == ["succeeded", "succeeded"]
    told = [[line for line in service.messages(job_id) if "token ids" in line] for job_id in jobs]
    assert told == [[], [f"{file_id}: {STORED}" for file_id in files]]
    folder = client.files.retrieve(files[0]).id
    assert len(list((service.home / "tokens").glob(f"*/{folder}/*.tokens"))) == 1
    report = client.get(f"/fine_tuning/sweeps/{sweep['id']}/report", cast_to=str)
    assert all(job_id in report for job_id in jobs)
    assert "2 succeeded" in report
