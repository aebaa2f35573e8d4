"""The forms of preference rows: each parses to the same row, and what is wrong is named by JSON pointer."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.nodes import RowError
from alignkit.data.rows import PreferenceRow, parse_preference
from tests.data.strategies import ANY_TEXT, FORMS, JSON, message, openai, rows, sharegpt, trl, trl_implicit

ROW = PreferenceRow([message("user", "Hi")], [message("assistant", "a")], [message("assistant", "b")])
OPENAI, TRL, IMPLICIT, SHAREGPT = openai(ROW), trl(ROW), trl_implicit(ROW), sharegpt(ROW)


def calling(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "arguments": arguments}}


CALL, CALLED = calling('{"a": 1}'), calling({"a": 1})
"""A tool call in OpenAI's form, and in the form of chat templates."""
ARGUMENTS = "tool_calls/0/function/arguments"


@given(rows(), st.sampled_from(FORMS))
def test_every_form_gives_the_same_row(
    row: PreferenceRow, form: Callable[[PreferenceRow], dict[str, Any]]
) -> None:
    unused: set[str] = set()
    assert parse_preference(form(row), unused) == row
    assert not unused


TOP_KEYS = (
    "input",
    "prompt",
    "chosen",
    "rejected",
    "conversations",
    "preferred_output",
    "non_preferred_output",
)
INNER_KEYS = (
    "messages",
    "tools",
    "system",
    "role",
    "content",
    "name",
    "tool_calls",
    "function",
    "from",
    "value",
)
KEYS = st.sampled_from(TOP_KEYS + INNER_KEYS)
NEAR = st.recursive(
    JSON | st.sampled_from(["user", "assistant", "human", "gpt", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


def outcome(value: Any) -> PreferenceRow | RowError:
    unused: set[str] = set()
    try:
        row = parse_preference(value, unused)
    except RowError as error:
        return error
    assert all(name.isprintable() for name in unused)
    return row


def check_outcome(value: Any) -> None:
    found = outcome(value)
    assert isinstance(found, PreferenceRow) or len(str(found).encode()) < 600


@given(NEAR)
def test_any_value_gives_a_row_or_a_row_error(value: Any) -> None:
    check_outcome(value)


@given(rows(), st.sampled_from(FORMS), st.data())
def test_any_value_anywhere_in_a_row_gives_a_row_or_a_row_error(
    row: PreferenceRow, form: Callable[[PreferenceRow], dict[str, Any]], data: st.DataObject
) -> None:
    value = json.loads(json.dumps(form(row)))
    place = value
    for _ in range(data.draw(st.integers(0, 4))):
        below = place.values() if isinstance(place, dict) else place
        inner = [one for one in below if isinstance(one, dict | list) and one]
        if not inner:
            break
        place = data.draw(st.sampled_from(inner))
    keys = range(len(place)) if isinstance(place, list) else [*place, "tool_calls", "tools", "name", "odd"]
    place[data.draw(st.sampled_from(keys))] = data.draw(NEAR)
    check_outcome(value)


def spoken(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"input": {"messages": [{"role": role, "content": content} for role, content in turns]}}


@pytest.mark.parametrize(
    ("row", "pointer", "sentence"),
    [
        # where the row is no object, or of no form
        (3, "", "expected an object, found the number 3"),
        (None, "", "expected an object, found null"),
        ({}, "", "(OpenAI: input, non_preferred_output, preferred_output; ShareGPT: "),
        ({"text": 1, "\x1b[2J": 2}, "", "found the keys \\x1b[2J, text"),
        ({"prompt": "a", "chosen": "b"}, "/rejected", "expected the key of a row in TRL's form, found a mi"),
        ({"chosen": []}, "/rejected", "expected the key of a row in TRL (without prompt)'s form"),
        ({"conversations": [], "chosen": {}}, "/rejected", "ShareGPT's form, found a missing key"),
        (
            {"input": {}, "preferred_output": []},
            "/non_preferred_output",
            "OpenAI's form, found a missing key",
        ),
        # OpenAI
        (OPENAI | {"input": "Hi"}, "/input", "expected an object {\"messages\": …}, found the text 'Hi'"),
        (OPENAI | {"input": {}}, "/input/messages", "expected an array of messages, found a missing key"),
        (OPENAI | spoken(), "/input/messages", "expected an array of messages, found an array without entr"),
        (OPENAI | {"input": {"messages": ["Hi"]}}, "/input/messages/0", 'a message {"role": …, "content": …'),
        (
            OPENAI | spoken(("robot", "Hi")),
            "/input/messages/0/role",
            "tool, function, found the text 'robot'",
        ),
        (
            OPENAI | {"input": {"messages": [{"content": "Hi"}]}},
            "/input/messages/0/role",
            "found a missing key",
        ),
        (OPENAI | spoken(("user", 3)), "/input/messages/0/content", "text parts, found the number 3"),
        (
            OPENAI | spoken(("user", None)),
            "/input/messages/0/content",
            "non-blank text, or an array o",
        ),
        (OPENAI | spoken(("user", " \n")), "/input/messages/0/content", "found the text ' \\n'"),
        (OPENAI | spoken(("user", "\ud800")), "/input/messages/0/content", "found half of a surrogate pair"),
        (OPENAI | spoken(("user", [])), "/input/messages/0/content", "found an array without entries"),
        (
            OPENAI | spoken(("user", [{"type": "image_url", "image_url": {}}])),
            "/input/messages/0/content/0/type",
            "expected 'text' or 'refusal', the types of part that can be trained on, found the text 'image_url'",
        ),
        (
            OPENAI | spoken(("user", [{"type": "text", "text": "a"}, {"type": "text"}])),
            "/input/messages/0/content/1/text",
            "expected text, found a missing key",
        ),
        (
            OPENAI | spoken(("user", "Hi"), ("assistant", "Yes?")),
            "/input/messages/1/role",
            "expected the prompt to end with a user or tool turn, found the text 'assistant'",
        ),
        (OPENAI | {"preferred_output": []}, "/preferred_output", "found an array without entries"),
        (
            OPENAI | {"preferred_output": [message("user", "x")]},
            "/preferred_output/0/role",
            "found the text 'u",
        ),
        (OPENAI | {"non_preferred_output": None}, "/non_preferred_output", "of messages, found null"),
        (
            OPENAI | {"preferred_output": [message("assistant", "x"), message("tool", "y")]},
            "/preferred_output/1/role",
            "expected a turn of an answer (assistant), found the text 'tool'",
        ),
        (
            OPENAI | {"input": OPENAI["input"] | {"tools": {"a": 1}}},
            "/input/tools",
            "an array of tools, found an",
        ),
        (
            OPENAI | {"input": OPENAI["input"] | {"tools": ["add"]}},
            "/input/tools/0",
            "a tool, which is an object",
        ),
        # TRL
        (TRL | {"prompt": ""}, "/prompt", "found an empty text"),
        (TRL | {"prompt": None}, "/prompt", "expected an array of messages, found null"),
        (
            TRL | {"chosen": "  "},
            "/chosen",
            "non-blank text, or an array of text parts, found the te",
        ),
        (TRL | {"rejected": [message("assistant", "")]}, "/rejected/0/content", "found an empty text"),
        (
            TRL | {"chosen": [message("user", "Bye"), *ROW.chosen]},
            "/chosen/0/role",
            "remove the key 'prompt', found",
        ),
        (
            TRL
            | {
                "chosen": [message("system", "x"), *ROW.prompt, *ROW.chosen],
                "rejected": IMPLICIT["rejected"],
            },
            "/rejected",
            "expected a conversation with the same beginning as the other answers, found another beginning",
        ),
        (
            TRL | {"tools": "[1"},
            "/tools",
            "expected an array of tools, found a line cut off after 2 characters",
        ),
        # TRL without prompt
        (
            {"chosen": "b", "rejected": "c"},
            "/chosen",
            "because there is no prompt key: an array of messages, or text that",
        ),
        (IMPLICIT | {"rejected": ROW.rejected}, "/rejected/0", "the same first message as in chosen"),
        (
            {
                "chosen": [*ROW.prompt, *ROW.chosen, *ROW.prompt, *ROW.chosen],
                "rejected": IMPLICIT["rejected"],
            },
            "/chosen/2/role",
            "expected a turn of an answer (assistant or tool), found the text 'user'",
        ),
        # ShareGPT
        (SHAREGPT | {"conversations": "Hi"}, "/conversations", "expected an array of turns, found the text"),
        (SHAREGPT | {"conversations": [3]}, "/conversations/0", 'expected a turn {"from": …, "value": …}'),
        (
            SHAREGPT | {"chosen": {"from": "robot", "value": "x"}},
            "/chosen/from",
            "tool, found the text 'robot'",
        ),
        (
            SHAREGPT | {"chosen": {"from": "human", "value": "x"}},
            "/chosen/from",
            "a turn of an answer (assistant)",
        ),
        (SHAREGPT | {"rejected": {"from": "gpt"}}, "/rejected/value", "non-blank text, found a missing key"),
        (SHAREGPT | {"system": 3}, "/system", "expected non-blank text, found the number 3"),
        (
            SHAREGPT | {"conversations": [{"from": "gpt", "value": "x"}]},
            "/conversations/0/from",
            "the prompt to end with a user or tool turn, found the text 'gpt'",
        ),
        (
            SHAREGPT
            | {
                "conversations": [{"from": "system", "value": "x"}, *SHAREGPT["conversations"]],
                "system": "y",
            },
            "/conversations/0/from",
            "no system turn, because there is a key 'system'",
        ),
    ],
)
def test_what_is_wrong_is_named(row: Any, pointer: str, sentence: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_preference(row)
    assert caught.value.pointer == pointer
    assert sentence in f"expected {caught.value.expected}, found {caught.value.found}"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("key", "value", "pointer", "sentence"),
    [
        ("name", 5, "name", "found the number 5"),
        (
            "content",
            [{"type": "refusal", "text": "No."}],
            "content/0/refusal",
            "expected text, found a missing",
        ),
        ("tool_calls", "add", "tool_calls", "expected an array of tool calls, found the text 'add'"),
        ("tool_calls", ["add"], "tool_calls/0", 'expected a tool call {"type": "function"'),
        ("tool_calls", [calling('{"a": 1')], ARGUMENTS, "the text of one, found a line cut off after 7 char"),
        ("tool_calls", [calling("[1]")], ARGUMENTS, "a JSON object, or the text of one, found an array"),
        ("tool_calls", [calling("null")], ARGUMENTS, "a JSON object, or the text of one, found null"),
        ("tool_calls", [calling(5)], ARGUMENTS, "a JSON object, or the text of one, found the number 5"),
        ("tool_calls", [calling(f'{{"a": {2**64}}}')], ARGUMENTS, "numbers that fit in 64 bits"),
        ("function_call", "add", "function_call", 'expected {"name": …, "arguments": …}, found the text'),
        ("function_call", {}, "function_call/name", "the name of a function, found a missing key"),
        ("function_call", {"name": "add", "odd": nested(80)}, "function_call", "at most 64 levels"),
        (
            "tool_calls",
            [{}],
            "tool_calls/0/function",
            'expected {"name": …, "arguments": …}, found a missing',
        ),
        ("tool_calls", [{"function": {}}], "tool_calls/0/function/name", "the name of a function, found a"),
        (
            "tool_calls",
            [CALL | {"odd": nested(80)}],
            "tool_calls/0",
            "at most 64 levels of nesting, found more",
        ),
        ("tool_calls", [CALL | {"odd": nested(900)}], "tool_calls/0", "at most 64 levels of nesting"),
        ("tool_calls", [CALL | {"odd": "\udfff"}], "tool_calls/0", "expected valid Unicode, found half of a"),
        ("tool_calls", [CALL | {"\udfff": 1}], "tool_calls/0", "expected valid Unicode, found half of a"),
        (
            "tool_calls",
            [CALL | {"odd": 2**64}],
            "tool_calls/0",
            "numbers that fit in 64 bits, found the number 1",
        ),
    ],
)
def test_what_is_wrong_in_an_assistants_other_keys_is_named(
    key: str, value: Any, pointer: str, sentence: str
) -> None:
    with pytest.raises(RowError) as caught:
        parse_preference(TRL | {"chosen": [ROW.chosen[0] | {key: value}]})
    assert caught.value.pointer == f"/chosen/0/{pointer}"
    assert sentence in str(caught.value)


def test_a_developer_is_the_system() -> None:
    row = parse_preference(TRL | {"prompt": [message("developer", "Be brief."), message("user", "Hi")]})
    assert row.prompt[0] == message("system", "Be brief.")


def test_keys_of_an_answer_elsewhere_are_named_as_unused() -> None:
    unused: set[str] = set()
    user = message("user", "Hi") | {"refusal": "No.", "function_call": {"name": "add"}, "tool_calls": []}
    answer = message("assistant", "a") | {"refusal": "No."}
    parse_preference(TRL | {"prompt": [user], "chosen": [answer]}, unused)
    assert unused == {"/prompt/*/refusal", "/prompt/*/function_call", "/chosen/*/refusal"}
    both = message("assistant", "") | {"tool_calls": [CALL], "function_call": CALL["function"]}
    with pytest.raises(
        RowError, match="/chosen/0/function_call: expected tool_calls or a function_call, not"
    ):
        parse_preference(TRL | {"chosen": [both]})


def test_a_refusal_is_what_the_assistant_says() -> None:
    logged = {
        "role": "assistant",
        "content": None,
        "refusal": "No.",
        "tool_calls": None,
        "function_call": None,
    }
    parts = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    unused: set[str] = set()
    for answer in (logged, logged | {"content": ""}, parts, message("assistant", "No.") | {"refusal": None}):
        assert parse_preference(TRL | {"chosen": [answer]}, unused).chosen == [message("assistant", "No.")]
    assert not unused
    with pytest.raises(RowError, match="/prompt/0/content"):
        parse_preference(TRL | {"prompt": [{"role": "user", "refusal": "No."}]})


def test_plain_text_is_one_turn_each() -> None:
    assert parse_preference({"prompt": "Hi", "chosen": "a", "rejected": "b"}) == ROW


def test_equal_whole_conversations_differ_in_nothing_but_are_a_row() -> None:
    row = parse_preference({"chosen": IMPLICIT["chosen"], "rejected": IMPLICIT["chosen"]})
    assert (row.prompt, row.chosen, row.rejected) == (ROW.prompt, ROW.chosen, ROW.chosen)


def test_keys_that_play_no_part_are_named_by_place() -> None:
    unused: set[str] = set()
    row = OPENAI | {"source": "x", "preferred_output": [ROW.chosen[0] | {"weight": 1}]}
    parse_preference(row | {"input": OPENAI["input"] | {"parallel_tool_calls": True}}, unused)
    assert unused == {"source", "/preferred_output/*/weight", "/input/parallel_tool_calls"}


@given(st.dictionaries(ANY_TEXT, st.none(), min_size=150, max_size=160))
def test_names_of_unused_keys_are_limited_and_printable(extra: dict[str, None]) -> None:
    unused: set[str] = set()
    parse_preference(extra | TRL, unused)
    assert 0 < len(unused) <= 100
    assert all(name.isprintable() and len(name) < 500 for name in unused)
