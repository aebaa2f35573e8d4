"""A pair as the trainer sees it: token ids by the model's own chat template, exactly as TRL makes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.data.formats import Message, PreferenceRow
from alignkit.errors import DataError, ModelError

NO_TEMPLATE = (
    "no chat template, so conversations cannot be rendered: use an instruct model, "
    "or put a chat_template.jinja into the model's folder"
)


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Token ids of one pair: the shared prompt, and the two answers that carry loss."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def dropped_at(self, max_length: int) -> bool:
        """Whether TRL leaves the row out: its prompt alone fills `max_length`, so no answer would be left."""
        return len(self.prompt) >= max_length


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

    prompt = _ids(row.prompt, row, tokenizer, add_generation_prompt=True)
    chosen = _ids(row.prompt + row.chosen, row, tokenizer)
    rejected = _ids(row.prompt + row.rejected, row, tokenizer)
    shared = min(common_prefix_length(prompt, chosen), common_prefix_length(prompt, rejected))
    return PairTokens(prompt[:shared], chosen[shared:], rejected[shared:])


def _ids(messages: list[Message], row: PreferenceRow, tokenizer: Any, **options: Any) -> list[int]:
    if not tokenizer.chat_template:
        raise DataError(f"the model's tokenizer has {NO_TEMPLATE}")
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tools=row.tools, tokenize=True, return_dict=True, **options
        )
    except Exception as error:  # a template is a program of the model's, and may raise anything
        raise DataError(f"the model's chat template refuses the conversation: {error}") from error
    ids: list[int] = encoded["input_ids"]
    return ids
