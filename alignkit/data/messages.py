"""Messages, the parts of every kind of row, in OpenAI's and ShareGPT's notation of a turn."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from alignkit.data.nodes import Node
from alignkit.data.tools import CALLS, parse_calls, parse_written_calls

Message = dict[str, Any]
"""{"role": …, "content": …}, with optional "name", "tool_calls", "tool_call_id" and "reasoning_content"."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SYSTEM_ROLES = ("system", "developer")
TEMPLATE_ROLES = {"developer": "system", "function": "tool"}
"""OpenAI's roles -> those of chat templates, as in vLLM (which keeps developer if a template has that role)."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message's reasoning: in vLLM and most templates, in newer servers, and in gpt-oss."""
ANSWER_KEYS = CALLS | {"refusal", *REASONING_KEYS}
"""Keys that only an assistant's message may have."""
MESSAGE_KEYS = ANSWER_KEYS | {"role", "content", "name", "tool_call_id"}
PART_KINDS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
"""Type of content part, in OpenAI's chat and Responses APIs -> key of its text."""
TURN_KEYS = frozenset({"from", "value"})
CALL_SPEAKER = "function_call"
"""The speaker of a tool call in ShareGPT's form; its value is JSON text."""
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    CALL_SPEAKER: "assistant",
    "system": "system",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
    "tool": "tool",
}
_HH_TURN = re.compile(r"(?:^|\r?\n\r?\n)(Human|Assistant):")
"""Start of a turn in the plain text of Anthropic's HH data."""


Style = Callable[[Node], Message]
"""A notation of turns, given as its parser."""


def role_of(turn: Node) -> Node:
    """The node that names the speaker of a turn."""
    return turn.at("from" if isinstance(turn.value, dict) and "from" in turn.value else "role")


def role_named(name: object) -> str | None:
    """The role that a name stands for, in OpenAI's or ShareGPT's notation and in any case; None if unknown."""
    written = name.strip().lower() if isinstance(name, str) else ""
    return written if written in ROLES else SHAREGPT_ROLES.get(written)


def turns_of(node: Node, expected: str = "an array of messages") -> list[Node]:
    """The turns of a conversation, without empty system turns."""
    turns = [turn for turn in node.entries(expected) if not _is_empty_system(turn)]
    if not turns:
        raise node.refuse("at least one turn that is not an empty system turn")
    return turns


def _is_empty_system(turn: Node) -> bool:
    value = turn.value
    if not isinstance(value, dict) or role_named(role_of(turn).value) not in SYSTEM_ROLES:
        return False
    said = value.get("value", value.get("content"))
    return said is None or said == [] or (isinstance(said, str) and not said.strip())


