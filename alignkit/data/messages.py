"""Messages, the parts that every kind of row is made of: OpenAI's and ShareGPT's way to write a turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.nodes import Node
from alignkit.data.tools import CALLS, parse_calls

Message = dict[str, Any]
"""{"role": …, "content": …}, and where given "name", "tool_calls" and "tool_call_id"."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
AS_TEMPLATES_SAY = {"developer": "system", "function": "tool"}
"""What OpenAI calls otherwise than chat templates do; so does vLLM, with a developer where a template has none."""
ANSWER_KEYS = CALLS | {"refusal"}
"""The keys that only an assistant's message may use."""
MESSAGE_KEYS = ANSWER_KEYS | {"role", "content", "name", "tool_call_id"}
PART_KINDS = ("text", "refusal")
"""The types of part, each with its text under the key of its own name."""
TURN_KEYS = frozenset({"from", "value"})
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


@dataclass(frozen=True, slots=True)
class Style:
    """A way to write a turn: its parser, and the key that says whose turn it is."""

    parse: Callable[[Node], Message]
    role_key: str


def parse_prompt(turns: Sequence[Node], style: Style) -> list[Message]:
    """The messages of a prompt, which ends with the turn to be answered."""
    messages = [style.parse(turn) for turn in turns]
    if messages[-1]["role"] not in {"user", "tool"}:
        raise turns[-1].at(style.role_key).refuse("the prompt to end with a user or tool turn")
    return messages


def parse_answer(turns: Sequence[Node], style: Style) -> list[Message]:
    """The messages of an answer: the assistant's, with tool results at most between them.

    All of an answer carries loss, so it holds no user's turn.
    """
    messages = [style.parse(turn) for turn in turns]
    last = len(messages) - 1
    for index, (turn, message) in enumerate(zip(turns, messages, strict=True)):
        allowed = {"assistant"} if index in {0, last} else {"assistant", "tool"}
        if message["role"] not in allowed:
            raise turn.at(style.role_key).refuse(f"an answer's turn ({' or '.join(sorted(allowed))})")
    return messages


def with_system(system: Node, turns: Sequence[Node], messages: list[Message]) -> list[Message]:
    """ShareGPT's messages, after the system text that may stand beside them."""
    if not system.given or system.value == "":
        return messages
    if messages[0]["role"] == "system":
        raise turns[0].at("from").refuse("no system turn beside the key 'system'")
    return [{"role": "system", "content": system.text()}, *messages]


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
    """What an assistant says and the calls that it makes; a refusal is what it says where there is nothing else."""
    content, calls = node.at("content"), parse_calls(node)
    empty = not content.given or content.value in ("", [])
    if calls is None and empty and node.has("refusal"):
        return {"content": node.at("refusal").text()}
    node.leave(frozenset({"refusal"}))
    if calls is None:
        return {"content": parse_content(content)}
    return {"content": "" if empty else parse_content(content), "tool_calls": calls}


def parse_turn(node: Node) -> Message:
    """A turn as ShareGPT writes it."""
    node.as_object('a turn {"from": …, "value": …}', TURN_KEYS)
    speaker = node.at("from")
    if not isinstance(speaker.value, str) or speaker.value not in SHAREGPT_ROLES:
        raise speaker.refuse(f"one of {', '.join(SHAREGPT_ROLES)}")
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


MESSAGES = Style(parse_message, "role")
TURNS = Style(parse_turn, "from")
