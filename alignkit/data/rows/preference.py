"""Preference rows: one prompt with a preferred and a dispreferred answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    parse_answer,
    parse_content,
    parse_prompt,
    with_system,
)
from alignkit.data.nodes import Node, RowError
from alignkit.data.rows.recognise import Form, RowKind
from alignkit.data.tokens import TokenSequence, render_answers
from alignkit.data.tools import TOOLS, parse_tools


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One conversation with a preferred and a dispreferred continuation."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None

    @property
    def loss_turns(self) -> list[Message]:
        """The messages that carry loss."""
        return self.chosen + self.rejected

    @property
    def has_no_signal(self) -> bool:
        """Whether both answers are the same."""
        return self.chosen == self.rejected

    def render(self, tokenizer: Any) -> list[TokenSequence]:
        """`chosen` and `rejected`, each after the prompt, whose ids they share; raises DataError."""
        answers = {"chosen": self.chosen, "rejected": self.rejected}
        return render_answers(self.prompt, answers, self.tools, tokenizer)


def parse_preference(row: object, unused: set[str] | None = None) -> PreferenceRow:
    """A row in OpenAI's, TRL's or ShareGPT's form; raises RowError.

    The names of keys that play no part are added to `unused`.
    """
    return PREFERENCE.parse(row, unused)


def _openai(row: Node) -> PreferenceRow:
    body = row.at("input").as_object('an object {"messages": …}', frozenset({"messages"}) | TOOLS)
    return PreferenceRow(
        prompt=parse_prompt(_turns(body.at("messages")), MESSAGES),
        chosen=parse_answer(_turns(row.at("preferred_output")), MESSAGES),
        rejected=parse_answer(_turns(row.at("non_preferred_output")), MESSAGES),
        tools=parse_tools(body),
    )


def _trl(row: Node) -> PreferenceRow:
    return PreferenceRow(
        prompt=trl_prompt(row.at("prompt")),
        chosen=trl_answer(row.at("chosen")),
        rejected=trl_answer(row.at("rejected")),
        tools=parse_tools(row),
    )


def trl_prompt(node: Node) -> list[Message]:
    """TRL's prompt: text, which is a user's turn, or messages."""
    if isinstance(node.value, str):
        return [{"role": "user", "content": parse_content(node)}]
    return parse_prompt(_turns(node), MESSAGES)


def trl_answer(node: Node) -> list[Message]:
    """TRL's answer beside a prompt: text, or messages that do not repeat the prompt."""
    if isinstance(node.value, str):
        return [{"role": "assistant", "content": parse_content(node)}]
    turns = _turns(node)
    first = turns[0].value
    if isinstance(first, dict) and first.get("role") in ("system", "developer", "user"):
        hint = "an answer only; for whole conversations on both sides, leave the key 'prompt' out"
        raise turns[0].at("role").refuse(hint)
    return parse_answer(turns, MESSAGES)


def _trl_implicit(row: Node) -> PreferenceRow:
    """Whole conversations on both sides; the prompt is what they share."""
    chosen, rejected = (_conversation(row.at(side)) for side in ("chosen", "rejected"))
    shared = _shared(list(map(MESSAGES.parse, chosen)), list(map(MESSAGES.parse, rejected)))
    if shared == 0:
        raise RowError(
            "/rejected/0", "the same first message as in chosen (there is no prompt key)", "another one"
        )
    return PreferenceRow(
        prompt=parse_prompt(chosen[:shared], MESSAGES),
        chosen=parse_answer(chosen[shared:], MESSAGES),
        rejected=parse_answer(rejected[shared:], MESSAGES),
        tools=parse_tools(row),
    )


def _conversation(node: Node) -> list[Node]:
    return node.entries("a whole conversation (an array of messages), since there is no prompt key")


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both begin with; the last of either is an answer even if it is the same."""
    most = min(len(chosen), len(rejected)) - 1
    return next((index for index in range(most) if chosen[index] != rejected[index]), most)


def _sharegpt(row: Node) -> PreferenceRow:
    turns = row.at("conversations").entries("an array of turns")
    return PreferenceRow(
        prompt=with_system(row.at("system"), turns, parse_prompt(turns, TURNS)),
        chosen=parse_answer([row.at("chosen")], TURNS),
        rejected=parse_answer([row.at("rejected")], TURNS),
    )


def _turns(node: Node) -> list[Node]:
    return node.entries("an array of messages")


PREFERENCE_FORMS: tuple[Form[PreferenceRow], ...] = (
    Form("OpenAI", frozenset({"input", "preferred_output", "non_preferred_output"}), frozenset(), _openai),
    Form("ShareGPT", frozenset({"conversations", "chosen", "rejected"}), frozenset({"system"}), _sharegpt),
    Form("TRL", frozenset({"prompt", "chosen", "rejected"}), TOOLS, _trl),
    Form("TRL (without prompt)", frozenset({"chosen", "rejected"}), TOOLS, _trl_implicit),
)
"""In the order they are tried: one whose keys contain another's comes first."""


def _columns(sequences: Sequence[TokenSequence]) -> list[dict[str, Any]]:
    """TRL's tokenised columns of a pair."""
    chosen, rejected = sequences
    start = min(chosen.prompt_length, rejected.prompt_length)
    return [
        {
            "prompt_ids": chosen.ids[:start],
            "chosen_ids": chosen.ids[start:],
            "rejected_ids": rejected.ids[start:],
        }
    ]


PREFERENCE: RowKind[PreferenceRow] = RowKind(
    "preference",
    PreferenceRow,
    PREFERENCE_FORMS,
    no_signal_words="chosen equal to rejected",
    has_no_signal=lambda sequences: sequences[0].ids == sequences[1].ids,
    columns=_columns,
    together=True,
)
