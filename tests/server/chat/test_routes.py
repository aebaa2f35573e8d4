import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from alignkit_server.chat.body import MAX_BODY_BYTES
from alignkit_server.chat.errors import engine_refused, with_error_envelopes
from alignkit_server.vault import Vault
from tests.server.chat.conftest import LARGE, OWN_TEMPLATE, SECRET_KEY, TUNED, Service
from tests.server.engines.support import grants_no_lease, wait_until

MESSAGES = [{"role": "user", "content": "echo"}]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "/srv" not in body["error"]["message"]
    return body["error"]  # type: ignore[no-any-return]


def test_the_body_is_passed_on_byte_for_byte_with_the_project_s_salt_and_without_its_key(
    service: Service,
) -> None:
    raw = json.dumps({"model": "tiny", "messages": MESSAGES, "user": "ü"}, ensure_ascii=False, indent=3)
    response = service.client.post(
        "/v1/chat/completions", content=raw.encode(), headers={"authorization": "Bearer sk-secret"}
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    seen = response.json()
    salt = Vault(SECRET_KEY).salt("mine")
    assert seen["received"] == f'{{"cache_salt":"{salt}",{raw[1:]}'
    assert "sk-secret" not in json.dumps(seen)


def test_a_model_with_a_template_of_its_own_is_asked_with_it(service: Service) -> None:
    seen = service.ask("echo", OWN_TEMPLATE).json()
    assert json.loads(seen["received"])["chat_template"] == "{{ messages }}"


def test_a_stream_comes_as_it_is_made(service: Service) -> None:
    with service.stream(f"stream:{service.gate}") as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = (line for line in response.iter_lines() if line)
        assert [next(lines), next(lines)] == ['data: {"n": 0}', 'data: {"n": 1}']
        service.gate.touch()  # only now does the engine make the third
        assert list(lines) == ['data: {"n": 2}', "data: [DONE]"]


def test_an_adapter_of_a_larger_rank_waits_for_the_answers_at_work(service: Service) -> None:
    service.fakes.limited = True
    with ThreadPoolExecutor(1) as pool, service.stream(f"stream:{service.gate}") as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(lines) == 'data: {"n": 0}'
        larger = pool.submit(service.ask, "echo", LARGE)
        wait_until(lambda: grants_no_lease(service.manager))
        service.gate.touch()
        assert list(lines)[-2:] == ['data: {"n": 2}', "data: [DONE]"]
        assert larger.result(20).status_code == 200
    assert service.fakes.ranks == [16, 64]
    assert service.ask("echo").status_code == 200


def test_the_official_client_reads_the_stream(service: Service) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "stream"}]
        chunks = client.chat.completions.create(model=TUNED, messages=messages, stream=True)
        assert [chunk.n for chunk in chunks] == [0, 1, 2]  # type: ignore[attr-defined]


def test_hanging_up_on_a_stream_ends_the_engines_work(service: Service) -> None:
    with service.stream("endless") as response:
        next(response.iter_lines())
    wait_until(lambda: "closed by client" in service.fakes.notes())


def test_hanging_up_before_the_answer_ends_the_engines_work(service: Service) -> None:
    body = {"model": TUNED, "messages": [{"role": "user", "content": "slow"}]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=httpx.Timeout(20, read=1))
    wait_until(lambda: "closed by client" in service.fakes.notes())


def test_an_engine_that_dies_midway_ends_the_stream_with_an_error(service: Service) -> None:
    with service.stream(f"die:{service.gate}") as response:
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        assert next(events) == '{"n": 0}'
        service.gate.touch()
        (last,) = events  # the half event is not passed on
    error = json.loads(last)["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_failed")


@pytest.mark.parametrize(("code", "kind"), [(500, "server_error"), (400, "invalid_request_error")])
def test_an_error_inside_a_stream_is_told_as_any_other(service: Service, code: int, kind: str) -> None:
    with service.stream(f"fail:{code}") as response:
        event, error, done = (line.removeprefix("data: ") for line in response.iter_lines() if line)
    assert json.loads(event) == {"text": 'an "error"', "error": None}
    assert json.loads(error) == {
        "error": {"message": "no: see …/m.bin", "type": kind, "param": None, "code": None}
    }
    assert done == "[DONE]"


