"""Rows as published data sets and other tools write them."""

import json
from typing import Any

import pytest

from alignkit.data import RowError, parse_completion, parse_dispreferred, parse_labelled, parse_preference
from tests.data.strategies import message

HI, YES, NO = message("user", "Hi"), message("assistant", "yes"), message("assistant", "no")
SYSTEM = message("system", "Be kind.")
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "yes"}]
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant:"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}

PAIRS: dict[str, dict[str, Any]] = {
    "LLaMA-Factory's": {"instruction": "Hi", "input": "", "chosen": "yes", "rejected": "no"},
    "Orca's": {"system": "", "question": "Hi", "chosen": "yes", "rejected": "no"},
    "one message an answer": {"prompt": "Hi", "chosen": YES, "rejected": NO},
    "one message a prompt": {"prompt": HI, "chosen": "yes", "rejected": "no"},
    "UltraFeedback's": {"prompt": "Hi", "chosen": [HI, YES], "rejected": [HI, NO]},
    "with messages that repeat the prompt": {"prompt": [HI], "chosen": [HI, YES], "rejected": [HI, NO]},
    "ms-swift's": {"messages": [HI, YES], "rejected_response": "no"},
    "ms-swift's with messages": {"messages": [HI, YES], "rejected_messages": [HI, NO]},
    "ms-swift's with a query": {"query": "Hi", "response": "yes", "rejected_response": "no"},
    "HH's": {"chosen": "\n\nHuman: Hi\n\nAssistant: yes", "rejected": "\n\nHuman: Hi\n\nAssistant: no"},
    "ShareGPT's with texts": {"conversations": TURNS[:1], "chosen": "yes", "rejected": "no"},
    "conversations as JSON text": {
        key: json.dumps(said) for key, said in (("chosen", [HI, YES]), ("rejected", [HI, NO]))
    },
    "turns as JSON text": {"conversations": json.dumps(TURNS[:1]), "chosen": "yes", "rejected": "no"},
    "roles with capitals": {
        "conversations": [{"from": "Human", "value": "Hi"}],
        "chosen": {"from": "GPT", "value": "yes"},
        "rejected": message("Assistant ", "no"),
    },
    "Gemini's roles": {
        "prompt": [HI],
        "chosen": [message("model", "yes")],
        "rejected": [message("model", "no")],
    },
    "parts of the Responses API": {
        "prompt": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "output_text", "text": "yes"}]}],
        "rejected": "no",
    },
    "ShareGPT's roles in OpenAI's words": {"conversations": [HI], "chosen": YES, "rejected": NO},
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_a_pair_in_every_published_form(row: dict[str, Any]) -> None:
    pair = parse_preference(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([HI], [YES], [NO])
    dispreferred = parse_dispreferred(row)
    assert (dispreferred.prompt, dispreferred.rejected) == ([HI], [NO])
    completion = parse_completion(row)
    assert (completion.messages, completion.loss_positions) == ([HI, YES], (1,))
    labelled = parse_labelled(row)
    assert (labelled.prompt, labelled.desirable, labelled.undesirable) == ([HI], [YES], [NO])


def test_system_text_and_history_beside_a_pair() -> None:
    told = {"system": "Be kind.", "history": [["a", "b"]]}
    earlier = [SYSTEM, message("user", "a"), message("assistant", "b")]
    factory = PAIRS["LLaMA-Factory's"] | told | {"input": "there"}
    assert parse_preference(factory).prompt == [*earlier, message("user", "Hi\nthere")]
    assert parse_preference(PAIRS["ms-swift's with a query"] | told).prompt == [*earlier, HI]
    assert parse_preference(PAIRS["Orca's"] | {"system": "Be kind."}).prompt == [SYSTEM, HI]
    assert parse_preference(
        PAIRS["UltraFeedback's"] | {"chosen": [SYSTEM, HI, YES], "rejected": [SYSTEM, HI, NO]}
    ).prompt == [SYSTEM, HI]


def test_hh_conversations_share_their_beginning() -> None:
    pair = parse_preference({"chosen": f"{HH} yes\n", "rejected": f"{HH} no: \n\nreally"})
    assert [turn["role"] for turn in pair.prompt] == ["user", "assistant", "user"]
    assert pair.prompt[1:] == [message("assistant", "Hello."), message("user", "And?")]
    assert (pair.chosen, pair.rejected) == ([YES], [message("assistant", "no: \n\nreally")])
    with pytest.raises(RowError, match=r'/chosen: expected a whole conversation.*starts with "Human:"'):
        parse_preference({"chosen": "Hi there", "rejected": "no"})
    with pytest.raises(
        RowError, match="/rejected: expected text after each Human: and Assistant:, found none"
    ):
        parse_preference({"chosen": f"{HH} yes", "rejected": HH})


def test_a_conversation_that_is_not_of_the_prompt_is_refused() -> None:
    bye = message("user", "Bye")
    with pytest.raises(
        RowError, match="/chosen/0/role: expected only an answer, or a conversation that begins"
    ):
        parse_preference({"prompt": "Hi", "chosen": [bye, YES], "rejected": [bye, NO]})


def test_an_empty_system_turn_is_none() -> None:
    for system in (message("system", ""), message("system", " \n"), {"role": "system", "content": None}):
        assert parse_completion({"messages": [system, HI, YES]}).messages == [HI, YES]
        assert parse_preference({"prompt": [system, HI], "chosen": "yes", "rejected": "no"}).prompt == [HI]
    turns = [{"from": "system", "value": ""}, *TURNS]
    assert parse_completion({"conversations": turns}).messages == [HI, YES]
    with pytest.raises(
        RowError, match="/messages: expected at least one turn that is not an empty system turn"
    ):
        parse_completion({"messages": [message("system", "")]})


def test_an_empty_part_beside_calls_is_empty_text() -> None:
    for content in ([{"type": "text", "text": ""}], [], "", None):
        called = {"role": "assistant", "content": content, "tool_calls": [CALL]}
        row = parse_completion({"messages": [HI, called, message("tool", "2"), YES]})
        assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    with pytest.raises(RowError, match="/messages/1/content"):
        parse_completion({"messages": [HI, message("assistant", [{"type": "text", "text": ""}])]})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_under_one_key(key: str) -> None:
    row = parse_completion({"messages": [HI, YES | {key: "They greet."}]})
    assert row.messages[1] == YES | {"reasoning_content": "They greet."}
    unused: set[str] = set()
    parse_completion({"messages": [HI | {key: "x"}, YES | {key: ""}]}, unused)
    assert unused == {f"/messages/*/{key}"}


@pytest.mark.parametrize("speaker", ["gpt", "chatgpt", "bing", "bard", "model", "assistant"])
def test_sharegpts_assistants(speaker: str) -> None:
    row = parse_completion({"conversations": [TURNS[0], {"from": speaker, "value": "yes"}]})
    assert row.messages == [HI, YES]


def test_sharegpts_calls() -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    row = parse_completion(
        {
            "conversations": [
                TURNS[0],
                {"from": "function_call", "value": call},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "yes"},
            ],
            "tools": '[{"name": "add", "description": "Adds."}]',
        }
    )
    assert row.messages == [
        HI,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        message("tool", "2"),
        YES,
    ]
    assert row.loss_positions == (1, 3)
    assert row.tools == [{"type": "function", "function": {"name": "add", "description": "Adds."}}]
    several = {"from": "function_call", "value": f"[{call}, {call}]"}
    assert parse_completion({"conversations": [TURNS[0], several]}).messages[1]["tool_calls"] == [CALL, CALL]
    with pytest.raises(RowError, match="/conversations/1/value: expected the JSON text of a call"):
        parse_completion({"conversations": [TURNS[0], {"from": "function_call", "value": "add(1)"}]})


