"""Queries on evals, their runs and rows."""

from collections.abc import Sequence

from sqlalchemy import func, select

from alignkit_server.errors import not_found
from alignkit_server.eval_status import WAITING
from alignkit_server.pagination import Page, PageQuery
from alignkit_server.scoped import ScopedRepository
from alignkit_server.tables import Eval, EvalItem, EvalRun


class EvalRepository(ScopedRepository[Eval]):
    """One project's evals."""

    table = Eval
    kind = "eval"

    def list(self, query: PageQuery) -> Page[Eval]:
        """A page of the evals."""
        return self.page(self.select(), query)

    def count(self) -> int:
        """Number of evals."""
        return self._session.scalar(select(func.count()).select_from(self.select().subquery())) or 0


class EvalRunRepository(ScopedRepository[EvalRun]):
    """One project's runs of evals."""

    table = EvalRun
    kind = "eval run"

    def of(self, eval_id: str, run_id: str, *, lock: bool = False) -> EvalRun:
        """The run of that eval, optionally locked until the transaction ends. Raises 404 if there is none."""
        query = self.select().where(EvalRun.id == run_id, EvalRun.eval_id == eval_id)
        run = self._session.scalar(query.with_for_update() if lock else query)
        if run is None:
            raise not_found(self.kind, run_id)
        return run

    def list(self, eval_id: str, status: str | None, query: PageQuery) -> Page[EvalRun]:
        """A page of an eval's runs, optionally of one status."""
        statement = self.select().where(EvalRun.eval_id == eval_id)
        return self.page(statement if status is None else statement.where(EvalRun.status == status), query)

    def count(self, eval_id: str) -> int:
        """Number of an eval's runs."""
        query = self.select().where(EvalRun.eval_id == eval_id)
        return self._session.scalar(select(func.count()).select_from(query.subquery())) or 0


class EvalItemRepository(ScopedRepository[EvalItem]):
    """One project's graded rows."""

    table = EvalItem
    kind = "output item"

    def list(self, run_id: str, status: str | None, query: PageQuery) -> Page[EvalItem]:
        """A page of a run's graded rows, optionally of one status."""
        statement = self.select().where(EvalItem.run_id == run_id)
        wanted = EvalItem.status != WAITING if status is None else EvalItem.status == status
        return self.page(statement.where(wanted), query)

    def of(self, run_id: str, item_id: str) -> EvalItem:
        """The graded row of that run. Raises 404 if there is none."""
        query = self.select().where(EvalItem.run_id == run_id, EvalItem.id == item_id)
        item = self._session.scalar(query.where(EvalItem.status != WAITING))
        if item is None:
            raise not_found(self.kind, item_id)
        return item

    def waiting(self, run_id: str, limit: int) -> Sequence[EvalItem]:
        """The first rows of a run that are not graded yet."""
        query = self.select().where(EvalItem.run_id == run_id, EvalItem.status == WAITING)
        return self._session.scalars(query.order_by(EvalItem.number).limit(limit)).all()
