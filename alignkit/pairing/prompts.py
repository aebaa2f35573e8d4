"""Reads prompts: of a file of prompts, of conversations, or of any training file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignkit.data.messages import MESSAGES, Message, parse_prompt, turns_of
from alignkit.data.nodes import Node, RowError
from alignkit.data.reading import Line, iter_lines
from alignkit.data.rows.alpaca import alpaca_prompt
from alignkit.data.rows.prompts import openai_prompt, trl_prompt
from alignkit.errors import DataError
from alignkit.sampling import digest


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that an answer follows."""

    messages: list[Message]
    key: str
    """A digest of the messages."""


def read_prompts(path: Path) -> tuple[list[Prompt], int]:
    """The prompts of a file, each once, and the number of rows that repeat an earlier one.

    A row has `prompt` (text or messages), `input.messages`, `messages` (its last answer is left out) or
    `instruction`; its other keys are ignored. Raises DataError that names the first row without a prompt, and if
    there is none at all.
    """
    found: dict[str, Prompt] = {}
    repeats = 0
    for line in _lines(path):
        place = f"{path.name}, {line.unit} {line.number}"
        if line.error is not None:
            raise DataError(f"{place}: {line.error}")
        try:
            messages = _prompt(Node(line.value))
        except RowError as error:
            raise DataError(f"{place}: {error}") from error
        key = digest(messages)
        repeats += key in found
        found.setdefault(key, Prompt(messages, key))
    if not found:
        raise DataError(f"{path.name}: expected at least one prompt, found none")
    return list(found.values()), repeats


def _lines(path: Path) -> Iterator[Line]:
    try:
        yield from iter_lines(path)
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from error


def _prompt(row: Node) -> list[Message]:
    value = row.value if isinstance(row.value, dict) else {}
    if "prompt" in value:
        return trl_prompt(row)
    if "input" in value and "instruction" not in value:
        return openai_prompt(row)[0]
    if "messages" in value:
        turns = turns_of(row.at("messages"))
        while turns and turns[-1].at("role").value == "assistant":
            turns.pop()
        return parse_prompt(turns, MESSAGES)
    if "instruction" in value:
        return alpaca_prompt(row)
    raise row.refuse("a prompt: the key prompt, messages, input or instruction")