def hh_turns(node: Node) -> list[Node]:
    """The turns of a conversation written as plain text, `Human: … Assistant: …`."""
    text = node.text()
    starts = [(found.start(), found.end(), found.group(1)) for found in _HH_TURN.finditer(text)]
    if not starts or text[: starts[0][0]].strip():
        raise node.refuse(
            "a whole conversation, because there is no prompt key: an array of messages, or text that starts with "
            '"Human:"'
        )
    ends = [start for start, _, _ in starts[1:]] + [len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    said = [text[begin:end].strip() for (_, begin, _), end in zip(starts, ends, strict=True)]
    if not all(said):
        raise node.refuse("text after each Human: and Assistant:", "none")
    return [
        node.holding({"role": roles[speaker], "content": content})
        for (_, _, speaker), content in zip(starts, said, strict=True)
    ]


def conversation_of(node: Node) -> list[Node]:
    """The turns of a whole conversation: messages, or HH's plain text."""
    if isinstance(node.value, str):
        return hh_turns(node)
    return turns_of(node, "a whole conversation (an array of messages), because there is no prompt key")


def parse_prompt(turns: Sequence[Node], style: Style) -> list[Message]:
    """The messages of a prompt, which must end with a user or tool turn."""
    messages = [style(turn) for turn in turns]
    if messages[-1]["role"] not in {"user", "tool"}:
        raise role_of(turns[-1]).refuse("the prompt to end with a user or tool turn")
    return messages


def parse_answer(turns: Sequence[Node], style: Style) -> list[Message]:
    """The messages of an answer: assistant turns, with only tool results between them.

    The whole answer carries loss, so it may not contain user turns.
    """
    messages = [style(turn) for turn in turns]
    last = len(messages) - 1
    for index, (turn, message) in enumerate(zip(turns, messages, strict=True)):
        allowed = {"assistant"} if index in {0, last} else {"assistant", "tool"}
        if message["role"] not in allowed:
            raise role_of(turn).refuse(f"a turn of an answer ({' or '.join(sorted(allowed))})")
    return messages


def answer_turns(node: Node, expected: str = "text, or an array of messages") -> list[Node]:
    """The turns of an answer given as text, one message, or an array of messages."""
    if isinstance(node.value, str):
        return [node.holding({"role": "assistant", "content": parse_content(node)})]
    return [node] if isinstance(node.value, dict) else turns_of(node, expected)


def split_last_answer(turns: Sequence[Node], whole: Node) -> tuple[Sequence[Node], Sequence[Node]]:
    """The turns of a whole conversation up to the last user turn, and the turns after it."""
    roles = [str(TURNS(turn)["role"]) for turn in turns]
    end = max((index for index, role in enumerate(roles) if role == "user"), default=-1) + 1
    if end in {0, len(turns)}:
        raise whole.refuse("a user turn and an answer after it", ", ".join(roles))
    return turns[:end], turns[end:]


def with_system(system: Node, turns: Sequence[Node], messages: list[Message]) -> list[Message]:
    """ShareGPT's messages, preceded by the system text from a key of its own, if any."""
    text = system_text(system)
    if not text:
        return messages
    if messages[0]["role"] == "system":
        raise role_of(turns[0]).refuse("no system turn, because there is a key 'system'")
    return [*text, *messages]


def system_text(node: Node) -> list[Message]:
    """The system message from a key of its own; empty list if its text is empty."""
    if not node.given or (isinstance(node.value, str) and not node.value.strip()):
        return []
    return [{"role": "system", "content": node.text()}]


def parse_message(node: Node, more_keys: frozenset[str] = frozenset()) -> Message:
    """A message in the notation of OpenAI and TRL; `more_keys` are allowed for the caller's use."""
    node.as_object('a message {"role": …, "content": …}', MESSAGE_KEYS | more_keys)
    role = role_named(node.at("role").value)
    if role is None or _calls(node.at("role")):
        raise node.at("role").refuse(f"one of {', '.join(ROLES)}")
    message: Message = {"role": TEMPLATE_ROLES.get(role, role)}
    if role == "assistant" and not ANSWER_KEYS.isdisjoint(node.value):
        message |= _answer(node)
    else:
        node.leave(ANSWER_KEYS)
        message["content"] = _said(message["role"], node.at("content"))
    for key in ("name", "tool_call_id"):
        if node.has(key):
            message[key] = node.at(key).text()
    return message


def _calls(speaker: Node) -> bool:
    return isinstance(speaker.value, str) and speaker.value.strip().lower() == CALL_SPEAKER


def _said(role: str, content: Node) -> str:
    """The text of a message; a tool may return none."""
    return "" if role == "tool" and _is_empty(content) else parse_content(content)


def _answer(node: Node) -> Message:
    """An assistant's text, tool calls and reasoning; a refusal becomes the text if there is nothing else."""
    content, calls = node.at("content"), parse_calls(node)
    message: Message = {"content": "" if calls and _is_empty(content) else None}
    if calls is None and _is_empty(content) and node.has("refusal"):
        message["content"] = node.at("refusal").text()
    else:
        node.leave(frozenset({"refusal"}))
    if message["content"] is None:
        message["content"] = parse_content(content)
    if calls is not None:
        message["tool_calls"] = calls
    given = [key for key in REASONING_KEYS if node.value.get(key)]
    if given:
        message["reasoning_content"] = node.at(given[0]).text("the text of the reasoning")
        node.leave(frozenset(given[1:]))
    return message


def _is_empty(content: Node) -> bool:
    """Whether there is no text, in any of the notations of OpenAI's exports."""
    if isinstance(content.value, list):
        return all(isinstance(part, dict) and part.get("text") == "" for part in content.value)
    return not content.given or content.value == ""


def parse_turn(node: Node) -> Message:
    """A turn in ShareGPT's notation, or in OpenAI's."""
    if isinstance(node.value, dict) and "from" not in node.value and "role" in node.value:
        return parse_message(node)
    node.as_object('a turn {"from": …, "value": …}', TURN_KEYS)
    role = role_named(node.at("from").value)
    if role is None:
        raise node.at("from").refuse(f"one of {', '.join(SHAREGPT_ROLES)}")
    if _calls(node.at("from")):
        return {"role": "assistant", "content": "", "tool_calls": parse_written_calls(node.at("value"))}
    role = TEMPLATE_ROLES.get(role, role)
    said = node.at("value")
    return {"role": role, "content": "" if role == "tool" and _is_empty(said) else said.text()}


def parse_content(node: Node) -> str:
    """A string, or OpenAI's list of text parts, joined."""
    if not isinstance(node.value, list):
        return node.text("non-blank text, or an array of text parts")
    joined = "".join(_part(part) for part in node.entries("text, or an array of text parts"))
    return node.holding(joined).text()


def _part(node: Node) -> str:
    """The text of a content part; a refusal counts as text of the assistant."""
    part = node.as_object('a part {"type": "text", "text": …}', frozenset({"type", "text", "refusal"}))
    kind = part.at("type")
    if not isinstance(kind.value, str) or kind.value not in PART_KINDS:
        raise kind.refuse("'text' or 'refusal', the types of part that can be trained on")
    text = part.at(PART_KINDS[kind.value])
    if not isinstance(text.value, str):
        raise text.refuse("text")
    return text.value


MESSAGES: Style = parse_message
TURNS: Style = parse_turn
