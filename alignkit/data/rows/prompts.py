"""Prompts of the forms that preference and dispreferred rows share; Alpaca's is in `alpaca.py`."""

from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    parse_prompt,
    system_text,
    turns_of,
    with_system,
)
from alignkit.data.nodes import Node
from alignkit.data.rows.beside import prompt_beside
from alignkit.data.tools import TOOLS


def openai_prompt(row: Node) -> tuple[list[Message], Node]:
    """The messages under `input`, and the object there, which may have tools."""
    body = row.at("input").as_object('an object {"messages": …}', frozenset({"messages"}) | TOOLS)
    return parse_prompt(turns_of(body.at("messages")), MESSAGES), body


def trl_prompt(row: Node) -> list[Message]:
    """Text, one message or messages under `prompt`."""
    return prompt_beside(row.at("prompt"))


def orca_prompt(row: Node) -> list[Message]:
    """A question, after a system text that may be empty."""
    return [*system_text(row.at("system")), {"role": "user", "content": row.at("question").text()}]


def sharegpt_prompt(row: Node) -> list[Message]:
    """Turns under `conversations`, after a system text that may stand beside them."""
    turns = turns_of(row.at("conversations"), "an array of turns")
    return with_system(row.at("system"), turns, parse_prompt(turns, TURNS))
