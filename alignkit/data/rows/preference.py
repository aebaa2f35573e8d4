"""Preference rows: one prompt with a preferred and a dispreferred answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    answer_turns,
    conversation_of,
    parse_answer,
    parse_prompt,
    split_last_answer,
    turns_of,
)
from alignkit.data.nodes import Node, RowError
from alignkit.data.rows.alpaca import PROMPT_KEYS, alpaca_prompt
from alignkit.data.rows.beside import answers_beside
from alignkit.data.rows.prompts import openai_prompt, orca_prompt, sharegpt_prompt, trl_prompt
from alignkit.data.rows.recognise import Form, RowKind
from alignkit.data.tokens import TokenSequence, render_answers
from alignkit.data.tools import TOOLS, parse_tools


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One conversation with a preferred and a dispreferred answer."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None
    group: str | None = None

    @property
    def loss_turns(self) -> list[Message]:
        """The messages that carry loss."""
        return self.chosen + self.rejected

    @property
    def has_no_signal(self) -> bool:
        """Whether both answers are the same."""
        return self.chosen == self.rejected

    def render(self, tokenizer: Any) -> list[TokenSequence]:
        """`chosen` and `rejected`, each after the prompt, with the same prompt ids. Raises DataError."""
        answers = {"chosen": self.chosen, "rejected": self.rejected}
        return render_answers(self.prompt, answers, self.tools, tokenizer)


def parse_preference(row: object, unused: set[str] | None = None) -> PreferenceRow:
    """A row in one of PREFERENCE_FORMS, recognised by its keys. Raises RowError.

    Names of unused keys are added to `unused`.
    """
    return PREFERENCE.parse(row, unused)


def _openai(row: Node) -> PreferenceRow:
    prompt, body = openai_prompt(row)
    chosen, rejected = (
        parse_answer(turns_of(row.at(side)), MESSAGES)
        for side in ("preferred_output", "non_preferred_output")
    )
    return PreferenceRow(prompt, chosen, rejected, parse_tools(body))


def _beside(prompt_of: Callable[[Node], list[Message]]) -> Callable[[Node], PreferenceRow]:
    """A parser of rows with the answers under `chosen` and `rejected`, beside the prompt."""

    def parse(row: Node) -> PreferenceRow:
        prompt, (chosen, rejected) = answers_beside(prompt_of(row), [row.at("chosen"), row.at("rejected")])
        return PreferenceRow(prompt, chosen, rejected, parse_tools(row))

    return parse


def _trl_implicit(row: Node) -> PreferenceRow:
    """Whole conversations on both sides, as messages or HH's plain text; the prompt is their common beginning."""
    chosen, rejected = (conversation_of(row.at(side)) for side in ("chosen", "rejected"))
    shared = _shared(list(map(MESSAGES, chosen)), list(map(MESSAGES, rejected)))
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


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """The number of leading messages in common; the last message of each is an answer, even if equal."""
    most = min(len(chosen), len(rejected)) - 1
    return next((index for index in range(most) if chosen[index] != rejected[index]), most)


def _sharegpt(row: Node) -> PreferenceRow:
    prompt = sharegpt_prompt(row)
    chosen, rejected = (parse_answer(answer_turns(row.at(side)), TURNS) for side in ("chosen", "rejected"))
    return PreferenceRow(prompt, chosen, rejected, parse_tools(row))


def _swift(row: Node) -> PreferenceRow:
    """ms-swift's pairs: a conversation that ends with the preferred answer, and the other answer in its own key."""
    turns = turns_of(row.at("messages"))
    begin, chosen = split_last_answer(turns, row.at("messages"))
    prompt = parse_prompt(begin, MESSAGES)
    rejected = row.at("rejected_response")
    return PreferenceRow(
        prompt=prompt,
        chosen=parse_answer(chosen, MESSAGES),
        rejected=parse_answer(answer_turns(rejected), MESSAGES),
        tools=parse_tools(row),
    )


def _swift_conversations(row: Node) -> PreferenceRow:
    """ms-swift's pairs given as two whole conversations."""
    begin, chosen = split_last_answer(turns_of(row.at("messages")), row.at("messages"))
    other, rejected = split_last_answer(turns_of(row.at("rejected_messages")), row.at("rejected_messages"))
    prompt = parse_prompt(begin, MESSAGES)
    if parse_prompt(other, MESSAGES) != prompt:
        raise row.at("rejected_messages").refuse("the prompt of messages", "another one")
    return PreferenceRow(
        prompt, parse_answer(chosen, MESSAGES), parse_answer(rejected, MESSAGES), parse_tools(row)
    )


def _swift_query(row: Node) -> PreferenceRow:
    """ms-swift's older form: query and response, with system and history as in Alpaca."""
    prompt = alpaca_prompt(row, "query")
    answers = [row.at("response"), row.at("rejected_response")]
    prompt, (chosen, rejected) = answers_beside(prompt, answers)
    return PreferenceRow(prompt, chosen, rejected, parse_tools(row))


_ANSWERS = frozenset({"chosen", "rejected"})
PREFERENCE_FORMS: tuple[Form[PreferenceRow], ...] = (
    Form("OpenAI", frozenset({"input", "preferred_output", "non_preferred_output"}), frozenset(), _openai),
    Form("ShareGPT", _ANSWERS | {"conversations"}, frozenset({"system"}) | TOOLS, _sharegpt),
    Form("TRL", _ANSWERS | {"prompt"}, TOOLS, _beside(trl_prompt)),
    Form("Alpaca", _ANSWERS | {"instruction"}, PROMPT_KEYS | TOOLS, _beside(alpaca_prompt)),
    Form("Orca", _ANSWERS | {"question"}, frozenset({"system"}) | TOOLS, _beside(orca_prompt)),
    Form("ms-swift", frozenset({"messages", "rejected_response"}), TOOLS, _swift),
    Form("ms-swift (messages)", frozenset({"messages", "rejected_messages"}), TOOLS, _swift_conversations),
    Form(
        "ms-swift (query)",
        frozenset({"query", "response", "rejected_response"}),
        frozenset({"system", "history"}) | TOOLS,
        _swift_query,
    ),
    Form("TRL (without prompt)", _ANSWERS, TOOLS, _trl_implicit),
)
"""All forms in the order of matching: a form whose keys include another's comes first."""


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
