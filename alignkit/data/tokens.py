"""A row as the trainer sees it: token ids by the model's own chat template; a pair's exactly as TRL makes them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from alignkit.data.formats import Message, PreferenceRow
from alignkit.errors import DataError, ModelError

NO_TEMPLATE = (
    "no chat template, so conversations cannot be rendered: use an instruct model, "
    "or put a chat_template.jinja into the model's folder"
)
NO_CALLS = (
    "the answer calls a tool, which the model's chat template does not write, so an empty answer would be learned: "
    "use a model whose template has tools"
)

Row = TypeVar("Row")
Rendered = TypeVar("Rendered")


class Taught(Protocol):
    """A row of any kind."""

    @property
    def taught(self) -> list[Message]:
        """The messages that carry loss."""


def require_writable(row: Taught, tokenizer: Any) -> None:
    """Raise DataError where the model's chat template leaves out what a row teaches."""
    calls = any("tool_calls" in message for message in row.taught)
    if calls and "tool_calls" not in str(tokenizer.chat_template):
        raise DataError(NO_CALLS)


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One of the sequences that a row becomes: its name among them, its ids, and which of these carry loss."""

    name: str
    ids: list[int]
    learned: tuple[tuple[int, int], ...]
    """Start and end of every run of tokens that carry loss, ascending."""

    @property
    def prompt(self) -> int:
        """Tokens before the first that carries loss."""
        return self.learned[0][0] if self.learned else len(self.ids)

    def dropped_at(self, max_length: int) -> bool:
        """Whether a trainer leaves it out: nothing that carries loss is within `max_length`."""
        return not self.learned or self.prompt >= max_length


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Token ids of one pair: the shared prompt, and the two answers that carry loss."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def sequences(self) -> list[TokenSequence]:
        """Prompt with either answer; the trainer drops the pair where the prompt alone fills max_length."""
        start = len(self.prompt)
        return [
            TokenSequence(name, self.prompt + answer, ((start, start + len(answer)),))
            for name, answer in (("chosen", self.chosen), ("rejected", self.rejected))
        ]


def load_tokenizer(path: str | Path) -> Any:
    """A model's tokenizer; raises ModelError where there is none, or it has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{path} has {NO_TEMPLATE}")
    return tokenizer


def render_pair(row: PreferenceRow, tokenizer: Any) -> PairTokens:
    """Tokens of `row`; the answers start where prompt and whole conversation diverge, as in TRL.

    Raises DataError where the tokenizer has no chat template or the template refuses the conversation.
    """
    from trl.data_utils import common_prefix_length

    require_writable(row, tokenizer)
    prompt = render_messages(row.prompt, row.tools, tokenizer, add_generation_prompt=True)
    chosen = render_messages(row.prompt + row.chosen, row.tools, tokenizer)
    rejected = render_messages(row.prompt + row.rejected, row.tools, tokenizer)
    shared = min(common_prefix_length(prompt, chosen), common_prefix_length(prompt, rejected))
    return PairTokens(prompt[:shared], chosen[shared:], rejected[shared:])


def render_rows(
    rows: Iterable[Row], tokenizer: Any, render: Callable[[Row, Any], Rendered]
) -> Iterator[Rendered]:
    """What `render` makes of each row; a DataError of its is raised with the row's number, from 1."""
    for number, row in enumerate(rows, start=1):
        try:
            yield render(row, tokenizer)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from error


def render_messages(
    messages: list[Message], tools: list[dict[str, Any]] | None, tokenizer: Any, **options: Any
) -> list[int]:
    """Token ids of a conversation; raises DataError where the template refuses it, or there is none."""
    if not tokenizer.chat_template:
        raise DataError(f"the model's tokenizer has {NO_TEMPLATE}")
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=True, return_dict=True, **options
        )
    except Exception as error:  # a template is a program of the model's, and may raise anything
        raise DataError(f"the model's chat template refuses the conversation: {error}") from error
    ids: list[int] = encoded["input_ids"]
    return ids