def test_a_greeting_before_anybody_spoke_is_context() -> None:
    welcome = message("assistant", "Welcome")
    for row in (
        {"messages": [welcome, HI, YES]},
        {"conversations": [{"from": "gpt", "value": "Welcome"}, *TURNS]},
    ):
        found = parse_completion(row)
        assert (found.messages, found.loss_positions) == ([welcome, HI, YES], (2,))
    with pytest.raises(RowError, match="the conversation to start with a turn that the assistant answers"):
        parse_completion({"messages": [welcome]})


@pytest.mark.parametrize(
    ("row", "pointer", "found"),
    [
        (
            {"prompt": "Hi", "chosen": "[{'role': 'user', 'content': 'Hi'}]", "rejected": "no"},
            "/chosen",
            "Python's",
        ),
        ({"prompt": "Hi", "chosen": "yes", "rejected": "no", "images": ["a.png"]}, "/images", "an array"),
        ({"prompt": "Hi", "response": "yes", "rejected": "no"}, "/chosen", "columns may rename response"),
    ],
)
def test_what_would_be_trained_as_something_else_is_refused(
    row: dict[str, Any], pointer: str, found: str
) -> None:
    with pytest.raises(RowError) as caught:
        parse_preference(row)
    assert caught.value.pointer == pointer
    assert found in caught.value.found


def test_an_answer_that_is_json_stays_text_and_no_media_is_no_matter() -> None:
    row = {"prompt": "Hi", "chosen": '[{"a": 1}]', "rejected": "[sic]", "images": []}
    pair = parse_preference(row)
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ('[{"a": 1}]', "[sic]")


def test_a_tool_may_return_nothing() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row = parse_completion({"messages": [HI, called, message("tool", ""), YES]})
    assert row.messages[2] == message("tool", "")
    shown = {"from": "observation", "value": ""}
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    turns = [TURNS[0], call, shown, TURNS[1]]
    assert parse_completion({"conversations": turns}).messages[2] == message("tool", "")


def test_hhs_plain_text_is_read_the_same_whether_its_prompt_stands_beside_or_inside() -> None:
    inside = {"chosen": f"{HH} yes", "rejected": f"{HH} no"}
    for end in ("\n", "\r\n"):
        beside = {"prompt": HH, "chosen": " yes", "rejected": " no"}
        written = {key: text.replace("\n", end) for key, text in beside.items()}
        assert parse_preference(written) == parse_preference(inside)
        whole = {key: text.replace("\n", end) for key, text in inside.items()}
        assert parse_preference(whole) == parse_preference(inside)
    assert parse_completion({"prompt": HH, "completion": " yes"}).messages == [
        *parse_preference(inside).prompt,
        YES,
    ]


@pytest.mark.parametrize("prompt", ["Human: is that a word?", "What do Human: and\n\nAssistant: mean?"])
def test_a_prompt_that_only_names_speakers_is_one_turn(prompt: str) -> None:
    row = parse_preference({"prompt": prompt, "chosen": " yes", "rejected": " no"})
    assert (row.prompt, row.chosen[0]["content"]) == ([message("user", prompt)], " yes")