@pytest.mark.parametrize(
    "events",
    [
        b'data: {"text": "\\"error\\": /srv/x/y"}\n\n',
        b'data: {"logprobs": {"error": "/srv/x/y"}}\n\n',
        b'data: {"error": \n\n',
        b': "error"\n\n',
        b'data: ["error"]\n\n',
    ],
)
def test_what_is_no_error_passes_byte_for_byte(events: bytes) -> None:
    assert with_error_envelopes(events) == events


def test_errors_between_events_and_without_an_object_are_told_too() -> None:
    told = with_error_envelopes(b'data: {"n": 0}\n\ndata:{"error": "at /srv/x/y"}\r\n\r\ndata: {"n": 1}\n\n')
    first, error, last = told.replace(b"\r", b"").split(b"\n\n")[:3]
    assert (first, last) == (b'data: {"n": 0}', b'data: {"n": 1}')
    found = json.loads(error.removeprefix(b"data:"))["error"]
    assert found["type"] == "server_error"
    assert "…/y" in found["message"]
    assert "/srv" not in found["message"]


def test_the_official_client_raises_what_the_stream_ended_with(service: Service) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": f"die:{service.gate}"}]
        chunks = client.chat.completions.create(model=TUNED, messages=messages, stream=True)
        assert next(chunks).n == 0  # type: ignore[attr-defined]
        service.gate.touch()
        with pytest.raises(openai.APIError, match="engine of tiny stopped"):
            list(chunks)


def test_an_engine_that_dies_before_the_answer_is_503_and_starts_again(service: Service) -> None:
    error = error_of(service.ask("die"), 503)
    assert error["code"] == "engine_failed"
    assert "try again" in error["message"]
    assert service.ask("echo").status_code == 200
    assert len(service.fakes.notes("started")) == 2


def test_an_engine_that_does_not_start_is_503_with_the_reason(service: Service) -> None:
    service.fakes.flags = ["--die", "ValueError: no such kernel in /srv/kernels/k.so"]
    error = error_of(service.ask("echo"), 503)
    assert error["code"] == "engine_failed"
    assert "ValueError: no such kernel in …/k.so" in error["message"]


def test_many_requests_share_one_start(service: Service) -> None:
    service.fakes.flags = ["--gate", str(service.gate)]
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(service.ask, "echo") for _ in range(12)]
        wait_until(lambda: len(service.resolved) == 12)
        assert service.manager.calls <= 1  # however many requests wait, one thread does
        service.gate.touch()
        assert {call.result(20).status_code for call in calls} == {200}
    assert len(service.fakes.notes("started")) == 1


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_the_engines_errors_keep_status_and_message(service: Service, status: int) -> None:
    error = error_of(service.ask(f"refuse:{status}"), status)
    assert error["message"] == "no: see …/config.json"
    assert error["param"] == "temperature"
    assert error["type"] == ("server_error" if status == 500 else "invalid_request_error")


def test_an_engines_error_that_is_no_json(service: Service) -> None:
    assert error_of(service.ask("garbage"), 500)["message"] == "Internal Server Error"


