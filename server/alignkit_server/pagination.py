"""Lists in pages, as OpenAI's: `after` the last id seen, at most `limit`, `has_more`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, Protocol, TypeVar

from fastapi import Query
from pydantic import BaseModel

Item = TypeVar("Item")
Row = TypeVar("Row")
Order = Literal["asc", "desc"]


class HasId(Protocol):
    """An object of the API that is known by its id."""

    id: str


Identified = TypeVar("Identified", bound=HasId)
After = Annotated[str | None, Query(description="id of the last object of the page before")]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page is asked for; by creation, newest first unless `order` is asc."""

    after: str | None
    limit: int
    order: Order = "desc"


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page, and whether another follows."""

    items: Sequence[Item]
    has_more: bool


class ListObject(BaseModel, Generic[Item]):
    """A page as the API gives it."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class CursorListObject(ListObject[Item], Generic[Item]):
    """A page that names its first and last id, as OpenAI's lists of files and checkpoints do."""

    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, page: Page[Row], present: Callable[[Row], Identified]) -> "CursorListObject[Identified]":
        """A page of rows, each as `present` shows it."""
        data = [present(row) for row in page.items]
        return CursorListObject(
            data=data,
            has_more=page.has_more,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
        )
