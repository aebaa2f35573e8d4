"""A conversation of which some of the assistant's turns are learned, and its tokens."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import Message
from alignkit.data.tokens import TokenSequence, render_messages, render_rows, require_writable
from alignkit.errors import DataError

IGNORED = -100
"""The label of a token without loss, as in torch and TRL."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A conversation, the positions in it of the assistant's turns that carry loss, and its tools."""

    messages: list[Message]
    learned: tuple[int, ...]
    """Ascending; empty where every turn has weight 0, and the row teaches nothing."""
    tools: list[dict[str, Any]] | None = None

    @property
    def prompt(self) -> list[Message]:
        """What comes before the first turn that carries loss."""
        return self.messages[: self.learned[0]] if self.learned else self.messages

    @property
    def taught(self) -> list[Message]:
        """The turns that carry loss."""
        return [self.messages[turn] for turn in self.learned]


def tokenise(rows: Sequence[CompletionRow], tokenizer: Any, max_length: int) -> Any:
    """A datasets.Dataset of `input_ids` and `labels` (-100 where no loss falls), cut to `max_length` tokens.

    Made by the model's own chat template, in the form that TRL's SFTTrainer takes as tokenised (skip its
    preparation). Sequences without a learned token, or cut before the first, are left out; how many is logged.
    Raises DataError where none is left, and as render_completion does, naming the row.
    """
    from datasets import Dataset

    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    dropped = 0
    for sequences in render_rows(rows, tokenizer, render_completion):
        for sequence in sequences:
            if sequence.dropped_at(max_length):
                dropped += 1
                continue
            columns["input_ids"].append(sequence.ids[:max_length])
            columns["labels"].append(labels(sequence)[:max_length])
    if not columns["input_ids"]:
        raise DataError(
            f"none of {len(rows)} rows has a token that carries loss within max_length {max_length}: "
            "raise max_length, or shorten the prompts"
        )
    if dropped:
        _logger.warning(
            "%d of %d sequences are left out: nothing that carries loss is within max_length %d",
            dropped,
            dropped + len(columns["input_ids"]),
            max_length,
        )
    return Dataset.from_dict(columns)


def labels(sequence: TokenSequence) -> list[int]:
    """The sequence's ids, IGNORED where no loss falls."""
    result = [IGNORED] * len(sequence.ids)
    for start, end in sequence.learned:
        result[start:end] = sequence.ids[start:end]
    return result


def render_completion(row: CompletionRow, tokenizer: Any) -> list[TokenSequence]:
    """One sequence, in which every learned turn's own tokens and its end token carry loss.

    Where the template renders a turn otherwise once others follow (some drop earlier reasoning), one sequence a
    learned turn, each as the model sees it when that turn is its to give. Raises DataError where the template
    refuses the conversation, or changes what comes before an answer once the answer follows.
    """
    require_writable(row, tokenizer)
    whole = _ids(row, tokenizer, len(row.messages))
    spans = [_span(row, turn, whole, tokenizer) for turn in row.learned]
    if all(span is not None for span in spans):
        return [TokenSequence("answer", whole, tuple(span for span in spans if span is not None))]
    return [_alone(row, turn, tokenizer) for turn in row.learned]


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
