"""The forms of completion rows: each parses to the same row, and what is wrong is named by JSON pointer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.nodes import RowError
from alignkit.data.rows import CompletionRow, parse_completion
from tests.data import strategies
from tests.data.completion_strategies import FORMS, Form, answers, completion_rows, openai, sharegpt, trl
from tests.data.strategies import JSON, message

HI, A, AGAIN, B = (
    message("user", "Hi"),
    message("assistant", "a"),
    message("user", "again"),
    message("assistant", "b"),
)
CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "add"}}


@given(completion_rows(), st.sampled_from(FORMS))
def test_every_form_gives_the_same_row(row: CompletionRow, form: Form) -> None:
    unused: set[str] = set()
    assert parse_completion(form(row), unused) == row
    assert not unused


@given(completion_rows(), st.data())
def test_weight_zero_takes_the_loss_from_a_turn(row: CompletionRow, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.sampled_from(row.loss_positions)).map(sorted).map(tuple))
    expected = CompletionRow(row.messages, kept)
    assert parse_completion(openai(expected)) == expected


@given(completion_rows())
def test_of_prompt_and_completion_only_the_completion_is_learned(row: CompletionRow) -> None:
    expected = CompletionRow(row.messages, row.loss_positions[-1:])
    assert parse_completion(trl(row)) == expected
    texts = {"prompt": "Hi", "completion": "a"}
    assert parse_completion(texts) == CompletionRow([HI, A], (1,))


@given(strategies.rows(), st.sampled_from(strategies.FORMS))
def test_of_a_pair_the_preferred_answer_is_learned(pair: Any, form: Any) -> None:
    unused: set[str] = set()
    written = form(pair)
    row = parse_completion(written, unused)
    assert row.messages[row.loss_positions[0] :][0]["role"] == "assistant"
    assert unused == {"rejected", "non_preferred_output"} & written.keys()
    if "prompt" in written or "input" in written or "conversations" in written:
        assert (row.messages, row.loss_positions) == (pair.prompt + pair.chosen, (len(pair.prompt),))


ROW_KEYS = ["messages", "prompt", "completion", "instruction", "output", "history", "conversations", "chosen"]
INNER_KEYS = ["role", "content", "weight", "tools", "input", "system", "from", "value", "rejected"]
NEAR = st.recursive(
    JSON | st.sampled_from(["user", "assistant", "human", "gpt", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(ROW_KEYS + INNER_KEYS), inner, max_size=5)
    ),
    max_leaves=20,
)


def outcome(value: Any) -> CompletionRow | RowError:
    try:
        return parse_completion(value)
    except RowError as error:
        return error


@given(NEAR)
def test_anything_is_a_row_or_a_row_error_that_points_into_it(value: Any) -> None:
    found = outcome(value)
    if isinstance(found, RowError):
        assert str(found).encode()
        assert found.pointer == "" or found.pointer.startswith("/")
    else:
        assert set(found.loss_positions) <= set(answers(found.messages))
        assert found.messages[-1]["role"] == "assistant"
        json.dumps(found.messages, ensure_ascii=False).encode()


def test_alpacas_input_and_history() -> None:
    row = parse_completion(
        {
            "instruction": "Add.",
            "input": "1 2",
            "output": "3",
            "history": [["Hi", "a"]],
            "system": "Be brief.",
        }
    )
    assert row.messages == [
        message("system", "Be brief."),
        HI,
        A,
        message("user", "Add.\n1 2"),
        message("assistant", "3"),
    ]
    assert row.loss_positions == (2, 4)


def test_tools_and_their_turns() -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 1}
    answer = {"role": "tool", "content": "3", "tool_call_id": "x"}
    row = parse_completion({"messages": [HI, asked, answer, A], "tools": [TOOL]})
    assert (row.loss_positions, row.tools) == ((1, 3), [TOOL])
    called = {"type": "function", "function": {"name": "add", "arguments": {}}}
    assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [called]}
    turns = sharegpt(CompletionRow([HI, A], (1,))) | {"tools": json.dumps([TOOL])}
    assert parse_completion(turns).tools == [TOOL]
    unused: set[str] = set()
    parse_completion({"messages": [HI | {"weight": 1}, A], "parallel_tool_calls": True, "id": 7}, unused)
    assert unused == {"parallel_tool_calls", "id", "/messages/*/weight"}


@pytest.mark.parametrize(
    ("row", "pointer", "expected"),
    [
        ({"messages": []}, "/messages", "an array of messages"),
        ({"messages": [HI]}, "/messages/0/role", "the conversation to end with an assistant turn"),
        (
            {"messages": [HI, A, AGAIN]},
            "/messages/2/role",
            "the conversation to end with an assistant turn",
        ),
        ({"messages": [A]}, "/messages/0/role", "the conversation to start with a turn"),
        ({"messages": [HI, A | {"weight": 0.5}]}, "/messages/1/weight", "0 or 1"),
        ({"messages": [HI, A | {"weight": True}]}, "/messages/1/weight", "0 or 1"),
        ({"messages": [HI, A | {"weight": []}]}, "/messages/1/weight", "0 or 1"),
        ({"messages": [HI, message("assistant", " ")]}, "/messages/1/content", "non-blank text"),
        ({"prompt": "Hi"}, "/completion", "the key of a row in TRL's form"),
        (
            {"prompt": [HI, A], "completion": "b"},
            "/prompt/1/role",
            "the prompt to end with a user or tool turn",
        ),
        ({"prompt": "Hi", "completion": [AGAIN, A]}, "/completion/0/role", "only an answer"),
        ({"instruction": "x", "input": ""}, "/output", "the key of a row in Alpaca's form"),
        ({"instruction": "x", "output": ""}, "/output", "non-blank text"),
        ({"instruction": "", "input": "x", "output": "y"}, "/instruction", "non-blank text"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "/history/0", "a round [question, answer]"),
        ({"instruction": "x", "output": "y", "history": "a"}, "/history", "an array of rounds"),
        (
            {"conversations": [{"from": "human", "value": "x"}]},
            "/conversations/0/from",
            "the conversation to end with an assistant turn",
        ),
        ({"text": "x"}, "", "the keys of a completion row (OpenAI: messages; TRL: completion, prompt; "),
        ([], "", "an object"),
    ],
)
def test_what_is_wrong_is_named(row: Any, pointer: str, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_completion(row)
    assert caught.value.pointer == pointer
    assert caught.value.expected.startswith(expected)
