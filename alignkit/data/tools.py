"""Tools and the calls of them: as OpenAI and TRL write them, and as OpenAI did before, when they were functions."""

from typing import Any

from alignkit.data.decoding import decode_text
from alignkit.data.nodes import Node, RowError

TOOLS = frozenset({"tools", "functions"})
"""The keys of a conversation's tools, now and before."""
CALLS = frozenset({"tool_calls", "function_call"})
"""The keys of an assistant's calls, now and before."""


def parse_tools(conversation: Node) -> list[dict[str, Any]] | None:
    """The tools of a conversation; None if there are none.

    `tools` is an array of objects, also as JSON text as TRL allows. `functions` become tools.
    """
    tools = _array(conversation.at("tools"), "an array of tools")
    functions = _array(conversation.at("functions"), "an array of functions")
    if functions is None:
        return None if tools is None else tools.plain()
    if tools is not None:
        raise conversation.at("functions").refuse("tools or functions, not both")
    for function in functions.entries("an array of functions"):
        _require_name(function)
    return [{"type": "function", "function": function} for function in functions.plain()]


def _array(node: Node, expected: str) -> Node | None:
    if isinstance(node.value, str) and node.value:
        try:
            node = node.holding(decode_text(node.value))
        except RowError as error:
            raise node.refuse(expected, error.found) from None
    if not node.given or node.value in ([], ""):
        return None
    for entry in node.entries(expected):
        if not isinstance(entry.value, dict):
            raise entry.refuse("a tool, which is an object")
    return node


def parse_calls(message: Node) -> list[dict[str, Any]] | None:
    """The calls that an assistant's message makes; None if it makes none. A `function_call` becomes a tool's."""
    if not message.has("function_call"):
        return _tool_calls(message.at("tool_calls")) if message.has("tool_calls") else None
    call = message.at("function_call")
    _require_name(call)
    return [{"type": "function", "function": call.plain()}]


def _tool_calls(node: Node) -> list[dict[str, Any]] | None:
    if node.value == []:
        return None
    for call in node.entries("an array of tool calls"):
        if not isinstance(call.value, dict):
            raise call.refuse('a tool call {"type": "function", "function": …}')
        _require_name(call.at("function"))
    calls: list[dict[str, Any]] = node.plain()
    return calls


def _require_name(function: Node) -> None:
    if not isinstance(function.value, dict):
        raise function.refuse('{"name": …, "arguments": …}')
    function.at("name").text("the name of a function")
