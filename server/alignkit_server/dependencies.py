"""Dependencies of routes: the services, the caller's project and scopes, and a transaction.

Dependencies that never block are `async`: FastAPI runs each plain function in a thread, three of them per chat.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from sqlalchemy.orm import Session

from alignkit_server.errors import ApiError, disk_full, not_found
from alignkit_server.keys.scopes import READING, also_needed, scopes_for
from alignkit_server.keys.service import Principal
from alignkit_server.services import Services

bearer = HTTPBearer(auto_error=False, description="A key of this service: sk-…")
"""For the OpenAPI document only; `alignkit_server.keys.authentication` checks the key."""


async def get_services(request: Request) -> Services:
    """The running service's parts."""
    services: Services = request.app.state.services
    return services


async def get_principal(request: Request, _: Annotated[object, Security(bearer)]) -> Principal:
    """The authenticated caller; KeyAuthentication guarantees that there is one."""
    principal: Principal = request.state.principal
    return principal


ServicesDep = Annotated[Services, Depends(get_services)]
ProjectDep = Annotated[Principal, Depends(get_principal)]


async def require_scope(request: Request, principal: ProjectDep) -> None:
    """Refuse a request whose key lacks the needed scope: with 403, or 404 if the project is not the key's own.

    The application adds this dependency to every route that needs a key.
    """
    path = request.scope["route"].path
    needed, also = scopes_for(request.method, path), also_needed(request.method, path)
    if needed & principal.scopes and also <= principal.scopes:
        return
    project_id = request.path_params.get("project_id", principal.project_id)
    if project_id != principal.project_id:
        raise not_found("project", project_id)
    one_of = " or ".join(sorted(needed))
    raise ApiError(
        403,
        f"This key lacks a scope: expected {' and '.join([one_of, *sorted(also)])}, "
        f"found {', '.join(sorted(principal.scopes))}.",
        code="missing_scope",
    )


def get_session(request: Request, services: ServicesDep) -> Iterator[Session]:
    """The request's transaction, committed after the route returns and before the response is sent."""
    if request.method == "DELETE":
        services.reserve.look()  # a deletion needs a little space, and gives back more
    database = services.database
    with database.reading() if request.method in READING else database.writing() as session:
        yield session


async def require_space(services: ServicesDep) -> None:
    """Refuse with 507 a request that would use much space on a full disk."""
    if services.reserve.is_low():
        raise disk_full()


NeedsSpace = Depends(require_space)
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
