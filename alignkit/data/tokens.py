"""Token sequences: a conversation rendered with the model's chat template, and the tokens that carry loss."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from alignkit.data.messages import Message
from alignkit.data.template import NO_TEMPLATE, Chat
from alignkit.errors import DataError, ModelError
from alignkit.models.chat_templates import read_template
from alignkit.models.loading import load_tokenizer

IGNORED = -100
"""The label of a token without loss, as in torch and TRL."""

Row = TypeVar("Row")
Rendered = TypeVar("Rendered")


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One token sequence of a row: its name within the row, its ids, and which of them carry loss."""

    name: str
    ids: list[int]
    loss_spans: tuple[tuple[int, int], ...]
    """(start, end) of every run of tokens that carry loss, ascending."""
    cut: int = 0
    """Number of tokens past max_length that were cut off the end."""
    notes: tuple[str, ...] = ()
    """Differences from the row's content, or from how the model is served."""

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first that carries loss."""
        return self.loss_spans[0][0] if self.loss_spans else len(self.ids)

    @property
    def labels(self) -> list[int]:
        """The ids, with IGNORED for tokens without loss."""
        labels = [IGNORED] * len(self.ids)
        for start, end in self.loss_spans:
            labels[start:end] = self.ids[start:end]
        return labels

    def dropped_at(self, max_length: int | None) -> bool:
        """Whether a trainer drops it, because no token that carries loss is within `max_length`."""
        return not self.loss_spans or (max_length is not None and self.prompt_length >= max_length)

    def cut_to(self, max_length: int | None) -> "TokenSequence":
        """The sequence cut to its first `max_length` tokens; unchanged for None."""
        if max_length is None or len(self.ids) <= max_length:
            return self
        spans = tuple((start, min(end, max_length)) for start, end in self.loss_spans if start < max_length)
        return replace(
            self,
            ids=self.ids[:max_length],
            loss_spans=spans,
            cut=self.cut + len(self.ids) - max_length,
        )


def chat_tokenizer(path: str | Path, chat_template: str | None = None, *, field: str) -> Any:
    """The tokenizer of the model in `path` (a folder or a hub id), which can render conversations.

    `chat_template`, a file or the name of a TRL template, replaces the model's own. Raises ModelError, which names
    `field`, if the tokenizer is missing or has no chat template.
    """
    tokenizer = load_tokenizer(path, field=field)
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    if not tokenizer.chat_template:
        raise ModelError(f"{field}: {path} has {NO_TEMPLATE}")
    return tokenizer


def render_answers(
    prompt: list[Message],
    answers: dict[str, list[Message]],
    tools: list[dict[str, Any]] | None,
    tokenizer: Any,
) -> list[TokenSequence]:
    """The prompt with each answer, by the answer's name; every token of an answer carries loss.

    All answers start at the earliest position where the prompt and a whole conversation diverge, so that they share
    the prompt's ids, as in TRL. Raises DataError if the tokenizer has no chat template, or the template refuses the
    conversation or omits a part of an answer.
    """
    chat = Chat(tokenizer, tools)
    rendered = {name: chat.answer(prompt, answer) for name, answer in answers.items()}
    start = min(len(one.context) for one in rendered.values())
    return [
        TokenSequence(
            name, [*one.context, *one.ids], ((start, len(one.context) + len(one.ids)),), notes=one.notes
        )
        for name, one in rendered.items()
    ]


def render_rows(
    rows: Iterable[Row], tokenizer: Any, render: Callable[[Row, Any], Rendered]
) -> Iterator[Rendered]:
    """The result of `render` for each row; adds the row's number, from 1, to its DataError."""
    for number, row in enumerate(rows, start=1):
        try:
            yield render(row, tokenizer)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from error


def render_prompt(messages: list[Message], tools: list[dict[str, Any]] | None, tokenizer: Any) -> list[int]:
    """Token ids of a conversation that the model is to continue, as served. Raises DataError."""
    chat = Chat(tokenizer, tools)
    return chat.ids(chat.text(messages, prompt=True))


def unknown_token(token: int, vocabulary: int, tokenizer: Any) -> str:
    """A sentence about a token that the tokenizer gives but the model has no embedding of."""
    written = tokenizer.convert_ids_to_tokens(token)
    return (
        f"the tokenizer gives the token {token} ({written}), but the model has embeddings of {vocabulary:,} tokens "
        "only: the tokenizer or its chat template belongs to another model"
    )


def digests(sequences: Sequence[TokenSequence]) -> tuple[bytes, bytes]:
    """A digest of a row's trained tokens, and one of its prompt; equal for equal token ids."""
    first = sequences[0]
    trained = [[one.name, one.ids, one.loss_spans] for one in sequences]
    return digest(trained), digest(first.ids[: first.prompt_length])


def digest(value: Any) -> bytes:
    """A digest of a JSON value, equal for equal values."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()
