"""No answer to a key without the scope read holds anything that a project's files hold, whatever the key asks for."""

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI

from alignkit_server.app import ROUTERS, create_app
from alignkit_server.chat.routes import router as chat
from alignkit_server.settings import Settings
from alignkit_server.tables import Job, Sweep
from tests.server.keys.test_scopes import NEEDED, operations
from tests.server.support import BASE_MODEL, TINY_CONFIG, Running, method, pairs, serve, upload
from tests.tiny import build_tiny_tokenizer

MARK = "zqx7"
"""A text that only files hold."""
REFUSES = "{% for m in messages %}{% if 'refuse' in m.content %}{{ raise_exception(m.content) }}{% endif %}"
WITHOUT_READ = ("train", "inference", "metrics")
SUPERVISED = {"type": "supervised"}
KTO = {"type": "kto"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("home")) as running:
        folder = running.settings.models_dir / BASE_MODEL
        tokenizer = build_tiny_tokenizer(folder)
        tokenizer.chat_template = f"{REFUSES}{{% endfor %}}{tokenizer.chat_template}"
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(TINY_CONFIG)
        yield running


def lines(*rows: Any) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def parquet(*rows: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


PAIR: dict[str, Any] = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
SPOKEN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
REFUSED = [{"role": "user", "content": f"refuse {MARK}"}]
Bad = tuple[bytes, dict[str, Any], dict[str, Any]]
BAD: dict[str, Bad] = {
    "a text for messages": (lines({"messages": MARK}), SUPERVISED, {}),
    "columns that make a text messages": (lines({"x": MARK}), SUPERVISED, {"columns": {"x": "messages"}}),
    "a column that is not there": (lines({MARK: "a"}), SUPERVISED, {"columns": {"x": "messages"}}),
    "keys of no form": (lines({MARK: "a", "b": "c"}), SUPERVISED, {}),
    "a key beside the right ones": (lines({"prompt": "a", MARK: "b"}), method(), {}),
    "a key twice": (lines(PAIR, f'{{"{MARK}": 1, "{MARK}": 2}}'), method(), {}),
    "a number in place of a text": (lines(PAIR | {"chosen": 4711471147}), method(), {}),
    "a role": (lines(PAIR | {"prompt": [{"role": MARK, "content": "a"}]}), method(), {}),
    "a speaker": (
        lines({"conversations": [{"from": MARK, "value": "a"}, {"from": "gpt", "value": "b"}]}),
        SUPERVISED,
        {},
    ),
    "a type of part": (
        lines(PAIR | {"chosen": [{"role": "assistant", "content": [{"type": MARK}]}]}),
        method(),
        {},
    ),
    "a picture": (lines(PAIR | {"image": MARK}), method(), {}),
    "a tool": (lines({"messages": SPOKEN, "tools": [MARK]}), SUPERVISED, {}),
    "a label": (lines({"prompt": "a", "completion": "b", "label": MARK}), KTO, {}),
    "a weight": (lines({"messages": [SPOKEN[0], SPOKEN[1] | {"weight": MARK}]}), SUPERVISED, {}),
    "a group, next to a bad row": (lines(PAIR | {"group": MARK}, {"prompt": "a"}), method(), {}),
    "an unused key, next to a bad row": (lines(PAIR | {MARK: "a"}, {"prompt": "a"}), method(), {}),
    "what the chat template says": (lines(PAIR, PAIR | {"prompt": REFUSED}), method(), {}),
    "a column of bytes": (parquet(PAIR | {MARK: b"\xff\xfe"}), method(), {}),
}
"""Name -> a file with MARK in it, the method of a job on it, and hyperparameters."""
UNREADABLE = {
    "a text": lines(f'"{MARK}"'),
    "a column of a CSV file twice": f"prompt,{MARK},{MARK}\na,b,c\n".encode(),
}
"""Files that are refused once they are uploaded."""
NUMBER = "4711471147"


def quoted(text: str) -> bool:
    return MARK in text or NUMBER in text


def asked(file_id: str, bad: Bad, param: str = "training_file", **more: Any) -> dict[str, Any]:
    kind = bad[1]["type"]
    given = (bad[1].get(kind) or {}).get("hyperparameters", {}) | bad[2]
    body = {
        "model": BASE_MODEL,
        "training_file": file_id,
        "method": {"type": kind, kind: {"hyperparameters": given}},
    }
    return body | {param: file_id} | more


@pytest.fixture
def limited(service: Running, project: str) -> Iterator[httpx.Client]:
    with service.http(service.new_key(project, *WITHOUT_READ)) as http:
        yield http


@pytest.fixture
def reader(service: Running, project: str) -> Iterator[httpx.Client]:
    with service.http(service.new_key(project)) as http:
        yield http


@pytest.fixture
def stored(service: Running, project: str) -> dict[str, str]:
    """The ids of all bad files, and of a good one, in the project."""
    with service.client(service.new_key(project)) as client:
        good = {"good": upload(client, pairs(4))}
        return good | {name: upload(client, bad[0], "rows.jsonl") for name, bad in BAD.items()}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_quoted_to_who_may_read_it_only(
    service: Running, project: str, limited: httpx.Client, reader: httpx.Client, name: str
) -> None:
    bad = BAD[name]
    with service.client(service.new_key(project)) as client:
        file_id = upload(client, bad[0], "rows.jsonl")
    told = reader.post("/v1/fine_tuning/jobs", json=asked(file_id, bad))
    assert (told.status_code, quoted(told.text)) == (400, True), told.text
    for path, more in (("jobs", {}), ("jobs/estimate", {}), ("sweeps", {"sweep": {"n_epochs": [1, 2]}})):
        answer = limited.post(f"/v1/fine_tuning/{path}", json=asked(file_id, bad, **more))
        assert (answer.status_code, quoted(answer.text)) == (400, False), answer.text
        message = answer.json()["error"]["message"]
        assert "expected" in message or "column" in message, message  # what is wrong is still said


def test_what_is_withheld_still_names_the_line_the_field_and_the_shape(
    limited: httpx.Client, stored: dict[str, str]
) -> None:
    name = "columns that make a text messages"
    answer = limited.post("/v1/fine_tuning/jobs", json=asked(stored[name], BAD[name]))
    assert answer.json()["error"]["message"] == (
        "The training file 'rows.jsonl' cannot be used.\n1 of 1 rows cannot be used\n"
        "line 1, /messages: expected an array of messages"
    )


def test_files_of_validation_and_of_terms_are_not_quoted(
    limited: httpx.Client, stored: dict[str, str]
) -> None:
    file_id, good = stored["a text for messages"], stored["good"]
    bodies = [
        asked(good, BAD["a role"], "training_file", validation_file=stored["a role"]),
        asked(good, (b"", method(), {"terms": [{"type": "repel", "file": file_id}]})),
    ]
    for body in bodies:
        answer = limited.post("/v1/fine_tuning/jobs", json=body)
        assert (answer.status_code, quoted(answer.text)) == (400, False), answer.text


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_joined_parts_of_an_upload_are_not_quoted(
    limited: httpx.Client, reader: httpx.Client, name: str
) -> None:
    announced = {"bytes": len(UNREADABLE[name]), "filename": "a", "mime_type": "a", "purpose": "fine-tune"}
    upload_id = limited.post("/v1/uploads", json=announced).json()["id"]
    part = limited.post(f"/v1/uploads/{upload_id}/parts", files={"data": UNREADABLE[name]}).json()["id"]
    path, body = f"/v1/uploads/{upload_id}/complete", {"part_ids": [part]}
    told, answer = reader.post(path, json=body), limited.post(path, json=body)
    assert (told.status_code, quoted(told.text)) == (400, True), told.text
    assert (answer.status_code, quoted(answer.text)) == (400, False), answer.text


SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "string", "maxLength": 1}},
    "additionalProperties": False,
}
CHECK = {"type": "string_check", "name": "n", "input": "{{item.x}}", "reference": "a", "operation": "eq"}
ROWS = {
    "a value": lines({"item": {"x": MARK}}),
    "a key": lines({"item": {MARK: "a"}}),
    "an item that is none": lines({"item": MARK}),
    "a key beside item": lines({"item": {"x": "a"}, MARK: 1}),
    "no item": lines({"x": MARK}),
    "no JSON": lines(f"{{{MARK}"),
}


