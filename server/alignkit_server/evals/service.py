"""Evals of a project and their runs: create, list, update, cancel, delete."""

import json
from typing import Annotated

from fastapi import Depends
from sqlalchemy import insert
from sqlalchemy.orm import Session

from alignkit_server.audit.record import Audit
from alignkit_server.clock import now
from alignkit_server.database import after_commit
from alignkit_server.dependencies import ProjectDep, ServicesDep, SessionDep
from alignkit_server.errors import ApiError
from alignkit_server.eval_status import CANCELED, OPEN, QUEUED, WAITING
from alignkit_server.evals.checking import (
    check_answer_form,
    check_criteria,
    check_prompt,
    graders_of,
    judges_of,
    needs_sample,
)
from alignkit_server.evals.presenting import present_eval, present_item, present_run
from alignkit_server.evals.repository import EvalItemRepository, EvalRepository, EvalRunRepository
from alignkit_server.evals.rows import Rows, check_rows, compiled, given_rows, read_rows
from alignkit_server.evals.schemas import (
    Completions,
    CustomConfig,
    EvalDeleted,
    EvalObject,
    EvalRequest,
    EvalUpdate,
    FileId,
    OutputItem,
    RunDeleted,
    RunObject,
    RunRequest,
)
from alignkit_server.files.repository import FileRepository
from alignkit_server.ids import EVAL, EVAL_ITEM, EVAL_RUN, new_id
from alignkit_server.keys.service import Principal
from alignkit_server.limits.quotas import require_eval_run
from alignkit_server.pagination import CursorListObject, PageQuery
from alignkit_server.services import Services
from alignkit_server.tables import Eval, EvalItem, EvalRun

MAX_EVALS = 1000
"""Of a project."""
MAX_RUNS = 1000
"""Of an eval."""


class EvalService:
    """The evals of one project."""

    def __init__(self, session: Session, project: Principal, services: Services) -> None:
        self._session = session
        self._project_id = project.project_id
        self._services = services
        self._evals = EvalRepository(session, project.project_id)
        self._runs = EvalRunRepository(session, project.project_id)
        self._items = EvalItemRepository(session, project.project_id)
        self._audit = Audit(session, project)

    def create(self, request: EvalRequest) -> EvalObject:
        """Store an eval. Raises 400 for references that no row can fill, 404 for a judge that is not there."""
        compiled("data_source_config.item_schema", request.data_source_config.item_schema)
        check_criteria(request)
        for param, model in judges_of(request.testing_criteria):
            require_model(self._services, self._project_id, param, model)
        if self._evals.count() >= MAX_EVALS:
            raise ApiError(400, f"The project already has {MAX_EVALS:,} evals, the maximum: delete some.")
        row = Eval(
            id=new_id(EVAL),
            created_at=now(),
            name=request.name or "",
            data_source_config=request.data_source_config.model_dump(),
            testing_criteria=[one.model_dump(exclude_unset=True) for one in request.testing_criteria],
            labels=request.metadata or None,
        )
        row.name = row.name or row.id
        self._evals.add(row)
        return present_eval(row)

    def list(self, query: PageQuery) -> CursorListObject[EvalObject]:
        """A page of evals."""
        return CursorListObject.of(self._evals.list(query), present_eval)

    def get(self, eval_id: str) -> EvalObject:
        """One eval."""
        return present_eval(self._evals.get(eval_id))

    def update(self, eval_id: str, request: EvalUpdate) -> EvalObject:
        """Change the given fields."""
        row = self._evals.get(eval_id)
        if request.name is not None:
            row.name = request.name or row.id
        if "metadata" in request.model_fields_set:
            row.labels = request.metadata or None
        return present_eval(row)

    def delete(self, eval_id: str) -> EvalDeleted:
        """Delete an eval with its runs; those at work stop."""
        self._evals.delete(self._evals.get(eval_id))
        self._audit.record("eval.deleted", eval_id)
        return EvalDeleted(eval_id=eval_id)

    def add_run(self, eval_id: str, request: RunRequest, rows: Rows) -> RunObject:
        """Store a run of checked rows, and enqueue it after the commit. Raises 429 if a quota is used up."""
        self._evals.get(eval_id)
        contents = [{"item": row.item, "given": row.sample} for row in rows.rows]
        size = sum(map(_size, contents))
        require_eval_run(self._session, self._project_id, self._services.settings, size)
        if self._runs.count(eval_id) >= MAX_RUNS:
            raise ApiError(
                400, f"The eval {eval_id} already has {MAX_RUNS:,} runs, the maximum: delete some."
            )
        source, created_at = request.data_source, now()
        data_source = source.model_dump(exclude_unset=True)
        if "content" in data_source["source"]:
            data_source["source"]["content"] = []
        run = EvalRun(
            id=new_id(EVAL_RUN),
            created_at=created_at,
            eval_id=eval_id,
            name=request.name or "",
            status=QUEUED,
            model=source.model if isinstance(source, Completions) else "",
            data_source=data_source,
            labels=request.metadata or None,
            total=len(contents),
            tally={"passed": 0, "failed": 0, "errored": 0, "criteria": {}, "models": {}},
            disk_bytes=size,
        )
        run.name = run.name or run.id
        self._runs.add(run)
        fixed = {
            "project_id": self._project_id,
            "created_at": created_at,
            "run_id": run.id,
            "status": WAITING,
        }
        values = [
            fixed | content | {"id": new_id(EVAL_ITEM), "number": number, "results": []}
            for number, content in enumerate(contents)
        ]
        self._session.execute(insert(EvalItem), values)
        after_commit(self._session, lambda: self._services.evaluate(run.id))
        return present_run(run)

    def runs(self, eval_id: str, status: str | None, query: PageQuery) -> CursorListObject[RunObject]:
        """A page of an eval's runs."""
        self._evals.get(eval_id)
        return CursorListObject.of(self._runs.list(eval_id, status, query), present_run)

    def run(self, eval_id: str, run_id: str) -> RunObject:
        """One run."""
        return present_run(self._runs.of(eval_id, run_id))

    def cancel(self, eval_id: str, run_id: str) -> RunObject:
        """Cancel a run; its rows graded so far stay. Raises 409 if it has ended."""
        run = self._runs.of(eval_id, run_id, lock=True)
        if run.status not in OPEN:
            raise ApiError(409, f"The run {run_id} cannot be cancelled: its status is {run.status!r}.")
        run.status = CANCELED
        return present_run(run)

    def delete_run(self, eval_id: str, run_id: str) -> RunDeleted:
        """Delete a run with its rows; one at work stops."""
        self._runs.delete(self._runs.of(eval_id, run_id))
        self._audit.record("eval.run.deleted", run_id, eval_id=eval_id)
        return RunDeleted(run_id=run_id)

    def items(
        self, eval_id: str, run_id: str, status: str | None, query: PageQuery
    ) -> CursorListObject[OutputItem]:
        """A page of a run's graded rows."""
        self._runs.of(eval_id, run_id)
        page = self._items.list(run_id, status, query)
        return CursorListObject.of(page, lambda row: present_item(row, eval_id))

    def item(self, eval_id: str, run_id: str, item_id: str) -> OutputItem:
        """One graded row."""
        self._runs.of(eval_id, run_id)
        return present_item(self._items.of(run_id, item_id), eval_id)


