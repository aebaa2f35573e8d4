"""The base of all typed sections: no unknown keys, no silent coercion, and readable error sentences."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from alignkit.errors import FieldIssue, nearest


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are refused, and values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse true and false for a number, of which pydantic would make 1 and 0 where it is not strict."""
        loose = isinstance(values, Mapping) and not cls.model_config.get("strict")
        given = values.items() if loose else ()
        found = [
            ((name,), f"expected a number, found {str(value).lower()}")
            for name, value in given
            if isinstance(value, bool)
            and name in cls.model_fields
            and _counts(cls.model_fields[name].annotation)
        ]
        if found:
            raise refused_all(found, values)
        return values


def _counts(annotation: Any) -> bool:
    """Whether values of a type are numbers, or something else, but not true or false."""
    kinds = {annotation, *_inside(annotation)}
    return bool({int, float} & kinds) and bool not in kinds


def _inside(annotation: Any) -> Iterator[Any]:
    """All types in a union or an annotated type, at any depth."""
    for kind in get_args(annotation) if get_origin(annotation) in {Annotated, Union, UnionType} else ():
        yield kind
        yield from _inside(kind)


def refused(key: str, message: str, found: object) -> ValidationError:
    """The error with which a validator of a mapping refuses one of its keys."""
    return refused_all([((key,), message)], found)


def refused_all(issues: Iterable[tuple[tuple[str | int, ...], str]], found: object) -> ValidationError:
    """The error with which a validator refuses several places, each given as (location, message)."""
    return ValidationError.from_exception_data(
        "section",
        [
            InitErrorDetails(
                type=PydanticCustomError("value_error", "{reason}", {"reason": message}),
                loc=keys,
                input=found,
            )
            for keys, message in issues
        ],
    )


Siblings = Callable[[tuple[str, ...]], Iterable[str]]
"""Function from the path of an unknown key to the known names next to it."""


def field_issues(
    error: ValidationError, prefix: str = "", siblings: Siblings = lambda _keys: ()
) -> list[FieldIssue]:
    """One issue per refused field: its path, what was expected and found, and for a typo the nearest known name."""
    issues = []
    for item in error.errors(include_url=False):
        keys = tuple(str(part) for part in _location(item))
        sentence = _sentence(item)
        if item["type"] == "extra_forbidden":
            sentence += nearest(keys[-1], siblings(keys))
        issues.append(FieldIssue(".".join([*([prefix] if prefix else []), *keys]), sentence))
    return issues


def one_a_field(issues: Iterable[FieldIssue]) -> list[FieldIssue]:
    """The issues with those of one field's alternatives, such as `auto | number`, made into one sentence."""
    merged: dict[str, str] = {}
    for issue in issues:
        head, _, last = issue.path.rpartition(".")
        is_arm = last in _ARMS or last.startswith(("literal[", "function-"))
        path, message = (head if is_arm else issue.path), issue.message
        if path in merged and is_arm:
            first = merged[path].split(", found")[0]
            message = f"{first} or {message.removeprefix('expected ')}"
        merged[path] = message
    return [FieldIssue(path, message) for path, message in merged.items()]


_ARMS = frozenset({"int", "float", "bool", "str", "constrained-int", "constrained-float", "list[str]"})
"""The names that pydantic gives the alternatives of a field, at the end of an issue's path."""


def _location(item: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The path of a mistake; for a wrong `type`, pydantic gives only the path of the section."""
    found: tuple[str | int, ...] = item["loc"]
    return (*found, "type") if item["type"] == "union_tag_invalid" else found


def _sentence(item: Mapping[str, Any]) -> str:
    if item["type"] == "union_tag_invalid":
        known = item["ctx"]["expected_tags"].replace("'", "")
        return f"expected one of {known}, found {_short(item['input'].get('type'))}"
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "missing":
        return "is required"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "value_error":
        return message
    return f"expected {message}, found {_short(item.get('input'))}{_nearest_choice(item)}"


def _nearest_choice(item: Mapping[str, Any]) -> str:
    """The end of a message about a word that is none of a few: the most similar one, if there is one."""
    if item["type"] != "literal_error" or not isinstance(item.get("input"), str):
        return ""
    return nearest(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
