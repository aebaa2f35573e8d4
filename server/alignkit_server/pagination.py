"""Paginated lists in OpenAI's form: `after` the last id seen, at most `limit` objects, `has_more`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, Protocol, TypeVar

from fastapi import Query
from pydantic import BaseModel

Item = TypeVar("Item")
Row = TypeVar("Row")
Order = Literal["asc", "desc"]


class HasId(Protocol):
    """An API object with an id."""

    id: str


Identified = TypeVar("Identified", bound=HasId)
After = Annotated[str | None, Query(description="id of the last object of the previous page")]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """The requested page; sorted by creation, newest first unless `order` is asc."""

    after: str | None
    limit: int
    order: Order = "desc"


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of items, and whether another follows."""

    items: Sequence[Item]
    has_more: bool


class ListObject(BaseModel, Generic[Item]):
    """A page in the API's form."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class CursorListObject(ListObject[Item], Generic[Item]):
    """A page that names its first and last id, like OpenAI's lists of files and checkpoints."""

    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, page: Page[Row], present: Callable[[Row], Identified]) -> "CursorListObject[Identified]":
        """The page of API objects that `present` makes from the rows of `page`."""
        data = [present(row) for row in page.items]
        return CursorListObject(
            data=data,
            has_more=page.has_more,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
        )
