"""Messages, the parts that every kind of row is made of: OpenAI's and ShareGPT's way to write a turn."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from alignkit.data.nodes import Node
from alignkit.data.tools import CALLS, parse_calls, parse_written_calls

Message = dict[str, Any]
"""{"role": …, "content": …}, and where given "name", "tool_calls", "tool_call_id" and "reasoning_content"."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
AS_TEMPLATES_SAY = {"developer": "system", "function": "tool"}
"""What OpenAI calls otherwise than chat templates do; so does vLLM, with a developer where a template has none."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""How a message's reasoning is called: by vLLM and most templates, by newer servers, and by gpt-oss."""
ANSWER_KEYS = CALLS | {"refusal", *REASONING_KEYS}
"""The keys that only an assistant's message may use."""
MESSAGE_KEYS = ANSWER_KEYS | {"role", "content", "name", "tool_call_id"}
PART_KINDS = ("text", "refusal")
"""The types of part, each with its text under the key of its own name."""
TURN_KEYS = frozenset({"from", "value"})
CALL_SPEAKER = "function_call"
"""Who says a call of a tool in ShareGPT's form, as JSON text."""
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
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""Where a turn begins in the plain text of Anthropic's HH data."""


Style = Callable[[Node], Message]
"""A way to write a turn: its parser."""


def role_of(turn: Node) -> Node:
    """The place that says whose turn it is."""
    return turn.at("from" if isinstance(turn.value, dict) and "from" in turn.value else "role")


def turns_of(node: Node, expected: str = "an array of messages") -> list[Node]:
    """The turns of a conversation; a system turn that says nothing is left out."""
    turns = [turn for turn in node.entries(expected) if not _is_empty_system(turn)]
    if not turns:
        raise node.refuse("a turn other than an empty system turn")
    return turns


def _is_empty_system(turn: Node) -> bool:
    value = turn.value
    if not isinstance(value, dict) or role_of(turn).value not in ("system", "developer"):
        return False
    said = value.get("value", value.get("content"))
    return said is None or said == [] or (isinstance(said, str) and not said.strip())


