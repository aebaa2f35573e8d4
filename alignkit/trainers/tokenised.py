"""Datasets of token ids, which trainers take unchanged, and one sentence for those that lack columns."""

from typing import Any

from alignkit.errors import DataError

PAIR_IDS = frozenset({"prompt_ids", "chosen_ids", "rejected_ids"})
"""TRL's tokenised columns of a pair, which `alignkit.data.tokenise` makes."""


class TakesTokenised:
    """Mixin before TRL's DPOTrainer: a dataset with TRL's tokenised columns is trained as it is.

    Any other dataset is TRL's to prepare, as long as it has the columns for it.
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
    """The names of a dataset's columns; of a stream that does not know them, its first row's."""
    if dataset.column_names is not None:
        return set(dataset.column_names)
    return set(next(iter(dataset), {}))
