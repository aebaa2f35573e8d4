"""Every setting as a row of a table: its variable, value, default and meaning, without secrets."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from alignkit_server.settings import NESTED, OTHERS, PREFIX, Settings

HIDDEN = "***"
_CREDENTIALS = re.compile(r"(?<=://)\S*@")
_NAMED_SECRET = re.compile(r"(?i)([\w-]*(?:key|token|password|secret)[\w-]*=)[^&\s]+")
_SECRET_OPTION = re.compile(r"(?i)--?[\w-]*(?:key|token|password|secret)[\w-]*")
_SECRET_VARIABLES = frozenset({f"{PREFIX}API_KEY"})


@dataclass(frozen=True, slots=True)
class Row:
    """One setting; `value` and `default` have JSON's types."""

    variable: str
    value: Any
    default: Any
    is_set: bool
    """Whether the environment or the command line gives it."""
    meaning: str


def rows(settings: Settings, environment: Mapping[str, str]) -> list[Row]:
    """The rows of all settings in the order of their declaration, then of what else reads a variable."""
    return [*_rows(settings, PREFIX), *_others(environment)]


def _rows(section: BaseModel, prefix: str) -> Iterator[Row]:
    for name, field in type(section).model_fields.items():
        value, variable = getattr(section, name), f"{prefix}{name.upper()}"
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{variable}{NESTED}")
            continue
        default = field.get_default(call_default_factory=True)
        is_set = name in section.model_fields_set
        yield Row(variable, without_secrets(value), without_secrets(default), is_set, field.description or "")


def _others(environment: Mapping[str, str]) -> Iterator[Row]:
    for name, (default, meaning) in OTHERS.items():
        variable = f"{PREFIX}{name}"
        value = environment.get(variable)
        shown = HIDDEN if value and variable in _SECRET_VARIABLES else without_secrets(value or default)
        yield Row(variable, shown, default, variable in environment, meaning)


def without_secrets(value: Any) -> Any:
    """A setting's value in JSON's types, with *** in place of secrets: of URLs, queries and options as well."""
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return _NAMED_SECRET.sub(rf"\g<1>{HIDDEN}", _CREDENTIALS.sub(f"{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        follows = [False, *(isinstance(item, str) and bool(_SECRET_OPTION.fullmatch(item)) for item in value)]
        return [HIDDEN if hide else without_secrets(item) for hide, item in zip(follows, value, strict=False)]
    return value
