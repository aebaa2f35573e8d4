"""Dispreferred rows: a prompt with one dispreferred answer, and the model's own answers where the file has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from alignkit.data.rows.preference import trl_prompt
from alignkit.data.rows.recognise import Form, RowKind
from alignkit.data.tokens import TokenSequence, render_answers
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
    def loss_turns(self) -> list[Message]:
        """The messages that carry loss."""
        return [message for answer in (self.rejected, *(self.samples or [])) for message in answer]

    @property
    def has_no_signal(self) -> bool:
        """Whether all its samples are the dispreferred answer, so that push and pull cancel."""
        return self.samples is not None and all(sample == self.rejected for sample in self.samples)

    def render(self, tokenizer: Any) -> list[TokenSequence]:
        """`rejected`, then `sample 1`, … as the file has them, each after the prompt; raises DataError."""
        samples = {f"sample {number}": sample for number, sample in enumerate(self.samples or [], start=1)}
        return render_answers(self.prompt, {"rejected": self.rejected, **samples}, self.tools, tokenizer)


def parse_dispreferred(row: object, unused: set[str] | None = None) -> DispreferredRow:
    """A row in OpenAI's, TRL's or ShareGPT's form without its preferred answer; raises RowError.

    The names of keys that play no part, a preferred answer among them, are added to `unused`.
    """
    return DISPREFERRED.parse(row, unused)


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


def _has_no_signal(sequences: Sequence[TokenSequence]) -> bool:
    rejected, *samples = sequences
    return bool(samples) and all(sample.ids == rejected.ids for sample in samples)


def _columns(sequences: Sequence[TokenSequence]) -> list[dict[str, Any]]:
    """The prompt, the dispreferred answer and the samples, token ids each."""
    rejected, *samples = sequences
    start = rejected.prompt_length
    return [
        {
            "prompt_ids": rejected.ids[:start],
            "rejected_ids": rejected.ids[start:],
            "sample_ids": [sample.ids[start:] for sample in samples],
        }
    ]


DISPREFERRED: RowKind[DispreferredRow] = RowKind(
    "dispreferred",
    DispreferredRow,
    DISPREFERRED_FORMS,
    no_signal_words="no sample but the dispreferred answer itself",
    has_no_signal=_has_no_signal,
    columns=_columns,
    together=True,
)
