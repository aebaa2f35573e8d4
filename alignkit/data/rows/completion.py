"""Completion rows: a conversation in which some of the assistant's turns carry loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import (
    TURNS,
    Message,
    parse_content,
    parse_message,
    role_named,
    role_of,
    turns_of,
    with_system,
)
from alignkit.data.nodes import Node
from alignkit.data.rendered_parts import missing_part
from alignkit.data.rows.alpaca import PROMPT_KEYS, alpaca_prompt
from alignkit.data.rows.beside import answers_beside, prompt_beside
from alignkit.data.rows.preference import PREFERENCE_FORMS, PreferenceRow
from alignkit.data.rows.recognise import Form, RowKind
from alignkit.data.template import NO_END, Chat, shared_length
from alignkit.data.tokens import TokenSequence
from alignkit.data.tools import TOOLS, parse_tools
from alignkit.errors import DataError

WEIGHT = frozenset({"weight"})
REJECTED = frozenset({"rejected", "non_preferred_output", "rejected_response", "rejected_messages"})
"""Keys of the dispreferred answer in the forms of preference rows."""


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A conversation, the positions of the assistant turns that carry loss, and its tools."""

    messages: list[Message]
    loss_positions: tuple[int, ...]
    """Ascending message indices; empty if every turn has weight 0."""
    tools: list[dict[str, Any]] | None = None
    group: str | None = None

    @property
    def prompt(self) -> list[Message]:
        """The messages before the first turn that carries loss."""
        return self.messages[: self.loss_positions[0]] if self.loss_positions else self.messages

    @property
    def loss_turns(self) -> list[Message]:
        """The turns that carry loss."""
        return [self.messages[turn] for turn in self.loss_positions]

    @property
    def has_no_signal(self) -> bool:
        """Whether no turn carries loss."""
        return not self.loss_positions

    def render(self, tokenizer: Any) -> list[TokenSequence]:
        """One sequence, in which the tokens of every loss turn and its end token carry loss.

        Some templates render a turn differently once others follow (for example, without its reasoning). Then each
        loss turn gets its own sequence, as the model sees it when it generates that turn. Raises DataError if the
        template refuses the conversation, or changes the text before an answer once the answer follows.
        """
        chat = Chat(tokenizer, self.tools)
        together = _together(self, chat)
        return [_alone(self, turn, chat) for turn in self.loss_positions] if together is None else [together]


def parse_completion(row: object, unused: set[str] | None = None) -> CompletionRow:
    """A row in OpenAI's, TRL's, Alpaca's or ShareGPT's form, or a preference row. Raises RowError.

    In a preference row, the preferred answer carries loss, and the other answer's key counts as unused. Names of
    unused keys are added to `unused`.
    """
    return COMPLETION.parse(row, unused)


def _openai(row: Node) -> CompletionRow:
    """OpenAI's chat rows; an assistant turn with weight 0 carries no loss."""
    turns = turns_of(row.at("messages"))
    messages = [parse_message(turn, WEIGHT if _is_assistant(turn) else frozenset()) for turn in turns]
    _require_answer(turns, messages)
    weighted = tuple(turn for turn in _answers(messages) if _weight(turns[turn].at("weight")))
    return CompletionRow(messages, weighted, parse_tools(row))


def _is_assistant(turn: Node) -> bool:
    return isinstance(turn.value, dict) and role_named(turn.at("role").value) == "assistant"


def _weight(node: Node) -> bool:
    if not node.given:
        return True
    if isinstance(node.value, bool) or node.value not in (0, 1):
        raise node.refuse("0 or 1 (whether the turn carries loss)")
    return bool(node.value)


def _trl(row: Node) -> CompletionRow:
    """TRL's prompt and completion; assistant turns inside the prompt are context."""
    prompt, (answer,) = answers_beside(prompt_beside(row.at("prompt")), [row.at("completion")])
    return _answered(prompt, answer, parse_tools(row))


def _alpaca(row: Node) -> CompletionRow:
    """Alpaca's instruction and output; the answers in its history carry loss, too."""
    answer: Message = {"role": "assistant", "content": parse_content(row.at("output"))}
    messages = [*alpaca_prompt(row), answer]
    return CompletionRow(messages, _answers(messages))


def _sharegpt(row: Node) -> CompletionRow:
    turns = turns_of(row.at("conversations"), "an array of turns")
    messages = [TURNS(turn) for turn in turns]
    _require_answer(turns, messages)
    messages = with_system(row.at("system"), turns, messages)
    return CompletionRow(messages, _answers(messages), parse_tools(row))


def _require_answer(turns: Sequence[Node], messages: list[Message]) -> None:
    """Refuse a conversation that does not end with an answer to a previous turn."""
    if messages[-1]["role"] != "assistant":
        raise role_of(turns[-1]).refuse("the conversation to end with an assistant turn, which carries loss")
    if not _answers(messages):
        raise role_of(turns[0]).refuse("the conversation to start with a turn that the assistant answers")


