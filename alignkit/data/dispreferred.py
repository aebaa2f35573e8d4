"""Rows of a prompt with one dispreferred answer, and the model's own answers where the file brings them."""

from dataclasses import dataclass
from typing import Any

from alignkit.data.formats import trl_prompt
from alignkit.data.forms import Form, parse_row
from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    Style,
    parse_answer,
    parse_content,
    parse_prompt,
    with_system,
)
from alignkit.data.nodes import Node
from alignkit.data.tokens import TokenSequence, render_messages, require_writable
from alignkit.data.tools import TOOLS, parse_tools

MAX_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class DispreferredRow:
    """One conversation with a dispreferred continuation. `samples` is None where they are to be drawn."""

    prompt: list[Message]
    rejected: list[Message]
    samples: list[list[Message]] | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def taught(self) -> list[Message]:
        """The messages that carry loss."""
        return [message for answer in (self.rejected, *(self.samples or [])) for message in answer]


def parse_dispreferred(row: object, unused: set[str] | None = None) -> DispreferredRow:
    """A row in OpenAI's, TRL's or ShareGPT's form without its preferred answer; raises RowError.

    The names of keys that play no part, a preferred answer among them, are added to `unused`.
    """
    return parse_row(row, unused, DISPREFERRED_FORMS, "dispreferred")


def is_idle(row: DispreferredRow) -> bool:
    """Whether all its samples are the dispreferred answer: what is pushed down is pulled up again."""
    return row.samples is not None and all(sample == row.rejected for sample in row.samples)


def render_dispreferred(row: DispreferredRow, tokenizer: Any) -> list[TokenSequence]:
    """Prompt with the dispreferred answer, then with each sample that the file brings.

    The answers start where prompt and whole conversation diverge, as in TRL. Raises DataError where the tokenizer
    has no chat template or the template refuses the conversation.
    """
    from trl.data_utils import common_prefix_length

    require_writable(row, tokenizer)
    prompt = render_messages(row.prompt, row.tools, tokenizer, add_generation_prompt=True)
    samples = row.samples or []
    names = ["rejected", *(f"sample {number}" for number in range(1, len(samples) + 1))]
    rendered = [
        render_messages(row.prompt + answer, row.tools, tokenizer) for answer in (row.rejected, *samples)
    ]
    start = min(common_prefix_length(prompt, ids) for ids in rendered)
    return [
        TokenSequence(name, ids, ((start, len(ids)),) if start < len(ids) else ())
        for name, ids in zip(names, rendered, strict=True)
    ]


def _openai(row: Node) -> DispreferredRow:
    body = row.at("input").as_object('an object {"messages": …}', frozenset({"messages"}) | TOOLS)
    return DispreferredRow(
        prompt=parse_prompt(_turns(body.at("messages")), MESSAGES),
        rejected=parse_answer(_turns(row.at("non_preferred_output")), MESSAGES),
        samples=_samples(row.at("samples"), MESSAGES),
        tools=parse_tools(body),
    )


def _trl(row: Node) -> DispreferredRow:
    return DispreferredRow(
        prompt=trl_prompt(row.at("prompt")),
        rejected=_answer(row.at("rejected"), MESSAGES),
        samples=_samples(row.at("samples"), MESSAGES),
        tools=parse_tools(row),
    )


def _trl_implicit(row: Node) -> DispreferredRow:
    """A whole conversation; the prompt ends with its last turn of the user."""
    conversation = row.at("rejected")
    turns = conversation.entries("a whole conversation (an array of messages), since there is no prompt key")
    roles = [MESSAGES.parse(turn)["role"] for turn in turns]
    end = max((index for index, role in enumerate(roles) if role == "user"), default=-1) + 1
    if end in {0, len(turns)}:
        raise conversation.refuse("a turn of the user and an answer after it", ", ".join(roles))
    return DispreferredRow(
        prompt=parse_prompt(turns[:end], MESSAGES),
        rejected=parse_answer(turns[end:], MESSAGES),
        samples=_samples(row.at("samples"), MESSAGES),
        tools=parse_tools(row),
    )


def _sharegpt(row: Node) -> DispreferredRow:
    turns = row.at("conversations").entries("an array of turns")
    return DispreferredRow(
        prompt=with_system(row.at("system"), turns, parse_prompt(turns, TURNS)),
        rejected=_answer(row.at("rejected"), TURNS),
        samples=_samples(row.at("samples"), TURNS),
    )


def _samples(node: Node, style: Style) -> list[list[Message]] | None:
    if not node.given:
        return None
    entries = node.entries("an array of answers (leave the key out to have them drawn)")
    if len(entries) > MAX_SAMPLES:
        raise node.refuse(f"at most {MAX_SAMPLES:,} answers", f"{len(entries):,}")
    return [_answer(entry, style) for entry in entries]


def _answer(node: Node, style: Style) -> list[Message]:
    """Text, one message, or an array of them."""
    if isinstance(node.value, str):
        return [{"role": "assistant", "content": parse_content(node)}]
    return parse_answer([node] if isinstance(node.value, dict) else _turns(node), style)


def _turns(node: Node) -> list[Node]:
    return node.entries("text, or an array of messages")


_SAMPLES = frozenset({"samples"})
DISPREFERRED_FORMS: tuple[Form[DispreferredRow], ...] = (
    Form("OpenAI", frozenset({"input", "non_preferred_output"}), _SAMPLES, _openai),
    Form("ShareGPT", frozenset({"conversations", "rejected"}), _SAMPLES | {"system"}, _sharegpt),
    Form("TRL", frozenset({"prompt", "rejected"}), _SAMPLES | TOOLS, _trl),
    Form("TRL (without prompt)", frozenset({"rejected"}), _SAMPLES | TOOLS, _trl_implicit),
)
"""In the order they are tried: one whose keys contain another's comes first."""
