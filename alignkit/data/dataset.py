"""Turns a data file into rows, token sequences, and the dataset that a trainer takes."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from alignkit.data.reading import iter_lines
from alignkit.data.rows.dispreferred import DispreferredRow
from alignkit.data.rows.preference import PreferenceRow
from alignkit.data.rows.recognise import GROUP
from alignkit.data.schemas import schema_for
from alignkit.data.token_store import TokenStore
from alignkit.data.tokens import TokenSequence, digest, render_rows
from alignkit.data.validation import SKIPPED_SHARE, FileReport, Inspection, overlap
from alignkit.errors import DataError

_logger = logging.getLogger(__name__)


def render(row: object, tokenizer: Any, *, method: Any, max_length: int | None = None) -> list[TokenSequence]:
    """The token sequences that `method` trains on for one row: ids, spans that carry loss, and tokens cut off.

    `row` is a JSON value or a parsed row; `method` a method's name or class. With `max_length`, sequences are cut to
    it as in training. Raises RowError if the value is not a row of the method's kind, and DataError if the model's
    chat template cannot render it.
    """
    kind = schema_for(method)
    if isinstance(row, dict):
        row = kind.parse(row)
    if not isinstance(row, kind.record):
        raise TypeError(
            f"expected a JSON object or a {kind.record.__name__} for {method!r}, found {type(row).__name__}"
        )
    return [sequence.cut_to(max_length) for sequence in row.render(tokenizer)]


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """The valid rows of a file, their sequences (empty without a tokenizer), and the report on all rows."""

    rows: list[Any]
    sequences: list[list[TokenSequence]]
    report: FileReport


def load(
    path: Path,
    method: Any,
    tokenizer: Any = None,
    *,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: float = 0,
    vocabulary: int | None = None,
    store: TokenStore | None = None,
) -> LoadedRows:
    """Read and check every row of `path`, of the method's kind, in one pass.

    `columns` maps the file's keys to those of a form. `vocabulary` is the number of tokens that the model has
    embeddings of. `store` keeps the sequences of the file for other runs. Raises DataError with the whole report if
    there are invalid rows, unless they are at most `skip_bad` (below 1: a share of all rows); those are skipped.
    """
    kind = schema_for(method)
    stored = None
    if store is not None and tokenizer is not None and path.is_file():
        stored = store.of(path, kind.record, columns, tokenizer)
    inspection = Inspection(
        kind,
        tokenizer=tokenizer,
        max_length=max_length,
        skip_bad=skip_bad,
        vocabulary=vocabulary,
        stored=stored,
    )
    found = list(inspection.rendered(iter_lines(path, columns=columns)))
    report = inspection.report()
    if not report.ok:
        raise DataError(f"{path.name}: {report.summary()}")
    if stored is not None:
        stored.keep()
    return LoadedRows([row for row, _ in found], [sequences for _, sequences in found], report)


def load_rows(
    path: Path, method: Any, *, columns: Mapping[str, str] | None = None, skip_bad: float = 0
) -> list[Any]:
    """Every row of `path`, of the method's kind. Raises DataError like `load`."""
    return load(path, method, columns=columns, skip_bad=skip_bad).rows


class DataOptions(Protocol):
    """The data section of a recipe."""

    train: str
    validation: str | float | None
    max_length: int
    columns: dict[str, str]
    skip_bad: bool | int | float
    token_folder: str | None


class Part(NamedTuple):
    """The rows of a run that are trained on, or those held out."""

    name: str
    """The name of their file."""
    rows: list[Any]
    sequences: list[list[TokenSequence]]


def run_datasets(
    data: DataOptions,
    method: Any,
    tokenizer: Any,
    make: Callable[[str, list[Any]], Any] | None = None,
    seen: Callable[[list[Part]], None] = lambda _: None,
    *,
    vocabulary: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Any, Any]:
    """A run's training dataset and its validation dataset (or None), in the columns that the method's trainer takes.

    `make` turns a file's name and rows into a dataset, for trainers that do not take token ids in TRL's columns.
    `seen` is called with the part to train on and, if there is one, the held-out part. If `validation` is a share,
    that part of the training file is held out, by prompt. A row with a token that `vocabulary`, the number of the
    model's embeddings, does not reach is refused. `report` gets a sentence about a file whose token ids were stored.
    Raises DataError.
    """
    store = None if data.token_folder is None else TokenStore(Path(data.token_folder), report)
    load_file = partial(
        _load, data=data, method=method, tokenizer=tokenizer, vocabulary=vocabulary, store=store
    )
    parts = list(_parts(data, load_file))
    seen(parts)

    def dataset(part: Part) -> Any:
        if make:
            return make(part.name, part.rows)
        groups = [getattr(row, GROUP, None) for row in part.rows]
        return dataset_of(part.sequences, method, data.max_length, groups if any(groups) else ())

    made = list(map(dataset, parts))
    return made[0], made[1] if len(made) > 1 else None