def _answers(messages: list[Message]) -> tuple[int, ...]:
    """The assistant turns that answer a user or tool turn; a greeting before that is context."""
    asked = next(
        (at for at, message in enumerate(messages) if message["role"] in {"user", "tool"}), len(messages)
    )
    return tuple(at for at, message in enumerate(messages) if message["role"] == "assistant" and at > asked)


def _answered(
    prompt: list[Message], answer: list[Message], tools: list[dict[str, Any]] | None
) -> CompletionRow:
    positions = tuple(
        len(prompt) + index for index, message in enumerate(answer) if message["role"] == "assistant"
    )
    return CompletionRow(prompt + answer, positions, tools)


def _preferred(form: Form[PreferenceRow]) -> Form[CompletionRow]:
    """A form of preference rows whose preferred answer carries loss."""

    def parse(row: Node) -> CompletionRow:
        pair = form.parse(row)
        row.unused.update(form.required & REJECTED)
        return _answered(pair.prompt, pair.chosen, pair.tools)

    return Form(f"{form.name} preference", form.required, form.optional, parse)


def _together(row: CompletionRow, chat: Chat) -> TokenSequence | None:
    """All loss turns in one sequence; None if the template renders one differently once others follow."""
    whole = chat.ids(chat.text(row.messages))
    spans: list[tuple[int, int]] = []
    notes: list[str] = []
    for turn in row.loss_positions:
        end = _end(row, turn, whole, chat)
        begin = chat.ids(chat.text(row.messages[:turn], prompt=True))
        if end is None or whole[: len(begin)] != begin:
            return None
        text = chat.decode(whole[len(begin) : end])
        if missing_part([row.messages[turn]], text) is not None or not text.strip():
            return None
        if not chat.is_special(whole[end - 1]):
            notes.append(NO_END)
        spans.append((len(begin), end))
    if row.loss_positions:
        first = row.messages[: row.loss_positions[0]]
        notes += chat.context_notes(first, chat.decode(whole[: spans[0][0]])) + chat.control_notes(
            row.messages
        )
    return TokenSequence("answer", whole, tuple(spans), notes=tuple(dict.fromkeys(notes)))


def _end(row: CompletionRow, turn: int, whole: list[int], chat: Chat) -> int | None:
    """The end of `turn`'s tokens in `whole`, including the token with which the model ends the turn.

    None if `whole` does not start like the conversation up to that turn, or ends the turn with another token.
    """
    ids = chat.ids(chat.text(row.messages[: turn + 1]))
    shared = shared_length(ids, whole)
    rest = ids[shared:]
    if chat.without_special(rest).strip():
        return None
    end = chat.end_of_turn(whole[:shared])
    if chat.is_special(whole[end - 1]):
        return end
    if any(chat.is_special(token) for token in rest):
        return None
    # Some templates have no end token: the token that starts the next turn is then what the model must emit.
    begins_next = end < len(whole) and chat.is_special(whole[end])
    return end + 1 if begins_next else end


def _alone(row: CompletionRow, turn: int, chat: Chat) -> TokenSequence:
    """The conversation up to `turn`, the only turn that carries loss."""
    prompt = row.messages[:turn]
    found = chat.answer(prompt, [row.messages[turn]])
    if found.missing and not _continues(chat, prompt, found.context):
        raise DataError(
            f"the model's chat template changes the text before message {turn + 1} once that message "
            "follows, so the tokens of the answer cannot be determined"
        )
    start = len(found.context)
    span = (start, start + chat.end_of_turn(found.ids))
    return TokenSequence(f"message {turn + 1}", [*found.context, *found.ids], (span,), notes=found.notes)


def _continues(chat: Chat, prompt: list[Message], context: list[int]) -> bool:
    """Whether an answer's context contains the whole prompt, except for special tokens at its end."""
    ids = chat.ids(chat.text(prompt))
    return not chat.without_special(ids[shared_length(ids, context) :]).strip()


_PREFERRED = tuple(map(_preferred, PREFERENCE_FORMS))
COMPLETION_FORMS: tuple[Form[CompletionRow], ...] = (
    *(form for form in _PREFERRED if "messages" in form.required),
    Form("OpenAI", frozenset({"messages"}), TOOLS, _openai),
    Form("TRL", frozenset({"prompt", "completion"}), TOOLS, _trl),
    Form("Alpaca", frozenset({"instruction", "output"}), PROMPT_KEYS, _alpaca),
    *(form for form in _PREFERRED if "messages" not in form.required),
    Form("ShareGPT", frozenset({"conversations"}), frozenset({"system"}) | TOOLS, _sharegpt),
)
"""All forms in the order of matching: a form whose keys include another's comes first."""


def _columns(sequences: Sequence[TokenSequence]) -> list[dict[str, Any]]:
    """Columns of a tokenised dataset for TRL's SFTTrainer."""
    return [{"input_ids": sequence.ids, "labels": sequence.labels} for sequence in sequences]


COMPLETION: RowKind[CompletionRow] = RowKind(
    "completion",
    CompletionRow,
    COMPLETION_FORMS,
    no_signal_words="no turn that carries loss",
    has_no_signal=lambda sequences: not any(sequence.loss_spans for sequence in sequences),
    columns=_columns,
)