def test_an_unknown_model(service: Service) -> None:
    error = error_of(service.ask("echo", model="ft:tiny:other::12345678"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert service.fakes.notes() == []  # nothing was started for it


@pytest.mark.parametrize(
    ("raw", "message", "param"),
    [
        (b"", "not valid JSON", None),
        (b"{", "not valid JSON", None),
        (b'{"model": "tiny", "x": "\xff"}', "not valid JSON", None),
        (b"[" * 100_000, "not valid JSON", None),
        (b'{"model": ' + b"1" * 5000 + b"}", "a number that is too long", None),
        (b"[]", "expected a JSON object", None),
        (b"{}", "expected the name of a model, found None", "model"),
        (b'{"model": 3}', "found 3", "model"),
        (b'{"model": ""}', "found ''", "model"),
        (b'{"model": "\\ud800"}', "found", "model"),
        (b'{"model": "tiny", "chat_template": "{{ x }}"}', "chat_template cannot be set", "chat_template"),
        (b'{"model": "tiny", "prompt_embeds": "x"}', "prompt_embeds cannot be set", "prompt_embeds"),
        (b'{"model": "tiny", "vllm_xargs": {}}', "vllm_xargs cannot be set", "vllm_xargs"),
        (
            b'{"model": "tiny", "chat_template_kwargs": {"chat_template": "x"}}',
            "cannot be set",
            "chat_template_kwargs.chat_template",
        ),
        (
            b'{"model": "tiny", "messages": [{"content": [{"type": "text"}, {"image_url": "http://x"}]}]}',
            "expected 'text'",
            "messages[0].content[1].type",
        ),
        (
            b'{"model": "tiny", "messages": [{"content": [{"type": ["text"]}]}]}',
            "expected 'text'",
            "messages[0].content[0].type",
        ),
    ],
)
def test_bad_bodies(service: Service, raw: bytes, message: str, param: str | None) -> None:
    error = error_of(service.client.post("/v1/chat/completions", content=raw), 400)
    assert message in error["message"]
    assert error["param"] == param
    assert service.fakes.notes() == []


def choice(length: int) -> dict[str, Any]:
    return {"structured_outputs": {"choice": ["a" * length]}}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (choice(1_000_000), "structured_outputs.choice"),
        ({"n": 16, "prompt": ["x"] * 200}, "n"),
        ({"best_of": 10_000}, "n"),
        ({"logprobs": True, "top_logprobs": 100_000}, "top_logprobs"),
        ({"vllm_option_of_tomorrow": 1}, "vllm_option_of_tomorrow"),
        ({"cache_salt": "guessed"}, "cache_salt"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ],
)
def test_what_could_hold_up_an_engine_never_reaches_it(
    service: Service, options: dict[str, Any], param: str
) -> None:
    path = "/v1/completions" if "prompt" in options else "/v1/chat/completions"
    answer = service.client.post(path, json={"model": "tiny", "messages": MESSAGES} | options)
    assert error_of(answer, 400)["param"] == param
    assert service.fakes.notes() == []


def test_an_answer_is_held_whole_only_to_a_bound(service: Service) -> None:
    assert error_of(service.ask(f"large:{2**21}"), 400)["code"] == "answer_too_large"
    assert len(service.ask(f"large:{2**19}").content) == 2**19


def test_an_event_of_a_stream_is_held_only_to_the_same_bound(service: Service) -> None:
    with service.stream(f"event:{2**21}") as response:
        first, error = (line.removeprefix("data: ") for line in response.iter_lines() if line)
    assert first == '{"n": 0}'
    told = json.loads(error)["error"]
    assert (told["code"], told["type"]) == ("answer_too_large", "invalid_request_error")
    assert "An event of the answer is larger than 1,048,576 bytes" in told["message"]
    with service.stream(f"event:{2**19}") as response:
        _, large, done = (line.removeprefix("data: ") for line in response.iter_lines() if line)
    assert (json.loads(large), done) == ({"text": "x" * 2**19}, "[DONE]")


def test_harmless_template_options_and_text_parts_pass(service: Service) -> None:
    body = {
        "model": "tiny",
        "messages": [{"content": [{"type": "text", "text": "x"}, "plain"]}, *MESSAGES],
        "chat_template": None,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert service.client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_body_that_is_too_large(service: Service) -> None:
    raw = b'{"model": "tiny", "x": "' + b"x" * MAX_BODY_BYTES + b'"}'
    assert "at most" in error_of(service.client.post("/v1/completions", content=raw), 413)["message"]


def respond(service: Service, model: str = TUNED, **options: Any) -> httpx.Response:
    return service.client.post("/v1/responses", json={"model": model, "input": "echo", **options})


def test_a_response_is_passed_on_like_a_chat(service: Service) -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    seen = json.loads(respond(service, tools=tools, max_output_tokens=9, store=True).json()["received"])
    assert (seen["input"], seen["tools"], seen["max_output_tokens"]) == ("echo", tools, 9)
    assert seen["cache_salt"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"cache_salt": "mine"}, "cache_salt"),
        ({"messages": []}, "messages"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ],
)
def test_what_the_service_does_not_do_for_a_response_is_refused(
    service: Service, options: dict[str, Any], param: str
) -> None:
    assert error_of(respond(service, **options), 400)["param"] == param


def test_a_response_of_a_model_with_its_own_template_names_the_other_way(service: Service) -> None:
    assert "/v1/chat/completions" in error_of(respond(service, OWN_TEMPLATE), 400)["message"]


def test_the_tokens_that_end_a_tuned_models_answers_go_along(service: Service) -> None:
    assert json.loads(service.ask("echo", OWN_TEMPLATE).json()["received"])["stop_token_ids"] == [7]
    assert "stop_token_ids" not in service.ask("echo").json()["received"]


def test_tools_without_a_parser_name_the_setting() -> None:
    content = b'{"error": {"message": "\\"auto\\" tool choice requires --tool-call-parser to be set"}}'
    assert "ALIGNKIT_ENGINE__TOOL_PARSER" in engine_refused(400, content).detail.message
