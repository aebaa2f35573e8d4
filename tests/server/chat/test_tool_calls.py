"""Forced tool calls reach the engine and come back to the official client, of base and fine-tuned models."""

import json
from typing import Any

import pytest
from openai import OpenAI

from tests.server.chat.conftest import OWN_TEMPLATE, TUNED, Service

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}},
                "required": ["text"],
            },
        },
    }
    for name in ("look_up", "translate")
]
QUESTION: list[Any] = [{"role": "user", "content": 'call:größer als 1 "Zoll"'}]
FORCED = [("required", "translate"), ({"type": "function", "function": {"name": "look_up"}}, "look_up")]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_forced_call_comes_back_whole(service: Service, streamed: bool) -> None:
    with OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        ask: Any = client.chat.completions.create
        for model in ("tiny", TUNED, OWN_TEMPLATE):
            for choice, name in FORCED:
                answer = ask(model=model, messages=QUESTION, tools=TOOLS, tool_choice=choice, stream=streamed)
                call, reason = in_pieces(answer) if streamed else whole(answer)
                assert (call["id"], call["name"]) == ("call_1", name)
                assert json.loads(call["arguments"]) == {"text": 'größer als 1 "Zoll"'}
                assert reason == ("tool_calls" if choice == "required" else "stop")


def whole(answer: Any) -> tuple[dict[str, str], str]:
    """(id, name and arguments of the call of an answer, why it ended)."""
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    found = {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
    return found, choice.finish_reason


def in_pieces(events: Any) -> tuple[dict[str, str], str]:
    """The same of a stream."""
    found = {"id": "", "name": "", "arguments": ""}
    reason = ""
    for event in events:
        (choice,) = event.choices
        for delta in choice.delta.tool_calls or ():
            assert delta.index == 0
            found["id"] += delta.id or ""
            found["name"] += delta.function.name or ""
            found["arguments"] += delta.function.arguments or ""
        reason = choice.finish_reason or reason
    return found, reason
