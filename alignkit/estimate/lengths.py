"""Lengths of a data file's rows: the longest determine the memory peak, the mean determines the time."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from alignkit.data.dataset import load_rows, skipped_share, split
from alignkit.data.tokens import TokenSequence, chat_tokenizer, render_rows
from alignkit.methods import LabelledMethod, Method
from alignkit.recipe import Recipe
from alignkit.sections import TrainingSection

SAMPLE_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token lengths of the trained rows, cut to max_length; of a row's sequences the longest and the mean."""

    rows: int | None
    """Number of rows that are trained on; None if unknown."""
    sequences: float
    """Mean number of sequences per row."""
    longest: int
    longest_loss_tokens: int
    """Maximum number of tokens that carry loss in one sequence."""
    longest_prompt: int
    mean: float
    mean_loss_tokens: float
    mean_prompt: float
    assumed: bool = False
    """Whether the lengths are assumed because there was no data."""

    def cut(self, max_length: int) -> "Lengths":
        """These lengths where rows are cut to `max_length`."""
        if self.longest <= max_length:
            return self
        names = (
            "longest",
            "longest_loss_tokens",
            "longest_prompt",
            "mean",
            "mean_loss_tokens",
            "mean_prompt",
        )
        return replace(self, **{name: min(getattr(self, name), max_length) for name in names})

    def bounded(self, max_length: int) -> "Lengths":
        """These lengths of a sample, with the longest row that the rest may have: one of `max_length` tokens."""
        return replace(
            self,
            longest=max_length,
            longest_loss_tokens=max_length,
            longest_prompt=max(self.longest_prompt, max_length - 1),
        )


def assumed(max_length: int, rows: int | None, sequences: float = 1.0) -> Lengths:
    """Lengths under the assumption that every row fills max_length, half of it with the prompt."""
    half = max_length // 2
    return Lengths(
        rows, sequences, max_length, max_length - half, half, max_length, max_length - half, half, True
    )


def trained_rows(
    rendered: Iterable[list[TokenSequence]], method: type[Method]
) -> Iterable[list[TokenSequence]]:
    """The rows as the method's trainer counts them: a labelled method takes the answers of a pair apart."""
    if not issubclass(method, LabelledMethod):
        return rendered
    return ([one] for sequences in rendered for one in sequences)


def count(rows: Iterable[list[TokenSequence]], max_length: int, share: float = 1.0) -> Lengths | None:
    """The lengths of `rows`, which are `share` of all rows; None if none of them is trained on."""
    cut, kept = [], 0
    for sequences in rows:
        if all(sequence.dropped_at(max_length) for sequence in sequences):
            continue
        kept += 1
        cut += [_cut(sequence, max_length) for sequence in sequences]
    if not cut:
        return None
    tokens, loss_tokens, prompt = zip(*cut, strict=True)
    return Lengths(
        rows=round(kept / share),
        sequences=len(cut) / kept,
        longest=max(tokens),
        longest_loss_tokens=max(loss_tokens),
        longest_prompt=max(prompt),
        mean=sum(tokens) / len(cut),
        mean_loss_tokens=sum(loss_tokens) / len(cut),
        mean_prompt=sum(prompt) / len(cut),
    )


def steps(rows: int | None, training: TrainingSection) -> tuple[int | None, float]:
    """(optimizer steps, passes over the data); the steps are None if neither `rows` nor max_steps is known."""
    if rows == 0:
        return 0, 0.0
    if training.max_steps:
        return training.max_steps, training.max_steps * training.batch_size / rows if rows else 1.0
    if rows is None:
        return None, training.epochs
    return math.ceil(training.epochs * math.ceil(rows / training.batch_size)), training.epochs


def read(recipe: Recipe, rows: int | None = None, *, bounded: bool = False) -> Lengths:
    """The lengths of the recipe's training file, by its model's tokenizer; assumed if either is missing.

    The number of rows is that of the file unless `rows` is given. Of a large file a sample is read; with `bounded`,
    the longest of the other rows is assumed to fill max_length. Raises DataError for a file that cannot be used.
    """
    file, folder, most = Path(recipe.data.train), Path(recipe.model.path), recipe.data.max_length
    if not file.is_file() or not folder.is_dir():
        return assumed(most, rows)
    data = recipe.data
    found = load_rows(file, type(recipe.method), columns=data.columns, skip_bad=skipped_share(data.skip_bad))
    if isinstance(data.validation, float):
        found = [found[at] for at in split(found, data.validation)[0]]
    sample = list(islice(found, 0, None, max(1, len(found) // SAMPLE_ROWS)))
    tokenizer = chat_tokenizer(folder, recipe.model.chat_template, field="model.path")
    rendered = render_rows(sample, tokenizer, lambda row, by: row.render(by))
    counted = count(trained_rows(rendered, type(recipe.method)), most, len(sample) / (rows or len(found)))
    if counted is None:
        return assumed(most, rows or len(found))
    return counted.bounded(most) if bounded and len(sample) < len(found) else counted


def _cut(sequence: TokenSequence, max_length: int) -> tuple[int, int, int]:
    loss_tokens = sum(max(0, min(end, max_length) - start) for start, end in sequence.loss_spans)
    return min(len(sequence.ids), max_length), loss_tokens, min(sequence.prompt_length, max_length)
