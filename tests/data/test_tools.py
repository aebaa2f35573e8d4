"""Tools, functions and calls of them, as OpenAI writes them, and what templates are given."""

import json
import re
from typing import Any

import pytest

from alignkit.data.nodes import RowError
from alignkit.data.rows import parse_preference
from tests.data.rows.test_preference import CALL, CALLED, OPENAI, TRL, calling
from tests.data.strategies import message


def test_tools_and_tool_calls_are_kept() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    calls = [
        message("user", "1 + 1?"),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        message("tool", "2") | {"tool_call_id": "1"},
    ]
    row = parse_preference({"prompt": calls, "chosen": "2", "rejected": "3", "tools": json.dumps(tools)})
    assert row.tools == tools
    assert row.prompt == [calls[0], {"role": "assistant", "content": "", "tool_calls": [CALLED]}, calls[2]]
    answer = parse_preference(TRL | {"chosen": [calls[1], calls[2], message("assistant", "2")]}).chosen
    assert [one["role"] for one in answer] == ["assistant", "tool", "assistant"]
    assert parse_preference(TRL | {"tools": []}).tools is None


@pytest.mark.parametrize("arguments", ["", "{}", {}, None, " { } "])
def test_no_arguments_are_an_object_without_entries(arguments: Any) -> None:
    answer = message("assistant", "") | {"tool_calls": [calling(arguments)]}
    (parsed,) = parse_preference(TRL | {"chosen": [answer]}).chosen
    assert parsed["tool_calls"] == [calling({})]


def test_functions_are_tools_and_their_results_a_tools() -> None:
    add = {"name": "add", "parameters": {"type": "object"}}
    call = {"name": "add", "arguments": '{"a": 1}'}
    before = [
        message("user", "1 + 1?"),
        {"role": "assistant", "content": None, "function_call": call},
        message("function", "2") | {"name": "add"},
    ]
    body = {"messages": before, "functions": [add]}
    row = parse_preference(OPENAI | {"input": body})
    assert row.tools == [{"type": "function", "function": add}]
    assert row.prompt[1]["tool_calls"] == [CALLED]
    assert row.prompt[2] == {"role": "tool", "content": "2", "name": "add"}
    assert parse_preference(OPENAI | {"input": body | {"functions": json.dumps([add])}}) == row


@pytest.mark.parametrize(
    ("functions", "tools", "sentence"),
    [
        (
            [{"name": "add"}],
            [{"type": "function"}],
            "/input/functions: expected tools or functions, not both",
        ),
        ([{}], None, "/input/functions/0/name: expected the name of a function, found a missing key"),
        (["add"], [], "/input/functions/0: expected a tool, which is an object"),
    ],
)
def test_what_is_wrong_in_functions_is_named(functions: Any, tools: Any, sentence: str) -> None:
    body = OPENAI["input"] | {"functions": functions, "tools": tools}
    with pytest.raises(RowError, match=re.escape(sentence)):
        parse_preference(OPENAI | {"input": body})
