"""Marks on the fields of a recipe: how the job API, the resume guard and the service treat an option.

A mark stands in the field's annotation: `beta: Annotated[float, InJobs(le=2, auto=True)] = Field(0.1, gt=0)`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Mark(Enum):
    """Marks without arguments."""

    RECIPES_ONLY = "recipes only"
    MAY_CHANGE = "may change"
    CONTENT_MATTERS = "content matters"
    A_MODEL = "a model"


RECIPES_ONLY = Mark.RECIPES_ONLY
"""No job may give the option: it names a file or a server, or makes sense on the command line alone."""
MAY_CHANGE = Mark.MAY_CHANGE
"""The option does not determine the trained weights, so a resumed run may have another value."""
CONTENT_MATTERS = Mark.CONTENT_MATTERS
"""The option names a file or folder. A resumed run compares its contents, not its name, and no job may give it."""

A_MODEL = Mark.A_MODEL
"""The option names a model: a folder, a hub id, or in a recipe's file a model that was imported."""


@dataclass(frozen=True, slots=True)
class InJobs:
    """How a job may give an option that it gives under the recipe's name: within narrower bounds, or as "auto"."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    auto: bool = False
    """Whether a job may say "auto", which is then its default and becomes the recipe's default."""
    check: Callable[[Any], Any] | None = None
    """A further check of the value; returns it, or raises ValueError."""
    schema: Callable[[dict[str, Any]], None] | None = None
    """Adds to the option's JSON Schema."""

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by pydantic's names."""
        named = {"ge": self.ge, "gt": self.gt, "le": self.le, "lt": self.lt}
        return {name: bound for name, bound in named.items() if bound is not None}


@dataclass(frozen=True, slots=True)
class GivenAs:
    """How a job gives an option under another name, or as another kind of value, than a recipe does.

    `convert` makes the recipe's value from the job's and a `JobContext`; it raises ModelError for an unknown model.
    """

    name: str
    annotation: Any
    convert: Callable[[Any, "JobContext"], Any]
    default: Any = ...
    description: str = ""
    names_a_model: bool = False


class JobContext(NamedTuple):
    """What a job option's conversion may look at."""

    hyperparameters: Mapping[str, Any]
    """All of the job's hyperparameters, "auto" resolved."""
    resolve_model: Callable[[str], Any]
    """From a model's name to its `ModelSource`; raises ModelError where the project has no such model."""
    learning_rate: float
    """The learning rate that a multiplier of 1 stands for."""


_Kind = TypeVar("_Kind")


def mark_of(field: FieldInfo, kind: type[_Kind]) -> _Kind | None:
    """The field's mark of this kind, or None."""
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def walk(section: BaseModel, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo, Any]]:
    """(keys, field, value) of every option under `section`, those of its sub-sections one by one.

    A sub-section that may change, or that is null, counts as one option.
    """
    for name, field in type(section).model_fields.items():
        keys, value = (*above, name), getattr(section, name)
        if isinstance(value, BaseModel) and MAY_CHANGE not in field.metadata:
            yield from walk(value, keys)
        else:
            yield keys, field, value
