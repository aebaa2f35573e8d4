"""Evals by the official client: made, listed, changed, run on rows, cancelled, deleted, refused."""

import json
import threading
from typing import Any

import pytest
from openai import APIStatusError, OpenAI
from openai.types.evals.eval_api_error import EvalAPIError

from alignkit_server.evals.grading import LONGEST_PAUSE_SECONDS
from alignkit_server.outages import Detached
from tests.evaluate.endpoint import Reply
from tests.server.evals.conftest import EQUAL, SCHEMA, Lab, make_eval, reply, rows, sampled
from tests.server.shapes import conforms
from tests.server.support import BASE_MODEL, NoEngines, upload

ERROR = EvalAPIError(code="x", message="x")
"""In place of the null that OpenAI's API has where nothing failed, which the client's types lack."""
JUDGED: dict[str, Any] = {
    "type": "label_model",
    "name": "judged",
    "model": BASE_MODEL,
    "input": [{"role": "developer", "content": "Is {{sample.output_text}} right?"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
SCORED: dict[str, Any] = {
    "type": "score_model",
    "name": "scored",
    "model": BASE_MODEL,
    "input": [{"role": "user", "content": {"type": "input_text", "text": "Rate {{sample.output_text}}."}}],
    "range": [0, 10],
    "pass_threshold": 7,
}


def own_rows(*texts: str) -> Any:
    """A data source whose rows bring their answers."""
    content = [
        row | {"sample": {"output_text": text}}
        for row, text in zip(rows(*["yes"] * len(texts)), texts, strict=True)
    ]
    return {"type": "jsonl", "source": {"type": "file_content", "content": content}}


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[int, str, str | None]:
    """(status, message, parameter) of a request that is refused."""
    with pytest.raises(APIStatusError) as refused:
        call(*arguments, **options)
    body: Any = refused.value.body
    return refused.value.status_code, body["message"], body["param"]


def test_an_eval_is_made_listed_changed_and_deleted(mine: OpenAI) -> None:
    similar = EQUAL | {"type": "text_similarity", "name": "like", "evaluation_metric": "rouge_l"}
    del similar["operation"]
    made = mine.evals.create(
        data_source_config={"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True},
        testing_criteria=[EQUAL, similar | {"pass_threshold": 0.5}, JUDGED, SCORED],  # type: ignore[list-item]
        name="mine",
        metadata={"team": "a"},
    )
    conforms(made)
    assert made.data_source_config.schema_["properties"]["item"] == SCHEMA  # type: ignore[index]
    assert [one.name for one in made.testing_criteria] == ["equal", "like", "judged", "scored"]
    second = make_eval(mine)
    page = mine.evals.list(limit=1)
    conforms(page)
    assert [one.id for one in page.data] == [made.id]
    assert [one.id for one in mine.evals.list(after=made.id)] == [second]
    changed = mine.evals.update(made.id, name="other", metadata={"a": "b"})
    conforms(changed)
    assert (changed.name, changed.metadata) == ("other", {"a": "b"})
    gone = mine.evals.delete(made.id)
    conforms(gone)
    assert (gone.deleted, gone.eval_id) == (True, made.id)
    assert [one.id for one in mine.evals.list(order="desc")] == [second]


def test_a_run_samples_the_model_and_grades_each_row(lab: Lab, mine: OpenAI) -> None:
    lab.answer = lambda body: reply("yes" if "q0" in body["messages"][0]["content"] else "no")
    eval_id = make_eval(mine)
    run = mine.evals.runs.create(
        eval_id, data_source=sampled(rows("yes", "yes"), sampling_params={"temperature": 0})
    )
    assert run.error is None
    conforms(run.model_copy(update={"error": ERROR}))
    assert (run.status, run.model, run.result_counts.total) == ("queued", BASE_MODEL, 2)
    assert lab.service.runner.evaluated[-1] == run.id
    lab.grade(run.id)
    done = mine.evals.runs.retrieve(run.id, eval_id=eval_id)
    conforms(done.model_copy(update={"error": ERROR}))
    assert done.status == "completed"
    assert done.result_counts.to_dict() == {"total": 2, "passed": 1, "failed": 1, "errored": 0}
    (criterion,), (used,) = done.per_testing_criteria_results, done.per_model_usage
    assert criterion.to_dict() == {"testing_criteria": "equal", "passed": 1, "failed": 1}
    assert (used.run_model_name, used.invocation_count, used.total_tokens) == (BASE_MODEL, 2, 18)
    items = mine.evals.runs.output_items.list(run.id, eval_id=eval_id).data
    assert [(item.datasource_item_id, item.status) for item in items] == [(0, "pass"), (1, "fail")]
    first = mine.evals.runs.output_items.retrieve(items[0].id, eval_id=eval_id, run_id=run.id)
    assert first.sample.error is None
    conforms(first.model_copy(update={"sample": first.sample.model_copy(update={"error": ERROR})}))
    assert first.sample.input[0].content == "q0?"
    assert first.sample.output[0].content == "yes"
    assert (first.sample.temperature, first.sample.seed) == (0.0, 42)
    failed = mine.evals.runs.output_items.list(run.id, eval_id=eval_id, status="fail")
    assert [item.id for item in failed] == [items[1].id]


def test_the_engine_gets_the_sampling_options_and_the_projects_salt(lab: Lab, mine: OpenAI) -> None:
    params = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_completion_tokens": 5}
    source = sampled(rows("yes"), sampling_params=params)
    lab.grade(mine.evals.runs.create(make_eval(mine), data_source=source).id)
    asked = lab.engine.asked[-1]
    assert {name: asked[name] for name in params} == params
    assert asked["cache_salt"]


def test_rows_of_a_file_bring_their_own_messages(lab: Lab, mine: OpenAI) -> None:
    schema = {"type": "object", "properties": {"turns": {"type": "array"}, "answer": {"type": "string"}}}
    eval_id = mine.evals.create(
        data_source_config={"type": "custom", "item_schema": schema, "include_sample_schema": True},
        testing_criteria=[EQUAL],  # type: ignore[list-item]
    ).id
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Well?"}]
    line = json.dumps({"item": {"turns": turns, "answer": "yes"}})
    file_id = upload(mine, f"{line}\n\n{line}\n".encode(), "rows.jsonl", "evals")
    by_row = {"type": "item_reference", "item_reference": "item.turns"}
    source = sampled([], input_messages=by_row, source={"type": "file_id", "id": file_id})
    run = mine.evals.runs.create(eval_id, data_source=source)
    mine.files.delete(file_id)
    lab.grade(run.id)
    done = mine.evals.runs.retrieve(run.id, eval_id=eval_id)
    assert done.result_counts.passed == 2
    assert lab.engine.asked[-1]["messages"] == turns


def test_models_judge_by_label_and_by_score(lab: Lab, mine: OpenAI) -> None:
    def judge(body: dict[str, Any]) -> Reply:
        schema = body["response_format"]["json_schema"]["schema"]["properties"]
        answers = {"label": '{"label": "good"}', "score": '{"score": 6.5}'}
        return reply(answers[next(iter(schema))])

    lab.answer = judge
    eval_id = make_eval(mine, JUDGED, SCORED)
    run = mine.evals.runs.create(eval_id, data_source=own_rows("yes"))
    lab.grade(run.id)
    (item,) = mine.evals.runs.output_items.list(run.id, eval_id=eval_id).data
    by_name = {result.name: result for result in item.results}
    assert (by_name["judged"].score, by_name["judged"].passed) == (1.0, True)
    assert (by_name["scored"].score, by_name["scored"].passed) == (6.5, False)
    assert item.status == "fail"
    prompts = [body["messages"] for body in lab.engine.asked[-2:]]
    assert prompts[0][0]["role"] == "system"
    assert prompts[0][0]["content"].startswith("Is yes right?")
    assert '{"score": a number from 0 to 10}' in prompts[1][0]["content"]


@pytest.mark.parametrize("answer", ["no JSON", '{"label": "other"}', '["label"]'])
def test_a_judge_that_talks_nonsense_makes_the_row_an_error(lab: Lab, mine: OpenAI, answer: str) -> None:
    lab.answer = lambda _: reply(answer)
    eval_id = make_eval(mine, JUDGED, EQUAL)
    run = mine.evals.runs.create(eval_id, data_source=own_rows("yes"))
    lab.grade(run.id)
    done = mine.evals.runs.retrieve(run.id, eval_id=eval_id)
    assert (done.status, done.result_counts.errored) == ("completed", 1)
    assert [one.to_dict() for one in done.per_testing_criteria_results] == [
        {"testing_criteria": "judged", "passed": 0, "failed": 0},
        {"testing_criteria": "equal", "passed": 1, "failed": 0},
    ]
    (item,) = mine.evals.runs.output_items.list(run.id, eval_id=eval_id).data
    said: Any = item.results[0].sample
    assert "found" in said["error"]["message"]


def test_a_prompt_that_the_engine_refuses_is_that_rows_error(lab: Lab, mine: OpenAI) -> None:
    too_long = (400, {"error": {"message": "too long: see /srv/secret/model", "code": 400}})
    lab.answer = lambda body: too_long if "q0" in body["messages"][0]["content"] else reply("yes")
    eval_id = make_eval(mine)
    run = mine.evals.runs.create(eval_id, data_source=sampled(rows("yes", "yes")))
    lab.grade(run.id)
    done = mine.evals.runs.retrieve(run.id, eval_id=eval_id)
    assert (done.result_counts.errored, done.result_counts.passed) == (1, 1)
    item = mine.evals.runs.output_items.list(run.id, eval_id=eval_id).data[0]
    assert "too long" in item.sample.error.message
    assert "/srv/secret" not in item.sample.error.message


class Clock(threading.Event):
    """A server's stop signal whose waits pass in no time, on a clock of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        self.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def clock(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lab, "stopping", clock)
    monkeypatch.setattr("alignkit_server.evals.grading.monotonic", lambda: clock.now)
    return clock


AWAY: Reply = (503, {"error": {"message": "no", "code": "engine_failed"}})


def graded(lab: Lab, mine: OpenAI) -> Any:
    """A run of one row, after it was graded."""
    eval_id = make_eval(mine)
    run = mine.evals.runs.create(eval_id, data_source=sampled(rows("yes")))
    lab.grade(run.id)
    return mine.evals.runs.retrieve(run.id, eval_id=eval_id)


def test_an_engine_that_is_away_for_twenty_seconds_is_waited_for(
    lab: Lab, mine: OpenAI, clock: Clock
) -> None:
    back = clock.now + 20
    lab.answer = lambda _: reply("yes") if clock.now >= back else AWAY
    done = graded(lab, mine)
    assert (done.status, done.result_counts.passed) == ("completed", 1)
    assert clock.now < back + LONGEST_PAUSE_SECONDS


def test_an_engine_that_stays_away_fails_the_run_in_the_end(lab: Lab, mine: OpenAI, clock: Clock) -> None:
    began, lab.answer = clock.now, lambda _: AWAY
    failed = graded(lab, mine)
    assert (failed.status, failed.error.message) == ("failed", "no")
    patience = lab.service.settings.engine.start_timeout_seconds
    assert patience <= clock.now - began <= patience + LONGEST_PAUSE_SECONDS


def test_an_error_of_an_engine_that_answers_is_not_waited_for_long(
    lab: Lab, mine: OpenAI, clock: Clock
) -> None:
    lab.answer = lambda _: (500, {"error": {"message": "a defect"}})
    failed = graded(lab, mine)
    assert (failed.status, failed.error.message) == ("failed", "a defect")
    assert clock.waits == 2


def test_a_model_without_an_engine_is_not_waited_for(
    lab: Lab, mine: OpenAI, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab.service.chat, "_engines", NoEngines())
    failed = graded(lab, mine)
    assert (failed.status, failed.error.code, clock.waits) == ("failed", "engine_unavailable", 2)


def test_a_run_that_is_cancelled_waits_for_no_engine(lab: Lab, mine: OpenAI, clock: Clock) -> None:
    eval_id = make_eval(mine)
    run = mine.evals.runs.create(eval_id, data_source=sampled(rows("yes")))

    def cancelled(_: dict[str, Any]) -> Reply:
        if clock.waits == 1:
            mine.evals.runs.cancel(run.id, eval_id=eval_id)
        return AWAY

    lab.answer = cancelled
    lab.grade(run.id)
    assert mine.evals.runs.retrieve(run.id, eval_id=eval_id).status == "canceled"
    assert clock.waits == 1


def test_a_cancelled_run_stops_after_its_batch(
    lab: Lab, mine: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_server.evals.running.BATCH", 1)
    eval_id = make_eval(mine)
    run = mine.evals.runs.create(eval_id, data_source=sampled(rows("yes", "yes", "yes")))

    def cancel_at_the_second(body: dict[str, Any]) -> Reply:
        if "q1" in body["messages"][0]["content"]:
            assert mine.evals.runs.cancel(run.id, eval_id=eval_id).status == "canceled"
        return reply("yes")

    lab.answer = cancel_at_the_second
    lab.grade(run.id)
    ended = mine.evals.runs.retrieve(run.id, eval_id=eval_id)
    assert (ended.status, ended.result_counts.passed) == ("canceled", 1)
    assert refusal(mine.evals.runs.cancel, run.id, eval_id=eval_id)[0] == 409
    assert [one.id for one in mine.evals.runs.list(eval_id, status="canceled")] == [run.id]
    assert mine.evals.runs.list(eval_id, status="completed").data == []


def test_a_run_that_was_interrupted_continues_with_the_rows_that_are_left(
    lab: Lab, mine: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_server.evals.running.BATCH", 1)
    monkeypatch.setattr(lab, "stopping", threading.Event())
    eval_id = make_eval(mine)
    run = mine.evals.runs.create(eval_id, data_source=sampled(rows("yes", "yes")))
    asked: list[str] = []
    hanging = threading.Event()

    def hang_at_the_second(body: dict[str, Any]) -> Reply:
        asked.append(body["messages"][0]["content"])
        if len(asked) == 2:
            lab.stopping.set()
            hanging.wait(60)
        return reply("yes")

    lab.answer = hang_at_the_second
    with pytest.raises(Detached):
        lab.grade(run.id)
    hanging.set()
    half = mine.evals.runs.retrieve(run.id, eval_id=eval_id)
    assert (half.status, half.result_counts.passed) == ("in_progress", 1)
    monkeypatch.setattr(lab, "stopping", threading.Event())
    lab.grade(run.id)
    done = mine.evals.runs.retrieve(run.id, eval_id=eval_id)
    assert (done.status, done.result_counts.passed) == ("completed", 2)
    assert asked == ["q0?", "q1?", "q1?"]


def test_a_deleted_run_is_gone_with_its_rows(lab: Lab, mine: OpenAI) -> None:
    eval_id = make_eval(mine)
    run = mine.evals.runs.create(eval_id, data_source=sampled(rows("yes")))
    gone = mine.evals.runs.delete(run.id, eval_id=eval_id)
    conforms(gone)
    assert (gone.deleted, gone.run_id) == (True, run.id)
    lab.grade(run.id)
    assert refusal(mine.evals.runs.retrieve, run.id, eval_id=eval_id)[0] == 404
    kept = mine.evals.runs.create(eval_id, data_source=sampled(rows("yes")))
    mine.evals.delete(eval_id)
    lab.grade(kept.id)
    assert refusal(mine.evals.runs.output_items.list, kept.id, eval_id=eval_id)[0] == 404


CRITERIA = [
    (
        {"type": "python", "name": "x", "source": "1"},
        "testing_criteria.0",
        "'python' is not supported, since",
    ),
    (EQUAL | {"input": "{{item.wrong}}"}, "testing_criteria.0.input", "expected a property of item_schema"),
    (EQUAL | {"input": "{{other.x}}"}, "testing_criteria.0.input", "expected a reference to item or sample"),
    (EQUAL | {"input": "{{item..x}}"}, "testing_criteria.0.input", "expected a reference such as"),
    (EQUAL | {"operation": "gt"}, "testing_criteria.0.operation", "'eq', 'ne', 'like' or 'ilike'"),
    (JUDGED | {"passing_labels": ["fine"]}, "testing_criteria.0", "expected some of"),
    (SCORED | {"range": [1, 0]}, "testing_criteria.0.range", "expected two ascending numbers"),
]


@pytest.mark.parametrize(("criterion", "param", "why"), CRITERIA)
def test_a_grader_that_cannot_grade_is_refused_when_the_eval_is_made(
    mine: OpenAI, criterion: Any, param: str, why: str
) -> None:
    status, message, found = refusal(make_eval, mine, criterion)
    assert (status, found) == (400, param)
    assert why in message


def test_a_metric_without_a_library_is_refused_with_those_there_are(mine: OpenAI) -> None:
    cosine = {name: value for name, value in EQUAL.items() if name != "operation"}
    cosine |= {"type": "text_similarity", "evaluation_metric": "cosine", "pass_threshold": 0.5}
    _, message, _ = refusal(make_eval, mine, cosine)
    assert (
        "cosine is not supported, since no model of embeddings is served: expected one of fuzzy_match"
        in message
    )


@pytest.mark.parametrize("metric", [{}, [], 1, None])
def test_a_metric_that_is_no_name_is_refused(mine: OpenAI, metric: Any) -> None:
    similar = {name: value for name, value in EQUAL.items() if name != "operation"}
    similar |= {"type": "text_similarity", "evaluation_metric": metric, "pass_threshold": 0.5}
    status, message, _ = refusal(make_eval, mine, similar)
    assert status == 400
    assert "expected one of fuzzy_match" in message


def test_an_unknown_judge_and_an_unknown_model_are_refused(mine: OpenAI) -> None:
    status, _, param = refusal(make_eval, mine, JUDGED | {"model": "nobody"})
    assert (status, param) == (404, "testing_criteria.0.model")
    source = sampled(rows("yes"), model="nobody")
    status, _, param = refusal(mine.evals.runs.create, make_eval(mine), data_source=source)
    assert (status, param) == (404, "data_source.model")


def test_sample_needs_a_schema_of_samples_and_samples(mine: OpenAI) -> None:
    _, message, _ = refusal(make_eval, mine, EQUAL, sample=False)
    assert message.endswith("sample cannot be referred to: include_sample_schema is not true.")
    source = {"type": "jsonl", "source": {"type": "file_content", "content": rows("yes")}}
    _, message, _ = refusal(mine.evals.runs.create, make_eval(mine), data_source=source)
    assert "data_source.source.content.0: the graders refer to sample" in message


def test_rows_that_violate_the_schema_are_refused_with_their_places(mine: OpenAI) -> None:
    eval_id = make_eval(mine)
    source = sampled([*rows("yes"), {"item": {"question": 1, "answer": "x"}}])
    status, message, param = refusal(mine.evals.runs.create, eval_id, data_source=source)
    assert (status, param) == (400, "data_source.source.content")
    assert message == 'data_source.source.content.1: item.question: 1 is not of type "string".'
    deep = b'{"item": {"answer": ' + 100 * b"[" + 100 * b"]" + b"}}"
    lines = b'{"item": {"question": "q", "answer": "a"}}\n{"item": 3}\nno\n' + deep
    file_id = upload(mine, lines, "rows.jsonl", "evals")
    source = sampled([], source={"type": "file_id", "id": file_id})
    _, message, _ = refusal(mine.evals.runs.create, eval_id, data_source=source)
    assert 'line 2: expected {"item": {…}}, and item is 3' in message
    assert "line 3: it is not valid JSON" in message
    assert "line 4: it is not valid JSON, or is nested too deeply" in message
    assert mine.evals.runs.list(eval_id).data == []


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"type": "stored_completions"}},
        {"type": "responses"},
        {"input_messages": {"type": "template", "template": [{"role": "user", "content": "{{sample.x}}"}]}},
    ],
)
def test_what_a_run_cannot_sample_from_is_refused(mine: OpenAI, change: Any) -> None:
    source = sampled(rows("yes")) | change
    status, message, _ = refusal(mine.evals.runs.create, make_eval(mine), data_source=source)
    assert status == 400
    assert "is not supported: expected the type" in message or "a prompt can refer to item only" in message


def test_a_schema_that_leads_elsewhere_is_refused(mine: OpenAI) -> None:
    config: Any = {"type": "custom", "item_schema": {"$ref": "http://127.0.0.1:1/x.json"}}
    _, message, _ = refusal(mine.evals.create, data_source_config=config, testing_criteria=[EQUAL])
    assert "expected a JSON schema without references to other documents" in message


@pytest.mark.parametrize(
    ("value", "why"),
    [("NaN", "finite numbers"), ("1e999", "finite numbers"), (r'"\ud800"', "UTF-8")],
)
def test_a_row_that_no_json_can_hold_is_refused(lab: Lab, project: str, value: str, why: str) -> None:
    key = lab.service.new_key(project)
    own = EQUAL | {"input": "{{item.x}}", "reference": "1"}
    config: Any = {"type": "custom", "item_schema": {}}
    with lab.service.client(key) as client, lab.service.http(key) as http:
        eval_id = client.evals.create(data_source_config=config, testing_criteria=[own]).id  # type: ignore[list-item]
        source = {"type": "file_content", "content": [{"item": {"x": "X"}}]}
        body = json.dumps({"data_source": {"type": "jsonl", "source": source}}).replace('"X"', value)
        headers = {"content-type": "application/json"}
        answer = http.post(f"/v1/evals/{eval_id}/runs", content=body, headers=headers)
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]


def test_quotas_bound_the_open_runs_and_the_bytes_of_a_project(lab: Lab, mine: OpenAI, project: str) -> None:
    eval_id = make_eval(mine)
    admin = lab.service.client(lab.service.new_key("admins", "admin")).admin.organization.projects
    project_id = next(one.id for one in admin.list(limit=100) if one.name == project)
    with lab.service.http(lab.service.new_key("admins", "admin")) as http:
        path = f"/v1/organization/projects/{project_id}"
        assert http.post(path, json={"limits": {"eval_runs_open": 1}}).is_success
        mine.evals.runs.create(eval_id, data_source=sampled(rows("yes")))
        status, message, _ = refusal(mine.evals.runs.create, eval_id, data_source=sampled(rows("yes")))
        assert (status, "the project's limit is 1, and 1 wait or run" in message) == (429, True)
        assert http.post(path, json={"limits": {"eval_runs_open": 5, "disk_bytes": 100}}).is_success
        status, message, _ = refusal(mine.evals.runs.create, eval_id, data_source=sampled(rows("yes" * 99)))
        assert (status, message.startswith("The rows do not fit")) == (429, True)
