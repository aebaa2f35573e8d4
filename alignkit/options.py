"""Marks on recipe fields, which tell the job API, the resume guard and the service how to treat an option.

A mark is part of the field's annotation: `beta: Annotated[float, InJobs(le=2, auto=True)] = Field(0.1, gt=0)`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Mark(Enum):
    """The marks without arguments."""

    RECIPES_ONLY = "recipes only"
    MAY_CHANGE = "may change"
    CONTENT_MATTERS = "content matters"
    A_MODEL = "a model"


RECIPES_ONLY = Mark.RECIPES_ONLY
"""Mark of an option that no job may set, such as one that names a server."""
MAY_CHANGE = Mark.MAY_CHANGE
"""Mark of an option that does not determine the trained weights. A resumed run may change it."""
CONTENT_MATTERS = Mark.CONTENT_MATTERS
"""Mark of an option that names a file or folder. A resume compares its contents, not its name; no job may set it."""

A_MODEL = Mark.A_MODEL
"""Mark of an option that names a model: a folder, a hub id, or in a recipe file the name of an imported model."""


@dataclass(frozen=True, slots=True)
class InJobs:
    """Mark of an option that a job sets under the recipe's name, within narrower bounds or as "auto"."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    auto: bool = False
    """Whether a job may say "auto", which is then its default and becomes the recipe's default."""
    default: Any = None
    """The default in jobs; None for the recipe's default."""
    name: str | None = None
    """The option's name in jobs; None for its name in recipes. Only for the sections that all methods share."""
    check: Callable[[Any], Any] | None = None
    """A further check of the value. It returns the value, or raises ValueError."""
    schema: Callable[[dict[str, Any]], None] | None = None
    """A function that changes the option's JSON Schema in place."""

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by pydantic's names."""
        named = {"ge": self.ge, "gt": self.gt, "le": self.le, "lt": self.lt}
        return {name: bound for name, bound in named.items() if bound is not None}


@dataclass(frozen=True, slots=True)
class GivenAs:
    """Mark of an option that a job sets under another name, or as another kind of value, than a recipe.

    `convert` makes the recipe's value from the job's value and a `JobContext`. It raises ModelError for an unknown
    model, and DataError for an unknown file.
    """

    name: str
    annotation: Any
    convert: Callable[[Any, "JobContext"], Any]
    default: Any = ...
    description: str = ""
    names_a_model: bool = False
    names_a_file: bool = False


class JobContext(NamedTuple):
    """Facts about the job that the conversion of an option may use."""

    hyperparameters: Mapping[str, Any]
    """All hyperparameters of the job, with "auto" resolved."""
    resolve_model: Callable[[str], Any]
    """A function from a model's name to its `ModelSource`. Raises ModelError if the project has no such model."""
    resolve_file: Callable[[str], Any]
    """A function from a file's id to its path. Raises DataError unless it is the project's, of completions."""
    learning_rate: float
    """The learning rate for a multiplier of 1."""


def one_of(*names: str) -> Callable[[Any], Any]:
    """A check of `InJobs` that refuses every value but these names; lists are refused too."""

    def check(value: Any) -> Any:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}, found {value!r}")
        return value

    return check


_Kind = TypeVar("_Kind")


def mark_of(field: FieldInfo, kind: type[_Kind]) -> _Kind | None:
    """Return the field's mark of this kind, or None."""
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def walk(section: BaseModel, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo, Any]]:
    """Yield (keys, field, value) of every option in `section` and its sub-sections.

    A sub-section that is null or marked MAY_CHANGE counts as one option.
    """
    for name, field in type(section).model_fields.items():
        keys, value = (*above, name), getattr(section, name)
        if isinstance(value, BaseModel) and MAY_CHANGE not in field.metadata:
            yield from walk(value, keys)
        elif isinstance(value, list) and value and all(isinstance(one, BaseModel) for one in value):
            for at, one in enumerate(value):
                yield from walk(one, (*keys, str(at)))
        else:
            yield keys, field, value
