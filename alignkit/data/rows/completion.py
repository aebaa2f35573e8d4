"""Completion rows: a conversation of which some of the assistant's turns carry loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    parse_content,
    parse_message,
    with_system,
)
from alignkit.data.nodes import Node
from alignkit.data.rows.alpaca import PROMPT_KEYS, alpaca_prompt
from alignkit.data.rows.preference import PREFERENCE_FORMS, PreferenceRow, trl_answer, trl_prompt
from alignkit.data.rows.recognise import Form, RowKind
from alignkit.data.tokens import TokenSequence, render_messages, require_writable
from alignkit.data.tools import TOOLS, parse_tools
from alignkit.errors import DataError

WEIGHT = frozenset({"weight"})
REJECTED = frozenset({"rejected", "non_preferred_output"})
"""The dispreferred answer's key in the forms of preference rows."""


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A conversation, the positions in it of the assistant's turns that carry loss, and its tools."""

    messages: list[Message]
    loss_positions: tuple[int, ...]
    """Ascending; empty where every turn has weight 0."""
    tools: list[dict[str, Any]] | None = None

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
        """One sequence, in which every loss turn's own tokens and its end token carry loss.

        Where the template renders a turn otherwise once others follow (some drop earlier reasoning), one sequence a
        loss turn, each as the model sees it when that turn is its to give. Raises DataError where the template
        refuses the conversation, or changes what comes before an answer once the answer follows.
        """
        return render_completion(self, tokenizer)


def parse_completion(row: object, unused: set[str] | None = None) -> CompletionRow:
    """A row in OpenAI's, TRL's, Alpaca's or ShareGPT's form, or a preference row; raises RowError.

    Of a preference row the preferred answer carries loss, and the other's key counts as unused. The names of keys
    that play no part are added to `unused`.
    """
    return COMPLETION.parse(row, unused)


def _openai(row: Node) -> CompletionRow:
    """OpenAI's chat rows: an assistant's turn of weight 0 carries no loss."""
    turns = row.at("messages").entries("an array of messages")
    messages = [parse_message(turn, WEIGHT if _is_assistant(turn) else frozenset()) for turn in turns]
    _require_answer(turns, messages, MESSAGES.role_key)
    weighted = tuple(turn for turn in _answers(messages) if _weight(turns[turn].at("weight")))
    return CompletionRow(messages, weighted, parse_tools(row))


def _is_assistant(turn: Node) -> bool:
    return isinstance(turn.value, dict) and turn.at("role").value == "assistant"


def _weight(node: Node) -> bool:
    if not node.given:
        return True
    if isinstance(node.value, bool) or node.value not in (0, 1):
        raise node.refuse("0 or 1, whether the turn carries loss")
    return bool(node.value)


def _trl(row: Node) -> CompletionRow:
    """TRL's prompt and completion; turns of the assistant inside the prompt are context."""
    prompt, answer = trl_prompt(row.at("prompt")), trl_answer(row.at("completion"))
    return _answered(prompt, answer, parse_tools(row))


def _alpaca(row: Node) -> CompletionRow:
    """Alpaca's instruction and output; the answers of its history carry loss too."""
    answer: Message = {"role": "assistant", "content": parse_content(row.at("output"))}
    messages = [*alpaca_prompt(row), answer]
    return CompletionRow(messages, _answers(messages))


def _sharegpt(row: Node) -> CompletionRow:
    turns = row.at("conversations").entries("an array of turns")
    messages = [TURNS.parse(turn) for turn in turns]
    _require_answer(turns, messages, TURNS.role_key)
    messages = with_system(row.at("system"), turns, messages)
    return CompletionRow(messages, _answers(messages), parse_tools(row))


def _require_answer(turns: Sequence[Node], messages: list[Message], role_key: str) -> None:
    """A conversation ends with an answer, and does not start with one: a model answers something."""
    if messages[-1]["role"] != "assistant":
        raise (
            turns[-1]
            .at(role_key)
            .refuse("the conversation to end with the assistant's turn, which is learned")
        )
    if messages[0]["role"] == "assistant":
        raise turns[0].at(role_key).refuse("a turn that the assistant answers to begin the conversation")


def _answers(messages: list[Message]) -> tuple[int, ...]:
    return tuple(index for index, message in enumerate(messages) if message["role"] == "assistant")


