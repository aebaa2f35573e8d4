"""Support for tokenised datasets, which trainers use unchanged, and the error for missing columns."""

from typing import Any

from alignkit.errors import DataError

PAIR_IDS = frozenset({"prompt_ids", "chosen_ids", "rejected_ids"})
"""TRL's columns of a tokenised pair, as `alignkit.data.tokenise` makes them."""


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


def columns_of(dataset: Any) -> set[str]:
    """Return the names of a dataset's columns. For a stream that does not know them, reads its first row."""
    if dataset.column_names is not None:
        return set(dataset.column_names)
    return set(next(iter(dataset), {}))