@pytest.fixture
def eval_id(reader: httpx.Client) -> str:
    config = {"type": "custom", "item_schema": SCHEMA}
    made = reader.post("/v1/evals", json={"data_source_config": config, "testing_criteria": [CHECK]})
    return str(made.json()["id"])


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_evals_are_quoted_to_who_may_read_them_only(
    service: Running, project: str, limited: httpx.Client, reader: httpx.Client, eval_id: str, name: str
) -> None:
    with service.client(service.new_key(project)) as client:
        file_id = upload(client, ROWS[name], "rows.jsonl", purpose="evals")
    body = {"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": file_id}}}
    told, answer = (http.post(f"/v1/evals/{eval_id}/runs", json=body) for http in (reader, limited))
    assert (told.status_code, quoted(told.text)) == (400, name != "no JSON"), told.text
    assert (answer.status_code, quoted(answer.text)) == (400, False), answer.text
    assert "line 1: " in answer.json()["error"]["message"]


def fail(service: Running, job_id: str, sweep_id: str | None = None) -> None:
    """Let the job, and the sweep, fail with a message that quotes a row."""
    error = {"code": "training_failed", "message": f"found the text '{MARK}'", "param": None}
    with service.services.database.writing() as session:
        job = session.query(Job).where(Job.id == job_id).one()
        job.status, job.error = "failed", error
        if sweep_id is not None:
            session.query(Sweep).where(Sweep.id == sweep_id).one().error = error


