"""/v1/evals."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from alignkit_server.dependencies import NeedsSpace, ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.evals.schemas import (
    EvalDeleted,
    EvalObject,
    EvalRequest,
    EvalUpdate,
    ItemStatus,
    OutputItem,
    RunDeleted,
    RunObject,
    RunRequest,
    RunStatus,
)
from alignkit_server.evals.service import EvalServiceDep, create_run
from alignkit_server.pagination import After, CursorListObject, Order, PageQuery

RUNS = "/{eval_id}/runs"
RUN = f"{RUNS}/{{run_id}}"
Limit = Annotated[int, Query(ge=1, le=100)]


async def get_page(after: After = None, limit: Limit = 20, order: Order = "asc") -> PageQuery:
    """The requested page, oldest first by default."""
    return PageQuery(after, limit, order)


PageDep = Annotated[PageQuery, Depends(get_page)]

router = APIRouter(prefix="/v1/evals", tags=["evals"])


@router.post("", responses=documented(404, 507), dependencies=[NeedsSpace])
def create_eval(body: EvalRequest, evals: EvalServiceDep) -> EvalObject:
    """Create an eval: the schema of its rows, and the graders that judge them."""
    return evals.create(body)


@router.get("", responses=documented(404))
def list_evals(
    evals: EvalServiceDep,
    page: PageDep,
    order_by: Literal["created_at"] = "created_at",  # noqa: ARG001 - OpenAI's parameter, of which this is one value
) -> CursorListObject[EvalObject]:
    """List evals, oldest first by default."""
    return evals.list(page)


@router.get("/{eval_id}", responses=documented(404))
def retrieve_eval(eval_id: str, evals: EvalServiceDep) -> EvalObject:
    """Retrieve an eval."""
    return evals.get(eval_id)


@router.post("/{eval_id}", responses=documented(404))
def update_eval(eval_id: str, body: EvalUpdate, evals: EvalServiceDep) -> EvalObject:
    """Change an eval's name or metadata."""
    return evals.update(eval_id, body)


@router.delete("/{eval_id}", responses=documented(404))
def delete_eval(eval_id: str, evals: EvalServiceDep) -> EvalDeleted:
    """Delete an eval with its runs."""
    return evals.delete(eval_id)


@router.post(RUNS, responses=documented(404, 507), dependencies=[NeedsSpace])
async def create_eval_run(
    eval_id: str, body: RunRequest, project: ProjectDep, services: ServicesDep
) -> RunObject:
    """Run an eval. Refused as a whole if a row, a model or a reference is invalid."""
    return await services.file_checks.run(
        project.project_id, lambda: create_run(eval_id, body, project, services)
    )


@router.get(RUNS, responses=documented(404))
def list_eval_runs(
    eval_id: str,
    evals: EvalServiceDep,
    page: PageDep,
    status: RunStatus | None = None,
) -> CursorListObject[RunObject]:
    """List an eval's runs, oldest first by default."""
    return evals.runs(eval_id, status, page)


@router.get(RUN, responses=documented(404))
def retrieve_eval_run(eval_id: str, run_id: str, evals: EvalServiceDep) -> RunObject:
    """Retrieve a run, with its counts so far."""
    return evals.run(eval_id, run_id)


@router.post(f"{RUN}/cancel", responses=documented(404, 409))
def cancel_eval_run(eval_id: str, run_id: str, evals: EvalServiceDep) -> RunObject:
    """Cancel a run; the rows graded so far stay."""
    return evals.cancel(eval_id, run_id)


@router.delete(RUN, responses=documented(404))
def delete_eval_run(eval_id: str, run_id: str, evals: EvalServiceDep) -> RunDeleted:
    """Delete a run with its rows."""
    return evals.delete_run(eval_id, run_id)


@router.get(f"{RUN}/output_items", responses=documented(404))
def list_eval_output_items(
    eval_id: str,
    run_id: str,
    evals: EvalServiceDep,
    page: PageDep,
    status: ItemStatus | None = None,
) -> CursorListObject[OutputItem]:
    """List a run's graded rows."""
    return evals.items(eval_id, run_id, status, page)


@router.get(f"{RUN}/output_items/{{item_id}}", responses=documented(404))
def retrieve_eval_output_item(eval_id: str, run_id: str, item_id: str, evals: EvalServiceDep) -> OutputItem:
    """Retrieve a graded row."""
    return evals.item(eval_id, run_id, item_id)