def hh_turns(node: Node) -> list[Node]:
    """The turns of a conversation that is written as text, `Human: … Assistant: …`."""
    text = node.text()
    starts = [(found.start(), found.end(), found.group(1)) for found in _HH_TURN.finditer(text)]
    if not starts or text[: starts[0][0]].strip():
        raise node.refuse(
            "a whole conversation, since there is no prompt key: an array of messages, or text that begins with "
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
    return turns_of(node, "a whole conversation (an array of messages), since there is no prompt key")


def parse_prompt(turns: Sequence[Node], style: Style) -> list[Message]:
    """The messages of a prompt, which ends with the turn to be answered."""
    messages = [style(turn) for turn in turns]
    if messages[-1]["role"] not in {"user", "tool"}:
        raise role_of(turns[-1]).refuse("the prompt to end with a user or tool turn")
    return messages


def parse_answer(turns: Sequence[Node], style: Style) -> list[Message]:
    """The messages of an answer: the assistant's, with tool results at most between them.

    All of an answer carries loss, so it holds no user's turn.
    """
    messages = [style(turn) for turn in turns]
    last = len(messages) - 1
    for index, (turn, message) in enumerate(zip(turns, messages, strict=True)):
        allowed = {"assistant"} if index in {0, last} else {"assistant", "tool"}
        if message["role"] not in allowed:
            raise role_of(turn).refuse(f"an answer's turn ({' or '.join(sorted(allowed))})")
    return messages


def answer_turns(node: Node, expected: str = "text, or an array of messages") -> list[Node]:
    """The turns of an answer that is text, one message, or an array of them."""
    if isinstance(node.value, str):
        return [node.holding({"role": "assistant", "content": parse_content(node)})]
    return [node] if isinstance(node.value, dict) else turns_of(node, expected)


def split_last_answer(turns: Sequence[Node], whole: Node) -> tuple[Sequence[Node], Sequence[Node]]:
    """A whole conversation's turns up to its last one of the user, and those after it."""
    roles = [str(TURNS(turn)["role"]) for turn in turns]
    end = max((index for index, role in enumerate(roles) if role == "user"), default=-1) + 1
    if end in {0, len(turns)}:
        raise whole.refuse("a turn of the user and an answer after it", ", ".join(roles))
    return turns[:end], turns[end:]


def with_system(system: Node, turns: Sequence[Node], messages: list[Message]) -> list[Message]:
    """ShareGPT's messages, after the system text that may stand beside them."""
    text = system_text(system)
    if not text:
        return messages
    if messages[0]["role"] == "system":
        raise role_of(turns[0]).refuse("no system turn beside the key 'system'")
    return [*text, *messages]


def system_text(node: Node) -> list[Message]:
    """The system's message under a key of its own; none where its text is empty."""
    if not node.given or (isinstance(node.value, str) and not node.value.strip()):
        return []
    return [{"role": "system", "content": node.text()}]


def parse_message(node: Node, more_keys: frozenset[str] = frozenset()) -> Message:
    """A message as OpenAI and TRL write it; the caller uses `more_keys`."""
    node.as_object('a message {"role": …, "content": …}', MESSAGE_KEYS | more_keys)
    role = node.at("role")
    if role.value not in ROLES:
        raise role.refuse(f"one of {', '.join(ROLES)}")
    message: Message = {"role": AS_TEMPLATES_SAY.get(role.value, role.value)}
    if role.value == "assistant" and not ANSWER_KEYS.isdisjoint(node.value):
        message |= _answer(node)
    else:
        node.leave(ANSWER_KEYS)
        message["content"] = parse_content(node.at("content"))
    for key in ("name", "tool_call_id"):
        if node.has(key):
            message[key] = node.at(key).text()
    return message


def _answer(node: Node) -> Message:
    """An assistant's text, calls and reasoning; a refusal is its text where there is nothing else."""
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
    """Whether there is no text, in whichever of the ways OpenAI's exports write that."""
    if isinstance(content.value, list):
        return all(isinstance(part, dict) and part.get("text") == "" for part in content.value)
    return not content.given or content.value == ""


def parse_turn(node: Node) -> Message:
    """A turn as ShareGPT writes it, or as OpenAI does."""
    if isinstance(node.value, dict) and "from" not in node.value and "role" in node.value:
        return parse_message(node)
    node.as_object('a turn {"from": …, "value": …}', TURN_KEYS)
    speaker = node.at("from")
    if not isinstance(speaker.value, str) or speaker.value not in SHAREGPT_ROLES:
        raise speaker.refuse(f"one of {', '.join(SHAREGPT_ROLES)}")
    if speaker.value == CALL_SPEAKER:
        return {"role": "assistant", "content": "", "tool_calls": parse_written_calls(node.at("value"))}
    return {"role": SHAREGPT_ROLES[speaker.value], "content": node.at("value").text()}


def parse_content(node: Node) -> str:
    """A string, or OpenAI's list of text parts, joined."""
    if not isinstance(node.value, list):
        return node.text("text that is not blank, or an array of text parts")
    joined = "".join(_part(part) for part in node.entries("text, or an array of text parts"))
    return node.holding(joined).text()


def _part(node: Node) -> str:
    """A part's text. A refusal is what the assistant says, whatever OpenAI calls it."""
    part = node.as_object('a part {"type": "text", "text": …}', frozenset({"type", *PART_KINDS}))
    kind = part.at("type")
    if kind.value not in PART_KINDS:
        raise kind.refuse("'text' or 'refusal', the types of part that can be learned")
    text = part.at(kind.value)
    if not isinstance(text.value, str):
        raise text.refuse("text")
    return text.value


MESSAGES: Style = parse_message
TURNS: Style = parse_turn