def test_why_a_job_failed_is_told_to_who_may_read_only(
    service: Running, limited: httpx.Client, reader: httpx.Client, stored: dict[str, str]
) -> None:
    again = {"idempotency-key": "k"}
    body = asked(stored["good"], (b"", method(), {}))
    job = limited.post("/v1/fine_tuning/jobs", json=body, headers=again).json()
    body |= {"sweep": {"n_epochs": [1, 2]}}
    sweep = limited.post("/v1/fine_tuning/sweeps", json=body, headers=again).json()
    fail(service, job["id"])
    fail(service, sweep["points"][0]["job"], sweep["id"])
    for path, known in (("jobs", job), ("sweeps", sweep)):
        told = reader.get(f"/v1/fine_tuning/{path}/{known['id']}")
        assert quoted(told.text)
        body.pop("sweep", None) if path == "jobs" else body.update(sweep={"n_epochs": [1, 2]})
        answer = limited.post(f"/v1/fine_tuning/{path}", json=body, headers=again)
        assert answer.json()["id"] == known["id"]
        assert (answer.status_code, quoted(answer.text)) == (200, False), answer.text
    answer = limited.post(f"/v1/fine_tuning/sweeps/{sweep['id']}/cancel")
    assert (answer.status_code, quoted(answer.text)) == (200, False), answer.text


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(home=tmp_path_factory.mktemp("home")), routers=(*ROUTERS, chat))


READ_FILES = {
    "/v1/evals/{eval_id}/runs",
    "/v1/files",
    "/v1/fine_tuning/jobs",
    "/v1/fine_tuning/jobs/estimate",
    "/v1/fine_tuning/sweeps",
    "/v1/uploads/{upload_id}/complete",
}
"""Routes that read rows, which the tests above ask."""
READ_NONE = {
    "/v1/evals": "an eval holds a schema and graders, which the request gives",
    "/v1/evals/{eval_id}": "as above",
    "/v1/evals/{eval_id}/runs/{run_id}": "deletes",
    "/v1/evals/{eval_id}/runs/{run_id}/cancel": "a run shows no rows; an open one has no error",
    "/v1/files/{file_id}": "deletes",
    "/v1/fine_tuning/jobs/{job_id}/cancel": "an unfinished job has no error",
    "/v1/fine_tuning/jobs/{job_id}/pause": "as above",
    "/v1/fine_tuning/jobs/{job_id}/prune": "answers an id",
    "/v1/fine_tuning/jobs/{job_id}/resume": "an unfinished job has no error",
    "/v1/fine_tuning/sweeps/{sweep_id}/cancel": "tested above",
    "/v1/models/{model}": "deletes",
    "/v1/uploads": "reads no file",
    "/v1/uploads/{upload_id}/cancel": "reads no file",
    "/v1/uploads/{upload_id}/parts": "reads no file",
}
"""Other routes of such a key -> why no answer of theirs can quote rows."""


def test_every_route_of_the_scope_train_is_entered_here(app: FastAPI) -> None:
    reached = {
        path for method, path in operations(app) if any("train" in one for one in NEEDED[method, path])
    }
    read_too = {path for method, path in operations(app) if NEEDED[method, path] == {"read and train"}}
    assert reached - read_too - {"/v1/key"} == READ_FILES | READ_NONE.keys()
