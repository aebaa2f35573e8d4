"""Support for tokenised datasets, which trainers use unchanged, and the error for missing columns."""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import IterableDataset

from alignkit.errors import DataError

PAIR_IDS = frozenset({"prompt_ids", "chosen_ids", "rejected_ids"})
"""TRL's columns of a tokenised pair, as `alignkit.data.tokenise` makes them."""


COMPLETIONS = ({"messages"}, {"conversations"}, {"prompt", "completion"}, {"input_ids"})
"""The columns that TRL's SFTTrainer reads, besides its text field."""


class TakesTokenised:
    """Mixin before TRL's DPOTrainer that uses a dataset with TRL's tokenised columns unchanged.

    TRL prepares any other dataset. Raises DataError if the columns for that are missing.
    """

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        columns = columns_of(dataset)
        if columns >= PAIR_IDS:
            return dataset
        if not columns >= {"chosen", "rejected"}:
            raise DataError(
                f"{dataset_name} dataset: expected the columns chosen and rejected, with or without prompt, or "
                f"{', '.join(sorted(PAIR_IDS))}; found {', '.join(sorted(columns)) or 'none'}"
            )
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)  # type: ignore[misc]


def require_completions(args: Any, given: Mapping[str, Any]) -> None:
    """Raise DataError unless SFTTrainer can read the datasets among its arguments. Call it before loading a model."""
    skips = (getattr(args, "dataset_kwargs", None) or {}).get("skip_prepare_dataset")
    if skips or given.get("formatting_func") is not None:
        return
    text = getattr(args, "dataset_text_field", "text")
    for name, dataset in _datasets(given):
        columns = columns_of(dataset)
        if columns and not any(form <= columns for form in (*COMPLETIONS, {text})):
            raise DataError(
                f"{name}: expected the columns prompt and completion, or messages, {text} or input_ids; found "
                f"{', '.join(sorted(columns))}. alignkit.data.tokenise reads the rows of a file in other forms"
            )


def refuse_streams(given: Mapping[str, Any], why: str) -> None:
    """Raise DataError for a streaming dataset among a trainer's arguments. Call it before loading a model."""
    for name, dataset in _datasets(given):
        if isinstance(dataset, IterableDataset):
            raise DataError(f"{name}: expected a Dataset, found a stream; {why}")


def _datasets(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The training and held-out datasets among a trainer's arguments."""
    for name in ("train_dataset", "eval_dataset"):
        found = given.get(name)
        for dataset in found.values() if isinstance(found, dict) else [found]:
            if dataset is not None:
                yield name, dataset


def columns_of(dataset: Any) -> set[str]:
    """Return the names of a dataset's columns. For a stream that does not know them, reads its first row."""
    if dataset.column_names is not None:
        return set(dataset.column_names)
    return set(next(iter(dataset), {}))
