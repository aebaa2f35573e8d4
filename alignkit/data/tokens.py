"""A pair as the trainer sees it: token ids by the model's own chat template, exactly as TRL makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.data.formats import Message, PreferenceRow
from alignkit.errors import DataError, ModelError


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


def load_tokenizer(path: str | Path) -> Any:
    """A model's tokenizer; raises ModelError where there is none, or it has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"{path} has no chat template, so conversations cannot be rendered: use an instruct model"
        )
    return tokenizer


def render_pair(row: PreferenceRow, tokenizer: Any) -> PairTokens:
    """Tokens of `row`; the answers start where prompt and whole conversation diverge, as in TRL."""
    prompt = _ids(row.prompt, tokenizer, row, add_generation_prompt=True)
    chosen = _ids(row.prompt + row.chosen, tokenizer, row)
    rejected = _ids(row.prompt + row.rejected, tokenizer, row)
    shared = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
    return PairTokens(prompt[:shared], chosen[shared:], rejected[shared:])


def _ids(messages: list[Message], tokenizer: Any, row: PreferenceRow, **options: Any) -> list[int]:
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tools=row.tools, tokenize=True, return_dict=True, **options
        )
    except Exception as error:
        raise DataError(f"the model's chat template refuses a conversation: {error}") from error
    ids: list[int] = encoded["input_ids"]
    return ids


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        length += 1
    return length
