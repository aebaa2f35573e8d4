"""The rows of a run: read, and checked against the eval's schema before anything is sampled."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
from pydantic import ValidationError

from alignkit_server.chat.structured import check_schema
from alignkit_server.errors import ApiError, at_most, shorten
from alignkit_server.evals.schemas import FileContent, RowGiven
from alignkit_server.limits.body import PROMPT, refuse_shape

MAX_ROWS = 10_000
MAX_FILE_BYTES = 16 * 2**20

Validator = Callable[[Any], Iterator[Any]]
"""A compiled schema: its complaints about a value."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A run's rows and the name of each in messages."""

    rows: Sequence[RowGiven]
    place: str
    first: int
    quotes: bool = True
    """Whether an error may quote a row."""


def compiled(param: str, schema: dict[str, Any]) -> Validator:
    """The schema's validator. Raises ApiError (400) if it is none, too large, or refers to another document."""
    require_storable(param, schema)
    check_schema(param, schema)
    try:
        validator = jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise ApiError(
            400,
            f"{param}: expected a JSON schema without references to other documents, found: {why}.",
            param=param,
            code="invalid_value",
        ) from error
    return validator.iter_errors


def require_storable(param: str, value: object) -> None:
    """Refuse (400) what JSON cannot express: numbers that are not finite, and halves of surrogate pairs."""
    if (why := _unstorable(value)) is not None:
        raise ApiError(400, f"{param}: {why}.", param=param, code="invalid_value")


def _unstorable(value: object) -> str | None:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "expected valid UTF-8"
    except ValueError:
        return "expected finite numbers"
    return None


def given_rows(source: FileContent) -> Rows:
    """The rows of a request."""
    return Rows(source.content, "data_source.source.content", 0)


def read_rows(path: Path, size: int, *, quotes: bool) -> Rows:
    """The rows of a JSONL file. Raises ApiError (400) that names the bad lines, or if it is too large.

    With `quotes`, errors about the rows quote them.
    """
    param = "data_source.source.id"
    if size > MAX_FILE_BYTES:
        raise ApiError(
            400,
            f"{param}: expected a file of at most {MAX_FILE_BYTES:,} bytes, found {size:,}: split it into several "
            "runs.",
            param=param,
            code="invalid_value",
        )
    rows, complaints = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            refuse_shape(line, PROMPT)  # as deep as a body of the API may be, since answers show it
            rows.append(RowGiven.model_validate(json.loads(line)))
        except (ApiError, ValueError, RecursionError) as error:
            complaints.append(f"{param}: line {number}: {_why(error, quotes=quotes)}.")
    if complaints:
        raise ApiError(400, at_most(complaints), param=param, code="invalid_file")
    return Rows(rows, param, 1, quotes)


def _why(error: Exception, *, quotes: bool) -> str:
    if isinstance(error, ValidationError):
        if not quotes:
            return 'expected {"item": {…}}, with or without a sample'
        first = error.errors()[0]
        found = shorten(first["input"])
        return f'expected {{"item": {{…}}}}, and {".".join(map(str, first["loc"])) or "the line"} is {found}'
    return "it is not valid JSON, or is nested too deeply"


def check_rows(given: Rows, validator: Validator, *, needs_sample: bool) -> None:
    """Refuse (400) too many or no rows, rows that violate the schema, and rows without a sample if one is needed."""
    count, param = len(given.rows), given.place
    if not 1 <= count <= MAX_ROWS:
        raise ApiError(
            400,
            f"{param}: expected 1 to {MAX_ROWS:,} rows, found {count:,}.",
            param=param,
            code="invalid_value",
        )
    complaints = []
    for number, row in enumerate(given.rows, given.first):
        place = f"{param}: line {number}" if given.first else f"{param}.{number}"
        if (why := _unstorable([row.item, row.sample])) is not None:
            complaints.append(f"{place}: {why}.")
            continue
        for error in validator(row.item):
            complaints.append(f"{place}: {_complaint(error, quotes=given.quotes)}.")
            break
        if needs_sample and row.sample is None:
            complaints.append(
                f'{place}: the graders refer to sample: expected a sample such as {{"output_text": "…"}}, '
                "or a data source of the type 'completions'."
            )
    if complaints:
        raise ApiError(400, at_most(complaints), param=param, code="invalid_value")


def _complaint(error: Any, *, quotes: bool) -> str:
    """What is wrong with an item: by the validator's words, which quote it, or by the place in the schema."""
    if not quotes:
        return f"item: expected what the schema says at {'/'.join(map(str, error.schema_path))}"
    at = "".join(f".{step}" for step in error.instance_path)
    return f"item{at}: {shorten_text(error.message)}"


def shorten_text(text: str) -> str:
    """A message of the validator, which repeats the value, cut to a line."""
    return text if len(text) <= 200 else f"{text[:199]}…"
