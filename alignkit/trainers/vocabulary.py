"""Checks that two models share a vocabulary, since distillation compares their distributions column by column."""

import logging
from typing import Any

from pyarrow import compute

from alignkit.errors import ModelError

_ROLES = ("bos_token", "eos_token", "unk_token")
"""Special tokens that must agree. The pad token need not, since it is never a loss token."""

_logger = logging.getLogger(__name__)


def require_same_tokenizer(student: Any, teacher: Any) -> None:
    """Raise ModelError unless both tokenizers have the same token ids and the same special tokens."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        differing = sorted(
            (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
            key=lambda token: (ours.get(token, theirs.get(token)), token),
        )
        shown = "; ".join(
            f"{token!r} is {_id(ours.get(token))} to the student and {_id(theirs.get(token))} to the teacher"
            for token in differing[:3]
        )
        raise ModelError(
            f"student and teacher must share one tokenizer, found {len(differing)} tokens that differ: {shown}"
        )
    for role in _ROLES:
        if getattr(student, role, None) != getattr(teacher, role, None):
            raise ModelError(
                f"student and teacher must share their special tokens, found {role} "
                f"{getattr(student, role)!r} and {getattr(teacher, role)!r}"
            )


def _id(token_id: int | None) -> str:
    return "unknown" if token_id is None else str(token_id)


def shared_vocabulary(student: Any, teacher: Any) -> int:
    """Return the number of columns that both heads have. Logs a warning if their sizes differ."""
    ours, theirs = (model.get_output_embeddings().out_features for model in (student, teacher))
    if ours != theirs:
        _logger.warning(
            "the student's head has %d columns and the teacher's has %d: only the first %d are compared",
            ours,
            theirs,
            min(ours, theirs),
        )
    return min(ours, theirs)


def require_labels_within(dataset: Any, columns: int, name: str) -> None:
    """Raise ModelError if a label of the tokenised `dataset` has no column in one of the heads."""

    if dataset is None or not hasattr(dataset, "data"):  # a stream is checked batch by batch, by the kernel
        return
    labels = dataset.with_format("arrow")[:].column("labels")
    highest = compute.max(compute.list_flatten(labels)).as_py() or 0
    if highest >= columns:
        raise ModelError(
            f"the {name} rows contain token id {highest}, but student and teacher share only {columns} columns: "
            "the vocabulary of one of them is too small"
        )