def _answered(
    prompt: list[Message], answer: list[Message], tools: list[dict[str, Any]] | None
) -> CompletionRow:
    positions = tuple(len(prompt) + index for index in _answers(answer))
    return CompletionRow(prompt + answer, positions, tools)


def _preferred(form: Form[PreferenceRow]) -> Form[CompletionRow]:
    """A form of preference rows, of which the preferred answer is learned."""

    def parse(row: Node) -> CompletionRow:
        pair = form.parse(row)
        row.unused.update(form.required & REJECTED)
        return _answered(pair.prompt, pair.chosen, pair.tools)

    return Form(f"{form.name} preference", form.required, form.optional, parse)


def render_completion(row: CompletionRow, tokenizer: Any) -> list[TokenSequence]:
    """The sequences of a completion row; see `CompletionRow.render`."""
    require_writable(row.loss_turns, tokenizer)
    whole = _ids(row, tokenizer, len(row.messages))
    spans = [_span(row, turn, whole, tokenizer) for turn in row.loss_positions]
    if all(span is not None for span in spans):
        return [TokenSequence("answer", whole, tuple(span for span in spans if span is not None))]
    return [_alone(row, turn, tokenizer) for turn in row.loss_positions]


def _alone(row: CompletionRow, turn: int, tokenizer: Any) -> TokenSequence:
    """The conversation up to `turn`, which alone carries loss."""
    ids = _ids(row, tokenizer, turn + 1)
    span = _span(row, turn, ids, tokenizer)
    if span is None:
        raise DataError(
            f"the model's chat template renders what comes before message {turn + 1} otherwise once that message "
            "follows, so it cannot be told which tokens are the answer"
        )
    return TokenSequence(f"message {turn + 1}", ids, (span,))


def _span(row: CompletionRow, turn: int, whole: list[int], tokenizer: Any) -> tuple[int, int] | None:
    """Where the tokens of `turn` start and end in `whole`; None if `whole` does not begin as it would end with it."""
    from trl.data_utils import common_prefix_length

    def end_of(messages: int) -> int | None:
        """Where so many messages end in `whole`, which may go on after them with other special tokens."""
        ids = _ids(row, tokenizer, messages)
        shared = common_prefix_length(ids, whole)
        rest = tokenizer.decode(ids[shared:], skip_special_tokens=True)
        return None if rest.strip() else shared

    end = end_of(turn + 1)
    prompt = _ids(row, tokenizer, turn, add_generation_prompt=True)
    # As in TRL, the answer starts where the two diverge: a template may prompt with more than it writes before it.
    start = common_prefix_length(prompt, whole)
    if end is None or (start < len(prompt) and end_of(turn) is None):
        return None
    return start, _end_of_turn(whole, start, end, tokenizer)


def _end_of_turn(ids: list[int], start: int, end: int, tokenizer: Any) -> int:
    """`end` without the blank that a template writes after its end token: generation stops before it."""
    last = end
    while last > start and not tokenizer.decode([ids[last - 1]]).strip():
        last -= 1
    is_special = last > start and tokenizer.decode([ids[last - 1]], skip_special_tokens=True) == ""
    return last if is_special else end


def _ids(row: CompletionRow, tokenizer: Any, messages: int, **options: Any) -> list[int]:
    return render_messages(row.messages[:messages], row.tools, tokenizer, **options)


COMPLETION_FORMS: tuple[Form[CompletionRow], ...] = (
    Form("OpenAI", frozenset({"messages"}), TOOLS, _openai),
    Form("TRL", frozenset({"prompt", "completion"}), TOOLS, _trl),
    Form("Alpaca", frozenset({"instruction", "output"}), PROMPT_KEYS, _alpaca),
    *map(_preferred, PREFERENCE_FORMS),
    Form("ShareGPT", frozenset({"conversations"}), frozenset({"system"}) | TOOLS, _sharegpt),
)
"""In the order they are tried: one whose keys contain another's comes first."""


def _columns(sequences: Sequence[TokenSequence]) -> list[dict[str, Any]]:
    """The columns that TRL's SFTTrainer takes as tokenised."""
    return [{"input_ids": sequence.ids, "labels": sequence.labels} for sequence in sequences]


COMPLETION: RowKind[CompletionRow] = RowKind(
    "completion",
    CompletionRow,
    COMPLETION_FORMS,
    no_signal_words="no turn that carries loss",
    has_no_signal=lambda sequences: not any(sequence.loss_spans for sequence in sequences),
    columns=_columns,
)