def _parts(data: DataOptions, read: Callable[[str], LoadedRows]) -> Iterator[Part]:
    train = read(data.train)
    name = Path(data.train).name
    if isinstance(data.validation, float):
        for chosen in split(train.rows, data.validation):
            yield Part(name, [train.rows[at] for at in chosen], [train.sequences[at] for at in chosen])
        return
    yield Part(name, train.rows, train.sequences)
    if not data.validation:
        return
    found = read(data.validation)
    for notice in overlap(train.report, found.report):
        _say(f"{name}: {notice}")
    yield Part(Path(data.validation).name, found.rows, found.sequences)


def _load(
    file: str,
    *,
    data: DataOptions,
    method: Any,
    tokenizer: Any,
    vocabulary: int | None,
    store: TokenStore | None,
) -> LoadedRows:
    found = load(
        Path(file),
        method,
        tokenizer,
        max_length=data.max_length,
        columns=data.columns,
        skip_bad=skipped_share(data.skip_bad),
        vocabulary=vocabulary,
        store=store,
    )
    report = found.report
    if report.notices or report.bad_rows:
        _say(f"{Path(file).name}: {report.summary()}")
    return found


def _say(message: str) -> None:
    """Log a warning, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        _logger.warning("%s", message)


def skipped_share(skip_bad: bool | float) -> float:  # noqa: FBT001 - a recipe's value
    """The number of invalid rows that may be skipped, or (below 1) their share; `true` means SKIPPED_SHARE."""
    return SKIPPED_SHARE if skip_bad is True else float(skip_bad)


def split(rows: Sequence[Any], share: float) -> tuple[list[int], list[int]]:
    """The indices of the rows to train on, and of those held out: `share` of the prompts, at least one.

    Chosen by a digest of the prompt: rows with the same prompt stay together, and the choice depends neither on the
    order of the file nor on the run. Raises DataError if there are fewer than two prompts.
    """
    keys = [digest(row.prompt) for row in rows]
    prompts = sorted(set(keys))
    if len(prompts) < 2:
        raise DataError(
            "validation: expected at least two different prompts to hold a share of them out, found one"
        )
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    held_out = set(prompts[:count])
    kept = [at for at, key in enumerate(keys) if key not in held_out]
    return kept, [at for at, key in enumerate(keys) if key in held_out]


def tokenise(rows: Sequence[Any], tokenizer: Any, method: Any, max_length: int) -> Any:
    """A datasets.Dataset of token ids, in the columns that the trainer for the method's rows takes.

    See `dataset_of`. Raises DataError, naming the row from 1, if `render` does.
    """
    rendered = list(render_rows(rows, tokenizer, lambda row, by: row.render(by)))
    return dataset_of(rendered, method, max_length)


def dataset_of(
    rendered: Sequence[list[TokenSequence]],
    method: Any,
    max_length: int,
    groups: Sequence[str | None] = (),
) -> Any:
    """A datasets.Dataset of rows' sequences, cut to `max_length`, in the columns that the trainer takes.

    With `groups`, the names of the rows' groups, it has the column `group` too. Drops and counts in the log each
    sequence without a token that carries loss within `max_length`. Raises DataError if none is left.
    """
    from datasets import Dataset  # saves datasets at start-up

    kind = schema_for(method)
    found: list[dict[str, Any]] = []
    dropped = 0
    for at, sequences in enumerate(rendered):
        kept = kind.trained(sequences, max_length)
        dropped += len(sequences) - len(kept)
        columns = kind.columns(kept) if kept else []
        found += [row | {GROUP: groups[at]} for row in columns] if groups else columns
    if not found:
        raise DataError(
            f"none of {len(rendered)} rows has a token that carries loss within max_length {max_length}: "
            "raise max_length, or shorten the prompts"
        )
    if dropped:
        _logger.warning(
            "%d of %d sequences are dropped: no token that carries loss is within max_length %d",
            dropped,
            sum(map(len, rendered)),
            max_length,
        )
    return Dataset.from_list(found)


def to_trl(rows: Sequence[PreferenceRow]) -> Any:
    """A datasets.Dataset of conversational prompt / chosen / rejected, in the form of TRL's preference trainers."""
    columns: dict[str, list[Any]] = {
        "prompt": [row.prompt for row in rows],
        "chosen": [row.chosen for row in rows],
        "rejected": [row.rejected for row in rows],
    }
    if any(row.tools for row in rows):
        columns["tools"] = [row.tools for row in rows]
    return _dataset(columns)


def to_dispreferred(rows: Sequence[DispreferredRow]) -> Any:
    """A datasets.Dataset of prompt, rejected and, where rows have them, samples and tools, for D2OTrainer."""
    columns: dict[str, list[Any]] = {
        "prompt": [row.prompt for row in rows],
        "rejected": [row.rejected for row in rows],
    }
    for name in ("samples", "tools"):
        values = [getattr(row, name) for row in rows]
        if any(values):
            columns[name] = values
    return _dataset(columns)


def _dataset(columns: dict[str, list[Any]]) -> Any:
    from datasets import Dataset, Features, Json, List  # saves datasets at start-up

    # Stored as JSON, a message keeps exactly its own keys: Arrow would add the keys of all other messages to each.
    return Dataset.from_dict(columns, features=Features({name: List(Json()) for name in columns}))
