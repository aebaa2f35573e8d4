"""Tools in chat and OpenAI's Responses API on a real vLLM, for a base model and a fine-tuned one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.e2e.service import Service
from tests.tiny import CHAT_TEMPLATE

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

TOOLS_FIRST = "{% if tools %}<|im_start|>system\n{{ tools | tojson }} <tool_call><|im_end|>\n{% endif %}"
"""Tools and their calls as in Hermes's and Qwen's templates, in few tokens."""
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
    },
}
NAMED = {"type": "function", "function": {"name": "add"}}
QUESTION: list[Any] = [{"role": "user", "content": "What is 3 plus 3?"}]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("home")).prepare()
    folder: Path = service.home / "models" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TOOLS_FIRST + CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def models(service: Service) -> list[str]:
    """The base model and one tuned from it."""
    job = service.finish(service.submit(max_steps=2).id)
    assert job.status == "succeeded", job.error
    return ["tiny", str(job.fine_tuned_model)]


def test_a_chat_with_tools_and_with_a_calls_answer_is_answered(service: Service, models: list[str]) -> None:
    for model in models:
        chat: Any = service.client.chat.completions.create
        free = chat(model=model, messages=QUESTION, tools=[ADD], max_tokens=12, temperature=0)
        assert free.model == model
        assert free.usage.completion_tokens > 0
        call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": true}'}}
        said = {"role": "tool", "tool_call_id": "call_1", "content": "6"}
        history = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, said]
        answer = chat(model=model, messages=history, tools=[ADD], max_tokens=4)
        assert answer.choices[0].message.role == "assistant"


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_call_is_made_even_by_random_weights(
    service: Service, models: list[str], choice: Any
) -> None:
    """vLLM forces the name; `strict` the arguments. Random weights would else write blanks or calls without end."""
    tokenizer = AutoTokenizer.from_pretrained(service.home / "models" / "tiny")
    blank = {str(number): -100 for text, number in tokenizer.get_vocab().items() if set(text) <= set("ĠĊĉč")}
    strict = ADD | {"function": ADD["function"] | {"strict": True}}
    for model in models:
        for streamed in (False, True):
            answer: Any = service.client.chat.completions.create(
                model=model,
                messages=QUESTION,
                tools=[strict],
                tool_choice=choice,
                parallel_tool_calls=False,
                max_tokens=120,
                temperature=0,
                logit_bias=blank,
                stream=streamed,
            )
            name, arguments = call_of_stream(answer) if streamed else call_of(answer)
            assert name == "add"
            assert json.loads(arguments) in ({"a": True}, {"a": False})


def call_of(answer: Any) -> tuple[str, str]:
    """(name, arguments) of the one call of an answer."""
    (call,) = answer.choices[0].message.tool_calls or ()
    return call.function.name, call.function.arguments


def call_of_stream(events: Any) -> tuple[str, str]:
    """The same of a stream."""
    deltas = [delta for event in events for one in event.choices for delta in one.delta.tool_calls or ()]
    assert {delta.index for delta in deltas} == {0}
    parts = [(delta.function.name or "", delta.function.arguments or "") for delta in deltas]
    return "".join(name for name, _ in parts), "".join(arguments for _, arguments in parts)


def test_the_responses_api_answers(service: Service, models: list[str]) -> None:
    texts = []
    for model in models:
        found = service.client.responses.create(
            model=model, input="What is 3 plus 3?", max_output_tokens=12, temperature=0
        )
        assert found.model == model
        assert found.status in ("completed", "incomplete")
        assert found.usage is not None
        assert found.usage.output_tokens > 0
        texts.append(found.output_text)
        events = service.client.responses.create(
            model=model, input="What is 3 plus 3?", max_output_tokens=12, temperature=0, stream=True
        )
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == found.output_text
    assert texts[0] != texts[1]  # of the tuned model maybe none, since it may end its answer at once