def create_run(eval_id: str, request: RunRequest, project: Principal, services: Services) -> RunObject:
    """Check a run's rows and models, and store it. The database is not locked while the rows are read."""
    project_id, source = project.project_id, request.data_source.source
    with services.database.reading() as session:
        found = EvalRepository(session, project_id).get(eval_id)
        file = None
        if isinstance(source, FileId):
            file = FileRepository(session, project_id).get(source.id, param="data_source.source.id")
    config, graders = (
        CustomConfig.model_validate(found.data_source_config),
        graders_of(found.testing_criteria),
    )
    sampled = isinstance(request.data_source, Completions)
    if isinstance(request.data_source, Completions):
        check_prompt(request.data_source, config)
        check_answer_form(request.data_source.sampling_params.response_format)
        require_model(services, project_id, "data_source.model", request.data_source.model)
    for param, model in judges_of(graders):
        require_model(services, project_id, param, model)
    rows = (
        given_rows(source)
        if not isinstance(source, FileId)
        else read_rows(
            services.settings.files_dir / source.id, file.bytes if file else 0, quotes=project.reads_rows
        )
    )
    validator = compiled("data_source_config.item_schema", config.item_schema)
    check_rows(rows, validator, needs_sample=needs_sample(graders) and not sampled)
    with services.database.writing() as session:
        return EvalService(session, project, services).add_run(eval_id, request, rows)


def require_model(services: Services, project_id: str, param: str, model: str) -> None:
    """Refuse (404) a model that the project cannot use."""
    try:
        services.catalog.resolve(model, project_id)
    except ApiError as error:
        detail = error.detail
        raise ApiError(404, f"{param}: {detail.message}", param=param, code=detail.code) from error


def _size(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False))


async def get_service(session: SessionDep, project: ProjectDep, services: ServicesDep) -> EvalService:
    """The service for one request."""
    return EvalService(session, project, services)


EvalServiceDep = Annotated[EvalService, Depends(get_service)]
